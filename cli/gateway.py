"""touchstone gateway serve"""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

app = typer.Typer(help="Tells apps what to serve.", no_args_is_help=True)


@app.callback()
def _gateway() -> None:
    """Tells apps what to serve."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8700,
    host: Annotated[
        str, typer.Option(help="Loopback unless you know better: there is no authentication.")
    ] = "127.0.0.1",
) -> None:
    """Serve GET /releases/{environment} until interrupted: champion, canary and fall-backs of the ledger."""
    from gateway.app import create_app
    from gateway.releases import Releases
    from gateway.server import serve as serve_app
    from tasks.loading import load_settings
    from tasks.published import PublishedReleases
    from touchstone.errors import BadInput

    settings = load_settings()
    with closing(PublishedReleases(settings)) as published:
        published.newest(settings.environment)  # a ledger that cannot be read is said now, not to every app
        releases = Releases(published.newest, published.read)
        gateway = create_app(releases, lambda: published.newest(settings.environment))
        try:
            serve_app(gateway, host, port, lambda url: typer.echo(f"gateway at {url} (Ctrl-C stops it)"))
        except OSError as error:
            raise BadInput(str(error)) from None
