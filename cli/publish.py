"""touchstone publish"""

from __future__ import annotations

from typing import Annotated

import typer


def publish(
    everything: Annotated[bool, typer.Option("--all", help="Send published runs again, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Send runs and index builds that MLflow does not have yet; sending one twice makes no second run."""
    from cli.output import out, print_json
    from tasks.loading import load_settings
    from tasks.tracking import publish_all
    from tasks.tracking_index import publish_builds

    settings = load_settings()
    published = publish_all(settings, force=everything)
    builds = publish_builds(settings, force=everything)
    if as_json:
        sent = [{"run_id": run.run_id, "url": run.url, "complete": run.complete} for run in published]
        sent += [{"run_id": build.mlflow_run_id, "url": build.mlflow_url, "complete": True} for build in builds]
        print_json({"published": sent})
        return
    for run in published:
        out.print(f"{run.run_id}  {run.url or ''}  {'' if run.complete else 'INCOMPLETE'}")
    for build in builds:
        out.print(f"{build.mlflow_run_id}  {build.mlflow_url or ''}")
    out.print(f"{len(published)} runs, {len(builds)} index builds published")
