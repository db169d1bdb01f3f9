"""touchstone probe"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.probe_records import ProbeReport


def probe(
    bundle: Annotated[str, typer.Option(help="A name in bundles/, or a path.")] = "support",
    dataset: Annotated[str, typer.Option(help="The golden set whose probes are sent.")] = "support",
    relearn: Annotated[
        bool, typer.Option("--relearn", help="Forget what the vendor usually answered; this run begins anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Is it still the vendor of before? One-token answers and what it says of itself; the run counts as evidence.

    Exit 0 stable, flagged or learning, 1 detected, 2 bad input, 3 unmeasurable. Announcing is left to the flow.
    """
    from cli.output import exit_with, print_json
    from flows.probe import conduct
    from tasks.loading import load_settings

    report = conduct(load_settings(), bundle, dataset, announce=False, relearn=relearn)
    if as_json:
        print_json(report.summary())
    else:
        _print(report)
    exit_with({"detected": 1, "unmeasurable": 3}.get(report.level, 0))


def _print(report: ProbeReport) -> None:
    from rich.markup import escape

    from cli.output import out

    style = {"stable": "green", "flagged": "yellow", "detected": "red", "unmeasurable": "magenta"}
    out.print(f"[bold {style.get(report.level, 'dim')}]{report.level.upper()}[/]  {escape(report.reason)}")
    for id, usual, now in report.changed:
        out.print(f"  {id}: usually {usual!r}, now {now!r}", markup=False)
    facts = report.facts
    models, prints = ", ".join(facts.served_models) or "–", ", ".join(facts.fingerprints) or "–"
    out.print(f"returned model {models}; fingerprint {prints}; retires {facts.retires or '–'}", markup=False)
    cost = "cost unknown (no price)" if report.cost_usd is None else f"{report.cost_usd:.6f} USD"
    out.print(f"{report.n_answered} of {report.n_probes} answered, {report.calls} calls, {cost}, {report.wall_s:.1f} s")
