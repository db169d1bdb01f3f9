"""Quality fell: replay the cases that fell with one factor at a time as it was, and name what did it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from tasks.announce_attribution import (
    create_attribution_artifact,
    emit_attribution_event,
    headline,
    record_attribution,
)
from tasks.environment import apply_defaults
from tasks.evaluation import Progress
from tasks.fallen_cases import latest_run, run_before
from tasks.loading import load_settings
from tasks.replay import replay
from tasks.replay_plan import MAX_CALLS, AttributionRequest, ReplayPlan, plan_replays
from touchstone.attribution_records import AttributionReport
from touchstone.errors import BadInput
from touchstone.settings import Settings


def _flow_run_name() -> str:
    given = flow_run.parameters
    after = given.get("after") or (given.get("event") or {}).get("run_key") or "the latest run"
    return f"attribution of {after}"


@flow(name="attribution", flow_run_name=_flow_run_name)
async def attribution(
    before: str | None = None,
    after: str | None = None,
    metric: str | None = None,
    max_calls: Annotated[int, Field(ge=1, le=100_000)] = MAX_CALLS,
    max_cost_usd: Annotated[float | None, Field(gt=0)] = None,
    event: dict[str, Any] | None = None,
) -> State:
    """Name what made quality fall between two runs: model, prompt, retrieval config, index version or judge.

    The flow run completes under the culprit's name, as Interaction, or as Undecided with what would decide.

    Args:
        before: Run key of the good run; empty: the frozen baseline's last, or the last good run of the bundle.
        after: Run key of the bad run; empty: the event's, or the latest.
        metric: What fell; empty: the headline metric.
        max_calls: Vendor calls that the replays may make.
        max_cost_usd: Spend cap; empty means the policy's.
        event: The payload of touchstone.drift.detected, whole, when that started the flow.
    """
    apply_defaults()
    settings = load_settings()
    log = get_run_logger()
    runs = await asyncio.to_thread(choose_runs, settings, before, after, event)
    plan = await asyncio.to_thread(plan_replays, settings, AttributionRequest(*runs, metric, max_calls, max_cost_usd))
    log.info("%s", plan.estimate)

    report = await conduct(settings, plan)

    log.info("%s", headline(report))
    emit_attribution_event(report)
    await create_attribution_artifact(report)
    return Completed(name=report.headline, message=headline(report), data=report.summary())


async def conduct(settings: Settings, plan: ReplayPlan, on_case: Progress = lambda result: None) -> AttributionReport:
    """Replay, decide, record; without Prefect."""
    report = await replay(plan, on_case)
    await asyncio.to_thread(record_attribution, settings, report)
    return report


def choose_runs(
    settings: Settings, before: str | None, after: str | None, event: dict[str, Any] | None = None
) -> tuple[str, str]:
    """(run before, run after), with what an event or the ledger says where the user says nothing."""
    told, change_point = None, None
    if event is not None:
        told, change_point = event.get("run_key"), event.get("change_point")
        if not isinstance(told, str) or not isinstance(change_point, str | None):
            raise BadInput("event: no run_key in it; give the whole payload of touchstone.drift.detected")
    after = after or told or latest_run(settings)
    return before or run_before(settings, after, change_point), after
