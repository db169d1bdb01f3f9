"""touchstone canary start | status | look | watch | stop"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.canaries import Looked
    from tasks.ledger import Ledger
    from touchstone.settings import Settings

app = typer.Typer(help="The candidate on a share of live traffic, judged as it comes.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
By = Annotated[str | None, typer.Option(help="Who does it; default: the user of this machine.")]

_STYLES = {
    "widen": "green",
    "graduate": "bold green",
    "hold": "yellow",
    "rollback": "bold red",
    "continue": "cyan",
    "unmeasurable": "magenta",
}


@app.command()
def start(by: By = None, as_json: AsJson = False) -> None:
    """Give the candidate its first share of traffic; the vendor is asked first whether it serves the model."""
    from cli.output import out, print_json
    from tasks.canaries import start_canary

    with _opened() as (settings, ledger):
        state = start_canary(settings, ledger, _who(by))
        _deliver(settings, ledger)
    canary, candidate = state.canary, state.candidate
    if canary is None or candidate is None:
        out.print("somebody ended the canary at once; `touchstone release show`")
    elif as_json:
        print_json({"bundle": candidate.deployment.name, **canary.model_dump(mode="json")})
    else:
        out.print(f"[green]STARTED[/]  {candidate.deployment.name} at {canary.share:.0%} of traffic")
        out.print(f"[dim]{canary.canary_id}; `touchstone canary look` judges it, `canary watch` goes on doing so[/]")


@app.command()
def status(as_json: AsJson = False) -> None:
    """The canary and the looks at it so far. Exit 0, also when there is none."""
    from rich.markup import escape

    from cli.output import out, print_json
    from tasks.canaries import looks
    from tasks.releases import read_release

    with _opened() as (settings, ledger):
        candidate = read_release(ledger).candidate
        canary = candidate.canary if candidate else None
        past = looks(ledger, canary.canary_id) if canary else []
    if as_json:
        bundle = candidate.deployment.name if candidate else None
        found = canary.model_dump(mode="json") if canary else None
        print_json({"environment": settings.environment, "bundle": bundle, "canary": found, "looks": past})
    elif canary is None or candidate is None:
        out.print(f"no canary is running in {settings.environment}; `touchstone canary start` starts one")
    else:
        out.print(f"[bold]{canary.status.upper()}[/]  {candidate.deployment.name} at {canary.share:.0%} of traffic")
        out.print(_looks_table(past))
        if past:
            out.print(escape(past[-1]["reason"]))


@app.command()
def look(as_json: AsJson = False) -> None:
    """Judge the traffic since the last look, once, and take the step that it asks for.

    Exit 0 watching, widened or graduated, 1 rolled back or held, 3 unmeasurable, no canary, or somebody else looked.
    """
    from cli.output import exit_with, print_json
    from tasks.canaries import look as look_once
    from touchstone.errors import Unmeasurable

    with _opened() as (settings, ledger):
        looked = look_once(settings, ledger)
        if looked is None:
            raise Unmeasurable(f"no canary is running in {settings.environment}; `touchstone canary start` starts one")
        warnings = [*looked.warnings, *_deliver(settings, ledger)]
    if as_json:
        print_json(looked.summary() | {"warnings": warnings})
    else:
        _print(looked)
    exit_with(exit_code(looked))


@app.command()
def watch(every: Annotated[float, typer.Option(min=1, help="Seconds between looks.")] = 300) -> None:
    """Look every so often until the canary has graduated, is held or rolled back: for those without Prefect.

    Exit codes as of `canary look`; a look that another process is doing already is left to it.
    """
    import time

    from cli.output import exit_with, log, out
    from tasks.canaries import look as look_once
    from touchstone.canary_look import CanaryVerdict
    from touchstone.errors import LedgerConflict
    from touchstone.release import CanaryStatus

    over = {CanaryVerdict.GRADUATE, CanaryVerdict.HOLD, CanaryVerdict.ROLLBACK}
    while True:
        with _opened() as (settings, ledger):
            try:
                looked = look_once(settings, ledger)
            except LedgerConflict as conflict:
                log.info("%s", conflict)
            else:
                if looked is None:
                    out.print(f"no canary is running in {settings.environment}")
                    exit_with(0)
                _deliver(settings, ledger)
                _print(looked)
                if looked.verdict in over or looked.canary.status is CanaryStatus.GRADUATED:
                    exit_with(exit_code(looked))
        time.sleep(every)


@app.command()
def stop(reason: Annotated[str, typer.Option(help="Why; recorded.")], by: By = None, as_json: AsJson = False) -> None:
    """Take the candidate off all traffic, without saying that it did harm."""
    from cli.output import out, print_json
    from tasks.promotions import stop as stop_canary

    with _opened() as (settings, ledger):
        done = stop_canary(settings, ledger, _who(by), reason)
        _deliver(settings, ledger)
    if as_json:
        print_json({"event": done.event.sequence, "kind": done.event.kind.value, **done.event.payload})
    else:
        out.print(f"[yellow]STOPPED[/]  all traffic is the champion's again (event {done.event.sequence})")


def exit_code(looked: Looked) -> int:
    """A canary that is stopped or held asks for somebody; one that nobody can judge says nothing either way."""
    return {"rollback": 1, "hold": 1, "unmeasurable": 3}.get(looked.verdict.value, 0)


@contextmanager
def _opened() -> Iterator[tuple[Settings, Ledger]]:
    from contextlib import closing

    from tasks.ledger import Ledger
    from tasks.loading import load_settings

    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        yield settings, ledger


def _deliver(settings: Settings, ledger: Ledger) -> list[str]:
    from cli.output import log
    from tasks.outbox import deliver

    warnings = deliver(settings, ledger)
    for warning in warnings:
        log.warning("%s", warning)
    return warnings


def _who(by: str | None) -> str:
    import getpass

    return by or getpass.getuser()


def _print(looked: Looked) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cli.output import out
    from tasks.announce_canary import way

    found, verdict = looked.summary(), looked.verdict.value
    share = f"{looked.bundle} at {looked.canary.share:.0%} of traffic"
    out.print(f"[{_STYLES[verdict]}]{verdict.upper()}[/]  {share}: {escape(looked.reason)}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("guardrail", "n", "canary - champion", "not worse, of the way", "worse, of the way"):
        table.add_column(name, justify="left" if name == "guardrail" else "right")
    for name, numbers in found["e_values"].items():
        difference = "–" if numbers["difference"] is None else f"{numbers['difference']:+.3f}"
        ways = [f"{max(way(numbers[side], found['limit']), 0):.0%}" for side in ("promote", "rollback")]
        table.add_row(name, str(numbers["n"]), difference, *ways)
    out.print(table)
    for what, counts in (("left out", found["left_out"]), ("no answer", found["unanswered"])):
        if counts:
            out.print(f"[dim]{what}: {escape(', '.join(f'{count} {why}' for why, count in counts.items()))}[/]")
    for warning in looked.warnings:
        out.print(f"[yellow]{escape(warning)}[/]")


def _looks_table(past: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    from tasks.announce_canary import way

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("look", "at", "share", "judged", "slowest, of the way", "harm, of the way", "verdict"):
        table.add_column(name, justify="left" if name in {"at", "verdict"} else "right")
    for found in past:
        table.add_row(
            str(found["look"]),
            found["at"][:16],
            f"{found['share']:.0%}",
            str(found["n_canary"]),
            f"{max(found['progress'], 0):.0%}",
            f"{max(way(found['harm'] * found['limit'], found['limit']), 0):.0%}",
            found["verdict"],
        )
    return table
