"""touchstone publish"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.outbox import Standing
    from touchstone.settings import Settings


def publish(
    everything: Annotated[
        bool, typer.Option("--all", help="Runs again, too; the model registry anew from the ledger.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Send what others do not have yet: runs, index builds, releases. Sending twice makes no second of anything."""
    from cli.output import out, print_json
    from tasks.loading import load_settings
    from tasks.tracking import publish_all
    from tasks.tracking_index import publish_builds

    settings = load_settings()
    try:  # first the evals, which releases refer to
        published = publish_all(settings, force=everything)
        builds = publish_builds(settings, force=everything)
    finally:  # with MLflow away people are told all the same
        told, standing, warnings = _deliver(settings, rebuild=everything)
    if as_json:
        sent = [{"run_id": run.run_id, "url": run.url, "complete": run.complete} for run in published]
        sent += [{"run_id": build.mlflow_run_id, "url": build.mlflow_url, "complete": True} for build in builds]
        print_json(
            {
                "published": sent,
                "outbox": [asdict(one) | {"delivered_now": told[one.projection]} for one in standing],
                "warnings": warnings,
            }
        )
        return
    for run in published:
        out.print(f"MLflow run {run.run_id}  {run.url or ''}  {'' if run.complete else 'INCOMPLETE'}".rstrip())
    for build in builds:
        out.print(f"MLflow run {build.mlflow_run_id}  {build.mlflow_url or ''}".rstrip())
    out.print(f"{len(published)} runs, {len(builds)} index builds published")
    for one in standing:
        note = f" ({one.off})" if one.off and one.waiting else ""
        out.print(f"{one.projection}: {told[one.projection]} events handed over, {one.waiting} wait{note}")


def _deliver(settings: Settings, *, rebuild: bool) -> tuple[dict[str, int], list[Standing], list[str]]:
    """(events handed over now, where each projection stands, warnings, which are shown too)."""
    from cli.output import err
    from tasks.ledger import Ledger
    from tasks.outbox import deliver_all, standings

    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        before = {one.projection: one.waiting for one in standings(settings, ledger, rebuild=rebuild)}
        warnings = deliver_all(settings, ledger, rebuild=rebuild)
        standing = standings(settings, ledger)
    for warning in warnings:
        err.print(warning, markup=False)
    told = {one.projection: max(0, before[one.projection] - one.waiting) for one in standing}
    return told, standing, warnings
