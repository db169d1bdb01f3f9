"""Compare what production asked lately with what it asked before, and say when it moved."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.verdicts import found_in
from tasks.announce_queries import MOST_POINTS, create_query_artifact, emit_query_event, query_chart
from tasks.environment import apply_defaults
from tasks.loading import load_retrieval_config, load_settings
from tasks.outbox import tell_people
from tasks.query_windows import decide_and_record, measure_windows, past_checks
from touchstone.query_drift import QueryDriftDecision
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

Log = logging.Logger | logging.LoggerAdapter


def _flow_run_name() -> str:
    """`query-drift support`, also where a path was given."""
    return f"query-drift {Path(flow_run.parameters['config']).stem}"


@flow(name="query-drift", flow_run_name=_flow_run_name)
def query_drift(config: str = "support") -> State:
    """Compare the newest production queries with those before, and say: stable, flagged, drifted or unmeasurable.

    The flow run completes whatever is found, under the level's name: that users ask something else is news about
    them, no failure of the product. Automations listen to touchstone.queries.flagged, .drifted and .recovered.

    Args:
        config: A name in retrieval_configs/, or a path; its query_drift section has windows and limits.
    """
    apply_defaults()
    settings = load_settings()
    loaded, _ = load_retrieval_config(settings.root, config)
    decision = conduct(settings, loaded)

    log = get_run_logger()
    log.info("%s: %s", decision.verdict, decision.reason)
    emit_query_event(decision, loaded)
    for warning in tell_people(settings):
        log.warning("%s", warning)
    create_query_artifact(decision, loaded, _chart(settings, loaded, log))
    return Completed(name=decision.verdict.capitalize(), message=decision.reason, data=decision.model_dump(mode="json"))


def conduct(settings: Settings, config: RetrievalConfig, now: datetime | None = None) -> QueryDriftDecision:
    """Measure, decide, record; without Prefect. `now` ends the newest window."""
    return decide_and_record(settings, config, measure_windows(settings, config, now))


def run_as_flow(config: str) -> QueryDriftDecision:
    """Run the check as a Prefect flow run in this process."""
    state: State = query_drift(config=config, return_state=True)
    return QueryDriftDecision.model_validate(found_in(state.result(raise_on_failure=False)))


def _chart(settings: Settings, config: RetrievalConfig, log: Log) -> bytes | None:
    """A picture is no reason to lose a decision."""
    try:
        return query_chart(past_checks(settings, config, MOST_POINTS), config.query_drift)
    except Exception as error:
        log.warning("no chart: %s: %s", type(error).__name__, error)
        return None
