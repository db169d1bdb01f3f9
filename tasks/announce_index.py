"""What Prefect shows of an index build: its plan, its progress, its result, and the events that others wait for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from tasks.environment import apply_defaults
from tasks.indexing import BuildPlan
from tasks.prefect_sinks import create_markdown_artifact, emit_event
from touchstone.index import BuildReport, Outcome, RetrievalEvaluation, SourceChanges, Validation

_LISTED = 20


class BuildArtifacts:
    """Writes the artifacts of one build as it goes."""

    def __init__(self) -> None:
        self._progress: UUID | None = None

    def planned(self, report: BuildReport, plan: BuildPlan) -> None:
        """The plan, before anything is paid; and an empty progress bar."""
        with _never_in_the_way():
            self._plan(report, plan)

    def embedded(self, done: int, total: int) -> None:
        from prefect.artifacts import update_progress_artifact

        if self._progress is not None:
            with _never_in_the_way():
                update_progress_artifact(artifact_id=self._progress, progress=100.0 * done / total)

    def finished(self, report: BuildReport) -> None:
        """The result, with what validation and retrieval evaluation found."""
        with _never_in_the_way():
            create_markdown_artifact(
                markdown=markdown(report), key=_key(f"reindex-{report.config_name}"), description=headline(report)
            )

    def _plan(self, report: BuildReport, plan: BuildPlan) -> None:
        apply_defaults()
        from prefect.artifacts import create_progress_artifact

        create_markdown_artifact(
            markdown=plan_markdown(report, plan), key=_key(f"reindex-plan-{report.config_name}"), description="The plan"
        )
        if plan.pending:
            created = create_progress_artifact(
                progress=0.0,
                key=_key(f"reindex-progress-{report.config_name}"),
                description=f"{len(plan.pending)} chunks to embed",
            )
            self._progress = created if isinstance(created, UUID) else None


@contextmanager
def _never_in_the_way() -> Iterator[None]:
    """A page that cannot be drawn is no reason to lose a build."""
    try:
        yield
    except Exception as error:  # Prefect's client raises what its transport raises
        logging.getLogger("touchstone").warning("no artifact: %s: %s", type(error).__name__, error)


def emit_build_event(report: BuildReport) -> None:
    """`touchstone.index.promoted` when readers were switched, `touchstone.index.rejected` when they were not."""
    if report.outcome in {Outcome.CURRENT, Outcome.HELD_BACK, Outcome.READY}:
        return
    apply_defaults()
    emit_event(
        event=f"touchstone.index.{'promoted' if report.promoted else 'rejected'}",
        resource={
            "prefect.resource.id": f"touchstone.index.{report.config_name}",
            "prefect.resource.name": f"index of {report.config_name}",
            "touchstone.retrieval_config": report.config_name,
        },
        payload={
            "event": f"touchstone.index.{'promoted' if report.promoted else 'rejected'}",
            "config": report.config_name,
            "index_version": report.index.label if report.index else None,
            "live_before": report.live_before,
            "reason": report.reason,
            "build_key": report.build_key,
            "added": list(report.changes.added[:_LISTED]),
            "changed": list(report.changes.changed[:_LISTED]),
            "deleted": list(report.changes.deleted[:_LISTED]),
            "embedded_chunks": report.embedded_chunks,
            "cost_usd": report.cost_usd,
            "mlflow_url": report.mlflow_url,
        },
    )


def headline(report: BuildReport) -> str:
    """One word or two: what became of the build."""
    return report.outcome.capitalize()


def plan_markdown(report: BuildReport, plan: BuildPlan) -> str:
    """What the source changed, and what that costs."""
    lines = [f"## Plan: {report.config_name}@{report.config_version}", "", _changes(report.changes), ""]
    lines += [f"{len(plan.pending)} texts to embed, {len(plan.vectors)} known from before."]
    return "\n".join(lines + _documents(report.changes) + _scan(report))


def markdown(report: BuildReport) -> str:
    """The decision, then its evidence."""
    label = report.index.label if report.index else "no version was built"
    cost = "cost unknown" if report.cost_usd is None else f"{report.cost_usd:.4f} USD"
    lines = [f"## {headline(report)}: `{label}`", "", report.reason, "", _changes(report.changes), ""]
    lines += [
        f"{report.documents} documents, {report.chunks} chunks; {report.embedded_chunks} embedded, "
        f"{report.reused_chunks} reused, {cost}, {report.wall_s:.1f} s."
    ]
    lines += _retrieval(report.retrieval) if report.retrieval else []
    lines += _validation(report.validation) if report.validation else []
    if report.mlflow_url:
        lines += ["", f"[Open the build in MLflow]({report.mlflow_url})"]
    return "\n".join(lines + _documents(report.changes) + _scan(report))


def _retrieval(retrieval: RetrievalEvaluation) -> list[str]:
    if not retrieval.comparisons:
        return []
    lines = [
        "",
        "| metric | live | new | difference | lower bound | margin | n |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in retrieval.comparisons:
        numbers = " | ".join(map(_number, (row.live, row.new, row.difference, row.lower_bound)))
        lines.append(f"| {row.metric} | {numbers} | {row.margin:g} | {row.n} |")
    worst = ", ".join(f"`{case.case_id}`" for case in retrieval.worst_cases)
    return [*lines, "", f"Worst cases: {worst}"] if worst else lines


def _validation(validation: Validation) -> list[str]:
    rows = (
        f"| {check.name} | {'yes' if check.passed else '**no**'} | {check.detail} |"
        for check in validation.expectations
    )
    return ["", "| check | passed | |", "|---|---|---|", *rows]


def _changes(changes: SourceChanges) -> str:
    kept = f"; {len(changes.kept)} unreadable ones kept at their last good version" if changes.kept else ""
    return (
        f"{len(changes.added)} added, {len(changes.changed)} changed, {len(changes.deleted)} deleted, "
        f"{len(changes.renamed)} renamed, {changes.unchanged} unchanged{kept}."
    )


def _documents(changes: SourceChanges) -> list[str]:
    named = {
        "added": changes.added,
        "changed": changes.changed,
        "deleted": changes.deleted,
        "renamed": tuple(f"{old} -> {new}" for old, new in changes.renamed),
        "unreadable": tuple(f"{broken.where}: {broken.reason}" for broken in changes.unreadable),
    }
    return [line for what, items in named.items() for line in _listed(what, items)]


def _scan(report: BuildReport) -> list[str]:
    named = {"quarantined": report.quarantined, "suspicious, indexed all the same": report.suspicious}
    lines = [
        line
        for what, chunks in named.items()
        for line in _listed(what, [f"`{chunk.chunk_id}` ({', '.join(chunk.rules)})" for chunk in chunks])
    ]
    kinds = [f"{kind} in {count} chunks" for kind, count in sorted(report.pii.items())]
    return lines + _listed("personal data", kinds)


def _listed(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ["", f"**{what}**: {', '.join(items[:_LISTED])}{more}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
