"""Send what waits: finished runs and index builds to MLflow, decisions to Prefect, MLflow and people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from tasks.environment import apply_defaults
from tasks.loading import load_settings
from tasks.publishing import Sent, Waiting, send_waiting, still_waiting
from touchstone.privacy import redact_secrets
from touchstone.settings import Settings


@dataclass(frozen=True)
class Publishing:
    """What was sent, what still waits, and what of that has waited too long."""

    sent: Sent
    waiting: list[Waiting]
    late: list[Waiting]


@flow(name="publish", flow_run_name="publish")
def publish(late_after_min: Annotated[float, Field(gt=0)] = 60) -> State:
    """Send runs, index builds and the outbox; sending twice makes no second of anything.

    A target that is away is tried again by the next run. The flow run fails when something has waited too long.

    Args:
        late_after_min: Minutes that something may wait before the flow run fails and names it.
    """
    apply_defaults()
    done = conduct(load_settings(), late_after_min=late_after_min)
    log = get_run_logger()
    for warning in _trouble(done.sent):
        log.warning("%s", warning)
    return final_state(done)


def conduct(settings: Settings, *, late_after_min: float = 60, now: datetime | None = None) -> Publishing:
    """Send, and look at what is left; without Prefect."""
    sent = send_waiting(settings)
    waiting = still_waiting(settings, sent.standings)
    limit = (now or datetime.now(UTC)) - timedelta(minutes=late_after_min)
    return Publishing(sent, waiting, [one for one in waiting if one.since < limit])


def final_state(done: Publishing) -> State:
    """Failed when something is late; that something waits for the next run is no failure."""
    why = "; ".join(_trouble(done.sent))
    if done.late:
        behind = ", ".join(f"{one.count} {one.what} since {one.since:%Y-%m-%d %H:%M} UTC" for one in done.late)
        return Failed(name="Behind", message=f"{behind} not sent: {why}" if why else f"{behind} not sent")
    if done.waiting:
        left = ", ".join(f"{one.count} {one.what}" for one in done.waiting)
        return Completed(name="Waiting", message=f"{left} wait for the next run: {why}" if why else f"{left} wait")
    if not done.sent.count:
        return Completed(name="Nothing waits", message="everybody has everything")
    counts = f"{len(done.sent.runs)} runs, {len(done.sent.builds)} index builds, {sum(done.sent.told.values())} events"
    return Completed(name="Published", message=f"{counts} sent")


def _trouble(sent: Sent) -> list[str]:
    error = [redact_secrets(str(sent.error).splitlines()[0])] if sent.error and str(sent.error) else []
    return [*error, *sent.warnings]
