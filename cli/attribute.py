"""touchstone attribute"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.attribution_records import AttributionReport


def attribute(
    before: Annotated[
        str | None, typer.Option(metavar="RUN_KEY", help="The good run; empty: the baseline's, or the last good one.")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="RUN_KEY", help="The bad run; empty: the latest.")] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Between the evidence of the champion before and of the present one.")
    ] = False,
    metric: Annotated[str | None, typer.Option(help="What fell; empty: the headline metric.")] = None,
    max_calls: Annotated[int, typer.Option(min=1, max=100_000, help="Vendor calls that replays may make.")] = 200,
    max_cost: Annotated[float | None, typer.Option(help="Spend cap in USD; wins over the policy's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Quality fell between two runs: replay what fell, one factor at a time as it was, and name what did it.

    Exit 0 named, 2 bad input, 3 undecided, 4 undecided because the budget was too small.
    """
    from cli.output import case_progress, err, exit_with, print_json
    from flows.attribution import choose_runs, conduct
    from tasks.fallen_cases import release_runs
    from tasks.loading import load_settings
    from tasks.replay_plan import AttributionRequest, plan_replays
    from touchstone.errors import BadInput

    if max_cost is not None and not 0 < max_cost < math.inf:
        raise BadInput(f"--max-cost {max_cost:g}: give a positive amount of USD")
    if release and (before or after):
        raise BadInput("--release chooses both runs; leave out --before and --after")
    settings = load_settings()
    runs = release_runs(settings) if release else choose_runs(settings, before, after)
    plan = plan_replays(settings, AttributionRequest(*runs, metric, max_calls, max_cost))
    err.print(str(plan.estimate))
    with case_progress(plan.estimate.first_calls, "replays") as on_case:
        report = asyncio.run(conduct(settings, plan, on_case))
    if as_json:
        print_json(report.model_dump(mode="json") | {"culprit": report.headline.lower()})
    else:
        _print(report)
    exit_with(exit_code(report))


def exit_code(report: AttributionReport) -> int:
    if report.decision.verdict != "undecided":
        return 0
    return 4 if report.stopped_by else 3


def _print(report: AttributionReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cli.output import out
    from tasks.announce_attribution import left_out, rows, spent

    style = {"named": "green", "interaction": "yellow", "undecided": "magenta"}[report.decision.verdict]
    out.print(f"[bold {style}]{report.headline.upper()}[/]  {escape(report.decision.reason)}")
    if report.decision.would_decide:
        out.print(f"what would decide: {escape(report.decision.would_decide)}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("factor", "before", "after", "replayed", "restored", "evidence", "verdict"):
        table.add_column(name, justify="right" if name in {"replayed", "restored", "evidence"} else "left")
    for row in rows(report):
        table.add_row(*(escape(cell.replace("**", "")) for cell in row))
    out.print(table)
    for line in (*left_out(report), spent(report)):
        out.print(f"[dim]{escape(line)}[/]")
