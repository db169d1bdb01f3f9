"""touchstone alarms"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.alarms import SuiteLook
    from touchstone.alarms import Alarm

app = typer.Typer(help="What is wrong and stands until it is cleared.")
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.callback(invoke_without_command=True)
def alarms(context: typer.Context, as_json: AsJson = False) -> None:
    """List the alarms that stand."""
    if context.invoked_subcommand is not None:
        return
    from cli.output import out, print_json
    from tasks.alarms import standing_alarms
    from tasks.loading import load_settings

    found = standing_alarms(load_settings())
    if as_json:
        print_json({"alarms": [_shown(alarm) for alarm in found]})
        return
    for alarm in found:
        out.print(f"{alarm.raised.severity}  {alarm.raised.name}  since {_minute(alarm.raised.since)}", markup=False)
        out.print(f"    {alarm.raised.reason}", markup=False)
        out.print(f"    last told {_minute(alarm.told_at)}, reminders {alarm.raised.reminder}", markup=False)
    if not found:
        out.print("no alarm stands")


@app.command()
def check(as_json: AsJson = False) -> None:
    """Look whether every scheduled golden set has finished lately: raise, clear, tell people. Exit 1: one is silent."""
    from cli.output import err, exit_with, out, print_json
    from tasks.alarms import check_suites
    from tasks.loading import load_settings
    from tasks.outbox import tell_people

    settings = load_settings()
    looks = check_suites(settings)
    for warning in tell_people(settings):
        err.print(warning, markup=False)
    if as_json:
        print_json({"silent_after_h": settings.silent_after_h, "suites": [_seen(look) for look in looks]})
    else:
        for look in looks:
            state = "SILENT" if look.silent else "ok"
            last = f"last finished {_minute(look.suite.finished_at)}" if look.suite.finished_at else "never finished"
            out.print(
                f"{state}  {look.suite.bundle} on {look.suite.dataset}  {last}  (alarm: {look.did})", markup=False
            )
        if not looks:
            out.print("prefect.yaml has no golden-eval deployment with an active schedule: nothing is watched")
    exit_with(1 if any(look.silent for look in looks) else 0)


@app.command()
def clear(
    name: Annotated[str, typer.Argument(help="As `touchstone alarms` lists it.")],
    reason: Annotated[str, typer.Option(help="Why it is over, for those who read it later.")],
    by: Annotated[str, typer.Option(help="Who says so; empty: the user of this machine.")] = "",
) -> None:
    """End an alarm by hand. A silent suite counts from now on again."""
    import getpass

    from cli.output import err, out
    from tasks.alarms import clear_alarm
    from tasks.loading import load_settings
    from tasks.outbox import tell_people

    settings = load_settings()
    clear_alarm(settings, name, reason, by or getpass.getuser())
    for warning in tell_people(settings):
        err.print(warning, markup=False)
    out.print(f"{name}: cleared", markup=False)


def _shown(alarm: Alarm) -> dict[str, Any]:
    return alarm.raised.model_dump(mode="json") | {"told_at": alarm.told_at}


def _seen(look: SuiteLook) -> dict[str, Any]:
    suite = look.suite
    return {
        "bundle": suite.bundle,
        "dataset": suite.dataset,
        "deployment": suite.deployment,
        "alarm": suite.name,
        "silent": look.silent,
        "finished_at": suite.finished_at,
        "quiet_since": suite.quiet_since,
        "did": look.did,
    }


def _minute(at: str) -> str:
    return f"{at[:16].replace('T', ' ')} UTC"
