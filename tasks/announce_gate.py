"""What people see of a gate: a Markdown page with its table, its worst cases and its links; and MLflow's comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tasks.environment import apply_defaults
from tasks.prefect_sinks import acreate_markdown_artifact
from tasks.spool import Spool, run_folder
from tasks.tracking import MARKER
from tasks.tracking_address import compare_url
from touchstone.gate_records import CaseChange, Comparison, GateReport, HardCheck, Spend
from touchstone.settings import Settings

_MOST_ROWS = 10
_MARKS = {
    "not_inferior": "not inferior",
    "inferior": "**inferior**",
    "undecided": "**undecided**",
    "unmeasurable": "**unmeasurable**",
    "no_certain_loss": "no certain loss",
}


def with_links(settings: Settings, report: GateReport) -> GateReport:
    """The report with the pages that MLflow has of its runs, as far as they are published."""
    spools = [Spool(run_folder(settings.state, key)) for key in report.run_keys]
    published = [spool.read_json(MARKER) for spool in spools if spool.has(MARKER)]
    if len(published) < len(spools):
        return report
    compare = None
    if len(published) > 1:
        candidate, champion = published
        compare = compare_url(settings, candidate["experiment_id"], candidate["run_id"], champion["run_id"])
    return report.model_copy(update={"mlflow_url": published[0]["url"], "mlflow_compare_url": compare})


async def create_artifact(report: GateReport) -> None:
    """The gate on the flow run's page, under one key per bundle."""
    apply_defaults()
    await acreate_markdown_artifact(
        markdown=markdown(report),
        key=re.sub(r"[^a-z0-9-]+", "-", f"gate-{report.bundle}".lower()).strip("-"),
        description=report.headline,
    )


def markdown(report: GateReport) -> str:
    """The verdict, its numbers, the cases to look at, and where to look next."""
    decision = report.decision
    lines = [f"## {report.headline}", "", decision.reason]
    if report.ended_early:
        lines += ["", f"Ended early, the rest could change nothing: {report.ended_early}."]
    if decision.comparisons:
        lines += ["", *_table(decision.comparisons)]
    if decision.checks:
        lines += ["", *_checks(decision.checks)]
    lines += _changes("Worst regressions", decision.regressions, decision.n_worse)
    lines += _changes("Improvements", decision.improvements, decision.n_better)
    lines += [
        "",
        f"Cost per case {spent(decision.cost_per_case, 'USD')}; p95 latency {spent(decision.latency_p95_ms, 'ms')}. "
        f"Stage {decision.stage} of {decision.stages}, both sides together "
        + ("cost unknown." if report.cost_usd is None else f"{report.cost_usd:.4f} USD."),
    ]
    links = []
    if report.mlflow_compare_url:
        links.append(f"[Compare both case by case in MLflow]({report.mlflow_compare_url})")
    if report.mlflow_url:
        links.append(f"[The candidate's run]({report.mlflow_url})")
    if links:
        lines += ["", " · ".join(links)]
    return "\n".join([*lines, "", f"Gate `{report.gate_key}`, runs {', '.join(f'`{key}`' for key in report.run_keys)}"])


def spent(spend: Spend, unit: str) -> str:
    """`0.00012 USD -> 0.00014 USD (+16.7%)`"""
    if spend.candidate is None:
        return "unknown"
    if spend.champion is None:
        return f"{spend.candidate:.5g} {unit}"
    change = "" if spend.increase is None else f" ({spend.increase:+.1%})"
    return f"{spend.champion:.5g} -> {spend.candidate:.5g} {unit}{change}"


def _table(rows: Sequence[Comparison]) -> list[str]:
    return [
        "| metric | segment | champion | candidate | difference | at worst | margin | n | verdict | would decide |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---|",
        *(
            f"| {row.metric} | {row.segment} | {_number(row.champion)} | {_number(row.candidate)} "
            f"| {_signed(row.difference)} | {row.bound:+.3f} | {'–' if row.margin is None else f'{row.margin:g}'} "
            f"| {row.n} of {row.of} | {_MARKS[row.verdict]} | {needed(row)} |"
            for row in rows
        ),
    ]


def needed(row: Comparison) -> str:
    """What would decide an undecided row; empty for one that is decided."""
    if not row.stands_in_the_way or row.verdict == "inferior":
        return ""
    ways = []
    if row.needed_cases:
        ways.append(f"{row.needed_cases} cases")
    if row.needed_repeats:
        ways.append(f"{row.needed_repeats} trials per case")
    return " or ".join(ways) or "a wider margin"


def _checks(checks: Sequence[HardCheck]) -> list[str]:
    rows = (
        f"| {check.name} | {check.verdict if check.verdict == 'pass' else f'**{check.verdict}**'} | {check.detail} | "
        f"{', '.join(f'`{case}`' for case in check.cases[:_MOST_ROWS])} |"
        for check in checks
    )
    return ["| hard check | | | cases |", "|---|---|---|---|", *rows]


def _changes(title: str, changes: Sequence[CaseChange], total: int) -> list[str]:
    if not changes:
        return []
    rows = (
        f"| `{change.case_id}` | {change.segment} | {change.metric} | {change.champion:.3g} -> {change.candidate:.3g} "
        f"| {cell(change.champion_answer)} | {cell(change.candidate_answer)} |"
        for change in changes[:_MOST_ROWS]
    )
    shown = f" ({min(len(changes), _MOST_ROWS)} of {total})" if total > _MOST_ROWS else ""
    head = ["| case | segment | metric | score | champion said | candidate says |", "|---|---|---|---|---|---|"]
    return ["", f"**{title}**{shown}", "", *head, *rows]


def cell(text: str) -> str:
    """Text of a model in a table: it must neither end the cell nor become markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|\\`*_\[\]])", r"\\\1", escaped).replace("\n", " ")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
