"""What an attribution leaves behind: an event in the ledger, one on Prefect's bus, a table on the flow run's page."""

from __future__ import annotations

import re

from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.prefect_sinks import acreate_markdown_artifact, emit_event
from touchstone.attribution_records import AttributionReport, FactorState, Standing, SwapFinding
from touchstone.factor_swaps import NAMES
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.settings import Settings


def record_attribution(settings: Settings, report: AttributionReport) -> LedgerEvent:
    """The report in the ledger, under the bundle that fell."""
    ledger = Ledger(settings.ledger, settings.environment)
    try:
        content = report.model_dump_json().encode()
        subject = f"attribution:{report.bundle}"
        return ledger.append(EventKind.ATTRIBUTION_DECIDED, subject, report.summary(), content=content)
    finally:
        ledger.close()


def emit_attribution_event(report: AttributionReport) -> None:
    """`touchstone.attribution.decided`, with a flat and whole payload."""
    apply_defaults()
    emit_event(
        event="touchstone.attribution.decided",
        resource={
            "prefect.resource.id": f"touchstone.eval.{report.bundle}.{report.dataset}",
            "prefect.resource.name": f"{report.bundle} on {report.dataset}",
            "touchstone.bundle": report.bundle,
            "touchstone.dataset": report.dataset,
        },
        payload=report.summary(),
    )


async def create_attribution_artifact(report: AttributionReport) -> None:
    """The culprit and the table of factors, under one key per bundle and golden set."""
    apply_defaults()
    key = re.sub(r"[^a-z0-9-]+", "-", f"attribution-{report.bundle}-{report.dataset}".lower()).strip("-")
    await acreate_markdown_artifact(markdown=markdown(report), key=key, description=headline(report))


def headline(report: AttributionReport) -> str:
    """One line: the culprit and why, or why there is none."""
    return f"{report.headline}: {report.decision.reason}"


def markdown(report: AttributionReport) -> str:
    """The culprit, the table of factors, and what would decide an undecided one."""
    decision = report.decision
    lines = [f"## {report.headline}", "", decision.reason, ""]
    if decision.would_decide:
        lines += [f"**What would decide:** {decision.would_decide}", ""]
    columns = "| factor | before | after | replayed | restored | evidence (names at 1) | verdict |"
    lines += [columns, "|---|---|---|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(report)]
    lines += ["", _fall(report), "", _spent(report)]
    return "\n".join([*lines, *(f"\n{note}" for note in left_out(report))])


def rows(report: AttributionReport) -> list[tuple[str, ...]]:
    """The table, a row for the control, for each factor, and for all together."""
    decision = report.decision
    control = (
        f"{decision.control_failing} of {decision.control_cases} still fail" if decision.control_cases else "not run"
    )
    alone = {finding.swaps[0]: finding for finding in decision.findings if len(finding.swaps) == 1}
    found: list[tuple[str, ...]] = [("nothing swapped", "", "", str(decision.control_cases), "", "", control)]
    for state in report.factors:
        found.append((NAMES[state.factor], state.before, state.after, *_cells(report, state, alone.get(state.factor))))
    for finding in decision.findings:
        if len(finding.swaps) > 1:
            found.append(("all together", "", "", *_cells(report, None, finding)))
    return found


def left_out(report: AttributionReport) -> list[str]:
    """What the golden set itself changed, told apart from any cause."""
    told = (
        ("edited since one of the runs", report.left_out.edited),
        ("only in one of the runs, or gone", report.left_out.gone),
        ("without a score in one of the runs", report.left_out.unscored),
    )
    return [f"Left out, {why}: {len(ids)} cases ({', '.join(ids[:5])})" for why, ids in told if ids]


def _cells(report: AttributionReport, state: FactorState | None, finding: SwapFinding | None) -> tuple[str, ...]:
    if finding is None:
        moved = state is not None and report.decision.by_elimination and state.factor in report.decision.culprits
        standing = state.standing if state else Standing.SAME
        said = "moved behind its name" if moved else f"{standing}: {state.note}" if state and state.note else standing
        return ("", "", "", f"**{said}**" if moved else str(said))
    verdict = "restores" if finding.restores else "does not restore" if finding.does_not_restore else "unclear"
    return (str(finding.n_cases), f"{finding.restored} of {finding.failing}", f"{finding.evidence:.3g}", verdict)


def _fall(report: AttributionReport) -> str:
    return (
        f"{report.metric} fell from {report.mean_before:.3f} to {report.mean_after:.3f}: {report.fell} cases fell, "
        f"{report.rose} rose, between `{report.before}` and `{report.after}`."
    )


def _spent(report: AttributionReport) -> str:
    cost = "cost unknown" if report.cost_usd is None else f"{report.cost_usd:.4f} USD"
    stopped = f", stopped by its limit of {report.stopped_by}" if report.stopped_by else ""
    return f"{report.calls} of at most {report.max_calls} calls, {cost}{stopped}. `{report.attribution_key}`"


def spent(report: AttributionReport) -> str:
    """The fall and what was paid to explain it, for a terminal."""
    return f"{_fall(report)} {_spent(report)}".replace("`", "")
