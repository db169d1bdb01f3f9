"""What Prefect shows of a freshness check: an artifact each time, an event when the level changes."""

from __future__ import annotations

import re
from typing import Any

from tasks.environment import apply_defaults
from tasks.prefect_sinks import create_markdown_artifact, emit_event
from touchstone.freshness_reasons import percent
from touchstone.freshness_records import Ages, FreshnessPlan, FreshnessReport, Measure

_LISTED = 20


def emit_freshness_event(report: FreshnessReport) -> None:
    """`touchstone.freshness.flagged`, `.breached` or `.recovered`, where the check announces something."""
    if report.announcement is None:
        return
    apply_defaults()
    emit_event(
        event=f"touchstone.freshness.{report.announcement}",
        resource={
            "prefect.resource.id": f"touchstone.index.{report.config}",
            "prefect.resource.name": f"index of {report.config}",
            "touchstone.retrieval_config": report.config,
        },
        payload=event_payload(report),
    )


def event_payload(report: FreshnessReport) -> dict[str, Any]:
    """Whole and flat: a trigger that names a missing key creates no run, and says so nowhere."""
    return {
        "event": f"touchstone.freshness.{report.announcement}",
        "config": report.config,
        "level": report.level.value,
        "reason": report.reason,
        "index_version": report.index_version,
        "checked_at": report.checked_at,
        "basis": report.basis,
        "measures": {name: measure.value for name, measure in report.measures.items()},
        "limits": {name: measure.limit for name, measure in report.measures.items()},
        "documents": [
            document.model_dump(mode="json", include={"id", "status", "stale", "traffic_share", "age_days"})
            for document in report.documents[:_LISTED]
        ],
        "never_embedded": list(report.never_embedded.documents[:_LISTED]),
        "n_retrievals": report.n_retrievals,
        "n_queries": report.n_queries,
    }


def create_artifact(report: FreshnessReport) -> None:
    """The check on the flow run's page, under one key per retrieval config."""
    apply_defaults()
    create_markdown_artifact(
        markdown=markdown(report),
        key=re.sub(r"[^a-z0-9-]+", "-", f"freshness-{report.config}".lower()).strip("-"),
        description=f"{report.level}: {report.reason}",
    )


def markdown(report: FreshnessReport) -> str:
    """The level, its numbers, and the documents responsible."""
    lines = [
        f"## {report.level.upper()}: index of {report.config}",
        "",
        report.reason,
        "",
        "| measure | now | 95 % interval | lower bound | limit | of documents | level |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(_row(name, measure) for name, measure in report.measures.items()),
        "",
        f"{report.n_retrievals:,} retrievals by {report.n_queries:,} distinct queries; basis: {report.basis}. "
        f"Age since last verified: {_ages(report.age_days)}; since embedded: {_ages(report.embedded_age_days)}.",
    ]
    lines += _segments(report) + _documents(report) + (_plan(report.plan) if report.plan else [])
    lines += ["", *(f"- {warning}" for warning in report.warnings)] if report.warnings else []
    return "\n".join([*lines, "", f"`{report.index_version}`: `touchstone freshness check --config {report.config}`"])


def _row(name: str, measure: Measure) -> str:
    shown = (percent(share) for share in (measure.lower_bound, measure.limit, measure.unweighted))
    interval = f"{percent(measure.ci_low)} to {percent(measure.ci_high)}"
    return f"| {name} | {percent(measure.value)} | {interval} | {' | '.join(shown)} | {measure.level} |"


def _ages(ages: Ages) -> str:
    if ages.median is None or ages.p95 is None:
        return "nothing was retrieved"
    return f"median {ages.median:.1f} days, p95 {ages.p95:.1f} days"


def _segments(report: FreshnessReport) -> list[str]:
    if not report.segments:
        return []
    lines = ["", "| segment | chunks | stale_fraction | source_lag | ghosts |", "|---|---:|---:|---:|---:|"]
    for name, segment in report.segments.items():
        shares = " | ".join(percent(measure.value) for measure in segment.measures.values())
        lines.append(f"| {name} | {segment.n_chunks:,} | {shares} |")
    return lines


def _documents(report: FreshnessReport) -> list[str]:
    lines = []
    if report.documents:
        lines = ["", "| document | status | of what is retrieved | last verified |", "|---|---|---:|---|"]
    for document in report.documents[:_LISTED]:
        note = f" ({document.note})" if document.note else ""
        share, when = percent(document.traffic_share), document.last_verified_at[:16]
        lines.append(f"| `{document.id}` | {document.status}{note} | {share} | {when} |")
    if len(report.documents) > _LISTED:
        lines += ["", f"and {len(report.documents) - _LISTED} more"]
    named = {"Never embedded": report.never_embedded.documents, "Quarantined": report.never_embedded.quarantined}
    for what, ids in named.items():
        lines += ["", f"{what}: {', '.join(f'`{id}`' for id in ids)}"] if ids else []
    return lines


def _plan(plan: FreshnessPlan) -> list[str]:
    return ["", f"**Plan** ({plan.method}): {plan.reason}."]
