"""touchstone emulator serve"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The offline vendor.", no_args_is_help=True)


@app.callback()
def _emulator() -> None:
    """The offline vendor."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 4010,
    host: Annotated[
        str, typer.Option(help="Loopback unless you know better: there is no authentication.")
    ] = "127.0.0.1",
    recording: Annotated[list[Path] | None, typer.Option(help="JSONL or .gz of recorded answers to replay.")] = None,
    alias: Annotated[list[str] | None, typer.Option(metavar="NAME=SNAPSHOT", help="Serve NAME by SNAPSHOT.")] = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer.")] = 0,
    seed: Annotated[int, typer.Option(help="Of sampling and faults.")] = 0,
    reveal_snapshot: Annotated[bool, typer.Option(help="Answer with the snapshot's name, not the alias.")] = False,
) -> None:
    """Serve OpenAI-, Anthropic- and Gemini-shaped answers until interrupted."""
    from emulator.server import EmulatorOptions
    from emulator.server import serve as serve_emulator
    from touchstone.errors import BadInput

    options = EmulatorOptions(
        host=host,
        port=port,
        recordings=tuple(recording or ()),
        aliases=dict(_alias(pair) for pair in alias or ()),
        latency_ms=latency_ms,
        seed=seed,
        reveal_snapshot=reveal_snapshot,
    )
    try:
        serve_emulator(options, on_ready=lambda url: typer.echo(f"emulated vendor at {url} (Ctrl-C stops it)"))
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from None


def _alias(pair: str) -> tuple[str, str]:
    from touchstone.errors import BadInput

    name, _, snapshot = pair.partition("=")
    if not name or not snapshot:
        raise BadInput(f"--alias {pair}: write NAME=SNAPSHOT, such as gpt-4=gpt-4-0314")
    return name, snapshot
