"""The `touchstone` command. Heavy libraries are imported by the commands that need them: --help stays fast."""

from __future__ import annotations

import json
import logging
import sys

import typer

from cli import demo, drift, emulator, evals, health, publish
from tasks.environment import apply_defaults
from touchstone.errors import TouchstoneError

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
app.add_typer(emulator.app, name="emulator")
app.command("publish")(publish.publish)
app.command("doctor")(health.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point: errors raised on purpose become one line and their exit code."""
    apply_defaults()
    _log_to_stderr()
    try:
        app()
    except TouchstoneError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; `--resume` finishes a run without paying for it twice", file=sys.stderr)
        sys.exit(130)


def _log_to_stderr() -> None:
    """Plain lines; Prefect's configuration of the root logger does not touch them."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log = logging.getLogger("touchstone")
    log.handlers[:] = [handler]
    log.propagate = False


if __name__ == "__main__":
    main()
