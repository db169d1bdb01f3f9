"""touchstone reindex"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.indexing import BuildPlan
    from touchstone.index import BuildReport, SourceChanges


def reindex(
    config: Annotated[str, typer.Option(help="A name in retrieval_configs/, or a path.")] = "support",
    allow_shrink: Annotated[bool, typer.Option(help="Build although the source lost many documents.")] = False,
    promote: Annotated[bool, typer.Option(help="Switch readers when the build is not worse.")] = True,
    max_cost: Annotated[float | None, typer.Option(help="Spend cap in USD; default: the config's.")] = None,
    prefect: Annotated[
        bool | None, typer.Option("--prefect/--no-prefect", help="As a Prefect flow run; default: if one is set up.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Embed what changed in a source, and switch readers to the new version when it is not worse.

    Exit 0 promoted or nothing to do, 1 not promoted, 2 bad input, 3 unmeasurable, 4 over the spend cap.
    """
    from cli.output import exit_with, log, print_json
    from flows.reindex import ReindexRequest, conduct, publish, run_as_flow
    from tasks.loading import load_settings
    from touchstone.errors import BadInput

    if max_cost is not None and not 0 < max_cost < float("inf"):
        raise BadInput(f"--max-cost {max_cost:g}: write an amount of USD above 0; without it the config's cap counts")
    request = ReindexRequest(config=config, allow_shrink=allow_shrink, promote=promote, max_cost_usd=max_cost)
    if prefect if prefect is not None else bool(os.environ.get("PREFECT_API_URL")):
        report = run_as_flow(request)
    else:
        settings = load_settings()
        with _shown() as observer:
            built = conduct(settings, request, observer=observer)
        report = publish(settings, built, log)
    if as_json:
        print_json(report.summary())
    else:
        _print(report)
    exit_with(exit_code(report))


def exit_code(report: BuildReport) -> int:
    """0 promoted, or nothing that anybody has to look at; 1 worse or invalid; 3 nothing could be told."""
    from touchstone.index import Outcome

    return 0 if report.is_fine else 3 if report.outcome is Outcome.UNMEASURABLE else 1


@contextmanager
def _shown() -> Iterator[Any]:
    """The plan as a line, then a bar on a terminal or a plain line per tenth elsewhere."""
    from cli.output import count_progress, err

    class Shown:
        def planned(self, report: BuildReport, plan: BuildPlan) -> None:
            err.print(f"{_changes(report.changes)}; {len(plan.pending)} chunks to embed")

        def embedded(self, done: int, total: int) -> None:
            advance(done, total)

    with count_progress("embedding", "chunks") as advance:
        yield Shown()


def _print(report: BuildReport) -> None:
    from rich.markup import escape

    from cli.output import out

    style, word = ("green" if report.is_fine else "red"), report.outcome.upper()
    label = report.index.label if report.index else "no version"
    out.print(f"[bold {style}]{word}[/]  {escape(report.reason)}")
    out.print(f"{label}: {report.documents} documents, {report.chunks} chunks; {_changes(report.changes)}")
    if report.retrieval and report.retrieval.comparisons:
        out.print(_comparison_table(report))
    for case in report.retrieval.worst_cases[:5] if report.retrieval else ():
        out.print(f"  worse: {escape(case.case_id)}  {case.metric} {case.live:.2f} -> {case.new:.2f}")
    for broken in report.changes.unreadable:
        out.print(f"  unreadable: {escape(broken.where)}: {escape(broken.reason)}")
    for chunk in report.quarantined:
        out.print(f"  quarantined: {escape(chunk.chunk_id)} ({', '.join(chunk.rules)})")
    for chunk in report.suspicious:
        out.print(f"  suspicious, indexed by policy: {escape(chunk.chunk_id)} ({', '.join(chunk.rules)})")
    if report.pii:
        out.print("  personal data: " + ", ".join(f"{kind} in {count} chunks" for kind, count in report.pii.items()))
    cost = "cost unknown (no price)" if report.cost_usd is None else f"{report.cost_usd:.4f} USD"
    out.print(
        f"{report.embedded_chunks} chunks embedded in {report.embed_s:.1f} s, {report.reused_chunks} reused, "
        f"{cost}, {report.wall_s:.1f} s in all"
    )
    if report.mlflow_url:
        out.print(f"MLflow: {report.mlflow_url}")
    out.print(f"[dim]build {report.build_key}[/dim]")


def _comparison_table(report: BuildReport) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("metric", "live", "new", "difference", "lower bound", "margin", "n"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in report.retrieval.comparisons if report.retrieval else ():
        numbers = ("–" if value is None else f"{value:+.3f}" for value in (row.difference, row.lower_bound))
        live = "–" if row.live is None else f"{row.live:.3f}"
        table.add_row(row.metric, live, f"{row.new:.3f}", *numbers, f"{row.margin:g}", str(row.n))
    return table


def _changes(changes: SourceChanges) -> str:
    kept = f", {len(changes.kept)} kept unread" if changes.kept else ""
    return (
        f"{len(changes.added)} added, {len(changes.changed)} changed, {len(changes.deleted)} deleted, "
        f"{len(changes.renamed)} renamed{kept}"
    )
