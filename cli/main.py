"""The `touchstone` command. Heavy libraries are imported by the commands that need them: --help stays fast."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import NoReturn

import typer

from cli import (
    alarms,
    attribute,
    audit,
    canary,
    connect,
    demo,
    deploy,
    drift,
    emulator,
    evals,
    freshness,
    gate,
    gateway,
    health,
    hooks,
    housekeeping,
    index,
    labels,
    probe,
    publish,
    reindex,
    release,
    stack,
)
from tasks.environment import apply_defaults
from touchstone.errors import TouchstoneError, Unmeasurable

app = typer.Typer(
    name="touchstone",
    help="Operations for LLM features on models you do not own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evals.app, name="eval")
app.add_typer(drift.app, name="drift")
app.add_typer(canary.app, name="canary")
app.add_typer(emulator.app, name="emulator")
app.add_typer(freshness.app, name="freshness")
app.add_typer(index.app, name="index")
app.add_typer(audit.app, name="audit")
app.add_typer(labels.app, name="labels")
app.add_typer(alarms.app, name="alarms")
app.add_typer(gateway.app, name="gateway")
app.add_typer(hooks.app, name="hooks")
app.command("gate")(gate.gate)
app.add_typer(release.app, name="release")
app.command("approve")(release.approve)
app.command("deny")(release.deny)
app.command("promote")(release.promote)
app.command("rollback")(release.rollback)
app.command("reindex")(reindex.reindex)
app.command("attribute")(attribute.attribute)
app.command("probe")(probe.probe)
app.command("housekeeping")(housekeeping.housekeeping)
app.command("publish")(publish.publish)
app.command("deploy")(deploy.deploy)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("status")(stack.status)
app.add_typer(connect.app, name="connect")
app.command("doctor")(health.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point: errors raised on purpose become one line and their exit code."""
    apply_defaults()
    _log_to_stderr()
    try:
        app()
    except TouchstoneError as error:
        _fail(str(error), error.exit_code)
    except ExceptionGroup as group:
        known = group.subgroup(TouchstoneError)
        if known is None:
            traceback.print_exc()
        error = known.exceptions[0] if known else group
        _fail(str(error), getattr(error, "exit_code", Unmeasurable.exit_code))
    except Exception as error:  # exit code 1 says that the product got worse; a crash must not
        if "Failed to reach API" in str(error):
            _fail(f"PREFECT_API_URL: {error}; start that server, or run with --no-prefect", Unmeasurable.exit_code)
        traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}: {error}", Unmeasurable.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": exit_code}))
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _log_to_stderr() -> None:
    """Plain lines; Prefect's configuration of the root logger does not touch them."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("touchstone")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    main()
