"""touchstone publish"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.publishing import Sent


def publish(
    everything: Annotated[
        bool, typer.Option("--all", help="Runs again, too; the model registry anew from the ledger.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Send what others do not have yet: runs, index builds, releases. Sending twice makes no second of anything."""
    from cli.output import err, print_json
    from tasks.loading import load_settings
    from tasks.publishing import send_waiting

    sent = send_waiting(load_settings(), everything=everything)
    for warning in sent.warnings:
        err.print(warning, markup=False)
    if sent.error is not None:
        raise sent.error
    if as_json:
        print_json(_summary(sent))
    else:
        _print(sent)


def _summary(sent: Sent) -> dict[str, object]:
    found = [{"run_id": run.run_id, "url": run.url, "complete": run.complete} for run in sent.runs]
    found += [{"run_id": build.mlflow_run_id, "url": build.mlflow_url, "complete": True} for build in sent.builds]
    outbox = [asdict(one) | {"delivered_now": sent.told[one.projection]} for one in sent.standings]
    return {"published": found, "outbox": outbox, "warnings": sent.warnings}


def _print(sent: Sent) -> None:
    from cli.output import out

    for run in sent.runs:
        out.print(f"MLflow run {run.run_id}  {run.url or ''}  {'' if run.complete else 'INCOMPLETE'}".rstrip())
    for build in sent.builds:
        out.print(f"MLflow run {build.mlflow_run_id}  {build.mlflow_url or ''}".rstrip())
    out.print(f"{len(sent.runs)} runs, {len(sent.builds)} index builds published")
    for one in sent.standings:
        note = f" ({one.off})" if one.off and one.waiting else ""
        out.print(f"{one.projection}: {sent.told[one.projection]} events handed over, {one.waiting} wait{note}")
