"""touchstone freshness check"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from touchstone.freshness_records import FreshnessPlan, FreshnessReport

app = typer.Typer(help="Is what queries retrieve still what the source says?", no_args_is_help=True)

_LISTED = 10


@app.callback()
def freshness() -> None:
    """Typer would otherwise make a group of one command into that command."""


@app.command()
def check(
    config: Annotated[str, typer.Option(help="A name in retrieval_configs/, or a path.")] = "support",
    plan: Annotated[bool, typer.Option("--plan", help="The cheapest repair, beside a full rebuild.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare the live index with its source, weigh it by what is retrieved, and judge it by the config's SLA.

    Exit 0 within the SLA or flagged, 1 breached, 2 bad input, 3 unmeasurable: no live index, or no source to read.
    """
    from cli.output import exit_with, print_json
    from flows.freshness import conduct
    from tasks.loading import load_settings

    report = conduct(load_settings(), config, announce=False, with_plan=plan)
    if as_json:
        print_json(report.summary())
    else:
        _print(report)
    exit_with(exit_code(report))


def exit_code(report: FreshnessReport) -> int:
    """A source that cannot be read is no pass; what got too old by that is breached all the same."""
    if report.breached:
        return 1
    return 3 if report.source_error else 0


def _print(report: FreshnessReport) -> None:
    from rich.markup import escape

    from cli.output import out

    style = {"ok": "green", "flagged": "yellow", "breached": "red"}[report.level]
    out.print(f"[bold {style}]{report.level.upper()}[/]  {escape(report.reason)}")
    out.print(_measure_table(report))
    ages, embedded = report.age_days, report.embedded_age_days
    out.print(
        f"age since last verified: median {_days(ages.median)}, p95 {_days(ages.p95)}; "
        f"since embedded: {_days(embedded.median)}, {_days(embedded.p95)}"
    )
    for name, segment in report.segments.items():
        shares = ", ".join(f"{measure} {_percent(found.value)}" for measure, found in segment.measures.items())
        out.print(f"  [dim]{escape(name)}[/] ({segment.n_chunks} chunks): {shares}")
    for document in report.documents[:_LISTED]:
        note = f" ({document.note})" if document.note else ""
        out.print(
            f"  {document.status}: {escape(document.id)}{escape(note)}, {_percent(document.traffic_share)} of what is "
            f"retrieved, verified {document.last_verified_at[:16]}"
        )
    if len(report.documents) > _LISTED:
        out.print(f"  … {len(report.documents) - _LISTED} more")
    unseen = report.never_embedded
    if unseen.count:
        out.print(f"  never embedded: {escape(', '.join(unseen.documents[:_LISTED]))}")
    if unseen.quarantined:
        out.print(f"  quarantined: {escape(', '.join(unseen.quarantined[:_LISTED]))}")
    if report.plan:
        _print_plan(report.plan)
    for warning in report.warnings:
        out.print(f"[yellow]{escape(warning)}[/]")
    out.print(f"[dim]{report.index_version}, checked {report.checked_at}[/]")


def _print_plan(plan: FreshnessPlan) -> None:
    from rich.markup import escape

    from cli.output import out

    out.print(f"[bold]plan[/] ({plan.method}): {escape(plan.reason)}")
    for document in plan.documents[:_LISTED]:
        share = _percent(document.traffic_share)
        out.print(f"  {document.action}: {escape(document.id)}, {document.chunks} chunks, {share} of what is retrieved")
    if len(plan.documents) > _LISTED:
        out.print(f"  … {len(plan.documents) - _LISTED} more")
    for what, cost in (("plan", plan.cost), ("full rebuild", plan.full_rebuild)):
        usd = "unknown" if cost.cost_usd is None else f"{cost.cost_usd:.4f} USD"
        tokens = "?" if cost.tokens is None else f"{cost.tokens:,}"
        out.print(f"  {what}: {cost.documents:,} documents, {cost.chunks:,} chunks, about {tokens} tokens, cost {usd}")


def _measure_table(report: FreshnessReport) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("measure", "now", "95 % interval", "lower bound", "limit", "of documents", "level"):
        table.add_column(name, justify="left" if name in {"measure", "level"} else "right")
    for name, measure in report.measures.items():
        interval = f"{_percent(measure.ci_low)} – {_percent(measure.ci_high)}"
        table.add_row(
            name,
            _percent(measure.value),
            interval,
            _percent(measure.lower_bound),
            _percent(measure.limit),
            _percent(measure.unweighted),
            measure.level,
        )
    return table


def _percent(share: float | None) -> str:
    from touchstone.freshness_reasons import percent

    return percent(share)


def _days(days: float | None) -> str:
    return "–" if days is None else f"{days:.1f} days"
