"""Measure what is retrieved against its source, and say when it falls below its SLA."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.verdicts import ended
from tasks.announce_freshness import create_artifact, emit_freshness_event
from tasks.environment import apply_defaults
from tasks.freshness_check import Gathered, gather, record, repair_plan
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.outbox import tell_people
from touchstone.errors import LedgerConflict
from touchstone.freshness import decide_freshness
from touchstone.freshness_records import FreshnessReport
from touchstone.settings import Settings

_ATTEMPTS = 5


def _flow_run_name() -> str:
    """`freshness support`, also where a path was given."""
    return f"freshness {Path(flow_run.parameters['config']).stem}"


@flow(name="freshness", flow_run_name=_flow_run_name)
def freshness(config: str = "support") -> State:
    """Is what queries retrieve still what the source says? Announce a breach with the documents responsible.

    The flow run fails when the SLA is breached, and when the source could not be read to tell; the state's name says
    which.

    Args:
        config: A name in retrieval_configs/, or a path.
    """
    apply_defaults()
    settings = load_settings()
    report = conduct(settings, config, announce=True)
    log = get_run_logger()
    log.info("%s: %s", report.level, report.reason)
    for warning in (*report.warnings, *tell_people(settings)):
        log.warning("%s", warning)
    create_artifact(report)
    emit_freshness_event(report)
    return final_state(report)


def conduct(settings: Settings, config: str, *, announce: bool, with_plan: bool = False) -> FreshnessReport:
    """Gather, decide, record; without Prefect. Without `announce` a change of level is left to a later check.

    Raises Unmeasurable when the config has no live index, and LedgerConflict when other checks of it are always
    recorded first.
    """
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        found, report = _check(settings, ledger, config, announce, attempts=_ATTEMPTS)
    return report.model_copy(update={"plan": repair_plan(found)}) if with_plan else report


def _check(
    settings: Settings, ledger: Ledger, config: str, announce: bool, attempts: int
) -> tuple[Gathered, FreshnessReport]:
    found = gather(settings, ledger, config)
    report, state = decide_freshness(
        found.config.name,
        found.index.label,
        found.inspection,
        found.traffic,
        found.basis,
        found.config.freshness,
        found.state,
        announce=announce,
    )
    try:
        record(ledger, found, report, state)
    except LedgerConflict:
        if attempts == 1:
            raise
        return _check(settings, ledger, config, announce, attempts - 1)  # on what the other check left
    return found, report


def final_state(report: FreshnessReport) -> State:
    """Failed when breached, and when nobody could tell, so that failure automations hear of both."""
    unmeasurable = bool(report.source_error) and not report.breached
    name = "Unmeasurable" if unmeasurable else report.level.capitalize()
    message = f"{report.level}: {report.reason}"
    return ended(name, message, report.summary(), failed=unmeasurable or report.breached)
