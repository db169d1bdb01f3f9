"""touchstone up, down, status: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.stack_parts import Plan, Ports
    from touchstone.settings import Settings

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


def up(
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Of the MLflow server.")] = 5000,
    gateway_port: Annotated[int, typer.Option(min=1, max=65535, help="Of the gateway.")] = 8700,
    emulator_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the emulated vendor; by default the one that bundles name.")
    ] = None,
    emulator: Annotated[
        bool | None,
        typer.Option(
            help="The emulated vendor; by default where scheduled bundles call it and no vendor's key is set."
        ),
    ] = None,
    logs: Annotated[bool, typer.Option(help="Show what the parts say; their files have it in any case.")] = True,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="In the background; `touchstone down` stops it.")
    ] = False,
) -> None:
    """Start Prefect, MLflow, gateway, worker and emulator, deploy the flows, and run until Ctrl-C.

    PREFECT_API_URL and MLFLOW_TRACKING_URI, when they are set, name servers that are used instead of started.
    """
    from tasks.health import check_ports
    from tasks.loading import load_settings
    from tasks.stack_file import only_one
    from tasks.stack_parts import Ports, emulated_vendor, plan_stack
    from tasks.stack_run import check_own_servers

    settings = load_settings()
    named = emulated_vendor(settings)
    ports = Ports(prefect_port, mlflow_port, gateway_port, emulator_port or named or Ports.emulator)
    with only_one(settings.state):
        _end_leftovers(settings.state)
        plan = plan_stack(settings, ports, emulator=emulator)
        asyncio.run(check_own_servers(plan.own))
        check_ports(plan.ports)
        if not detach:
            _run(plan, settings, logs=logs)
    if detach:
        _in_background(plan, settings, ports, emulator)


def down() -> None:
    """Stop what `touchstone up` started: the worker first, so that runs end or are marked."""
    from cli.output import out
    from tasks.loading import load_settings
    from tasks.stack_run import stop_stack

    stopped = asyncio.run(stop_stack(load_settings().state))
    out.print("stopped" if stopped else "nothing runs here")


def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    exports: Annotated[
        bool, typer.Option(help='Only what a shell needs: eval "$(touchstone status --exports)"')
    ] = False,
) -> None:
    """Each part of the stack, each flow's last and next run, and what waits. Exit code 1 when a part is down."""
    from cli.output import exit_with, print_json
    from cli.stack_tables import as_data, print_status
    from tasks.loading import load_settings
    from tasks.stack_file import read_stack, shell_lines
    from tasks.stack_status import flow_states, part_states

    settings = load_settings()
    stack = read_stack(settings.state)
    if exports:
        for line in shell_lines(stack, settings.state) if stack else ():
            typer.echo(line)
        exit_with(0 if stack else 1)
    parts = asyncio.run(part_states(settings.state))
    flows = asyncio.run(flow_states(stack.exports["PREFECT_API_URL"])) if stack and stack.exports else []
    waiting = _waiting(settings)
    if as_json:
        print_json(as_data(parts, flows, waiting))
    else:
        print_status(parts, flows, waiting)
    exit_with(0 if parts and all(part.state == "up" for part in parts) else 1)


def _run(plan: Plan, settings: Settings, *, logs: bool) -> None:
    from cli.output import out
    from tasks.stack_run import run_stack

    began = time.monotonic()
    out.print(f"secrets: {settings.state / 'secrets.env'}, logs: {settings.state / 'logs'}")

    def ready() -> None:
        out.print(f"[bold green]up[/] after {time.monotonic() - began:.0f} s")
        _say_where(plan)
        out.print("Ctrl-C stops everything")

    told = _teller([part.name for part in plan.parts]) if logs else lambda name, line: None
    asyncio.run(run_stack(plan.parts, settings.state, told, ready, exports=plan.exports, own=plan.own))
    out.print("stopped")


def _end_leftovers(state: Path) -> None:
    """Of an `up` that was killed together with its guard. We hold the lock: it is gone."""
    from tasks.process_marks import end_parts
    from tasks.stack_file import forget_stack, read_stack

    if (stack := read_stack(state)) is not None:
        end_parts(stack.stack, stack.order, 10)
        forget_stack(state)


def _in_background(plan: Plan, settings: Settings, ports: Ports, emulator: bool | None) -> None:
    from cli.output import out
    from tasks.stack_file import read_stack

    chosen = {f"--{name}-port": str(number) for name, number in vars(ports).items()}
    options = ["--no-logs", *(word for pair in chosen.items() for word in pair)]
    if emulator is not None:
        options.append("--emulator" if emulator else "--no-emulator")
    log = settings.state / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w") as file:
        command = [sys.executable, "-m", "cli.main", "up", *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    out.print(f"starting; logs: {log.parent}")
    try:
        while (stack := read_stack(settings.state)) is None or stack.pid != process.pid or not stack.ready:
            if process.poll() is not None:
                raise _why(log)
            time.sleep(0.3)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    _say_where(plan)
    out.print("`touchstone status` shows it, `touchstone down` stops it")


def _why(log: Path) -> Exception:
    from tasks.processes import PartFailed

    text = log.read_text(errors="replace")
    return PartFailed(text.rpartition("\nerror: ")[2].strip() or f"it ended: {log}")


def _say_where(plan: Plan) -> None:
    from cli.output import out

    titles = {"prefect": "Prefect", "mlflow": "MLflow", "gateway": "gateway", "emulator": "emulated vendor"}
    for name, title in titles.items():
        if address := plan.addresses.get(name, "").removesuffix("/api"):
            out.print(f"  {title:<16}{address}{'  (yours)' if name in plan.own else ''}")
    out.print("try next, in another terminal:")
    out.print('  eval "$(touchstone status --exports)"      # your commands use these servers, too')
    out.print("  prefect deployment run reindex/support     # the first index; golden-eval/daily and others follow")
    out.print("  touchstone status")


def _teller(names: list[str]) -> Any:
    """Prints a line with its part's name before it, in the part's colour on a terminal."""
    from rich.text import Text

    from cli.output import out

    width = max(map(len, names))
    styles = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}

    def told(name: str, line: str) -> None:
        text = Text.assemble((f"{name:<{width}} | ", styles[name]), Text.from_ansi(line))
        try:
            out.print(text, soft_wrap=True)
        except OSError:  # nobody reads us any more: the files have it
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    return told


def _waiting(settings: Settings) -> dict[str, int]:
    """Events that wait, by projection; empty where the ledger cannot be read or is not there yet."""
    from contextlib import closing

    from tasks.ledger import Ledger
    from tasks.outbox import standings
    from touchstone.errors import TouchstoneError

    if not settings.ledger_url and not (settings.state / "ledger.db").exists():
        return {}
    try:
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            return {one.projection: one.waiting for one in standings(settings, ledger) if not one.off}
    except TouchstoneError:
        return {}
