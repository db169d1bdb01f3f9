"""touchstone deploy"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.deploying import Done

_STYLES = {
    "created": "green",
    "updated": "yellow",
    "removed": "red",
    "armed": "cyan",
    "left over": "magenta",
    "skipped": "magenta",
}


def deploy(
    prune: Annotated[bool, typer.Option("--prune", help="Delete our deployments that left prefect.yaml.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring the Prefect server of PREFECT_API_URL to what prefect.yaml says, checked first; only what differs."""
    from dataclasses import asdict

    from cli.output import print_json
    from tasks.deploying import deploy as bring
    from tasks.loading import load_settings

    done = bring(load_settings(), prune=prune, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "counts": dict(Counter(one.did for one in done)), "done": [*map(asdict, done)]})
        return
    _print(done, dry_run)


def _print(done: tuple[Done, ...], dry_run: bool) -> None:
    from rich.markup import escape

    from cli.output import out

    for one in done:
        style = _STYLES.get(one.did, "dim")
        detail = f"  [dim]{escape(one.detail)}[/dim]" if one.detail else ""
        out.print(f"[{style}]{one.did:<9}[/]  {one.what} {escape(one.name)}{detail}")
    counts = Counter(one.did for one in done)
    summary = ", ".join(f"{count} {did}" for did, count in counts.items())
    out.print(f"{'would be: ' if dry_run else ''}{summary}")
