"""touchstone publish"""

from __future__ import annotations

from typing import Annotated

import typer


def publish(
    everything: Annotated[bool, typer.Option("--all", help="Send published runs again, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Send runs that MLflow does not have yet; sending one twice makes no second run."""
    from cli.output import out, print_json
    from tasks.loading import load_settings
    from tasks.tracking import publish_all

    published = publish_all(load_settings(), force=everything)
    if as_json:
        print_json(
            {"published": [{"run_id": run.run_id, "url": run.url, "complete": run.complete} for run in published]}
        )
        return
    for run in published:
        out.print(f"{run.run_id}  {run.url or ''}  {'' if run.complete else 'INCOMPLETE'}")
    out.print(f"{len(published)} runs published")
