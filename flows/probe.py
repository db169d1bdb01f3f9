"""Between evals: is it still the vendor of before? What it says of itself, and one-token answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.verdicts import ended
from tasks.announce_probe import create_probe_artifact, emit_probe_event
from tasks.environment import apply_defaults
from tasks.loading import load_settings
from tasks.outbox import tell_people
from tasks.probes import ask, decide_and_record, plan_probe
from touchstone.probe_records import ProbeLevel, ProbeReport
from touchstone.probes import probe_policy
from touchstone.settings import Settings


def _flow_run_name() -> str:
    """`probe support`, also where a path was given."""
    return f"probe {Path(flow_run.parameters['bundle']).stem}"


@flow(name="probe", flow_run_name=_flow_run_name)
def probe(
    bundle: str = "support", dataset: str = "support", runs_per_day: Annotated[float, Field(gt=0, le=1440)] = 24
) -> State:
    """Ask the bundle's vendor for one token per probe, and say: stable, flagged, detected, learning, unmeasurable.

    The flow run fails as Drifted when the vendor moved, and as Unmeasurable when it could not be told.

    Args:
        bundle: A name in bundles/, or a path.
        dataset: The golden set whose probes.jsonl is sent; without that file, its first 32 questions.
        runs_per_day: How often this is scheduled. A year's false alarms (0.05) are spread over so many runs.
    """
    apply_defaults()
    settings = load_settings()
    report = conduct(settings, bundle, dataset, runs_per_day=runs_per_day, announce=True)
    log = get_run_logger()
    log.info("%s: %s", report.level, report.reason)
    emit_probe_event(report)
    for warning in tell_people(settings):
        log.warning("%s", warning)
    create_probe_artifact(report)
    return final_state(report)


def conduct(
    settings: Settings,
    bundle: str,
    dataset: str,
    *,
    runs_per_day: float = 24,
    announce: bool = True,
    relearn: bool = False,
) -> ProbeReport:
    """Ask, decide, record; without Prefect. Without `announce` a change of level is left to a later run."""
    plan = plan_probe(settings, bundle, dataset)
    run = ask(settings, plan)
    return decide_and_record(settings, plan, run, probe_policy(runs_per_day), announce=announce, relearn=relearn)


def final_state(report: ProbeReport) -> State:
    """Failed when the vendor moved, and when nobody could tell, so that failure automations hear of both."""
    name = "Drifted" if report.level is ProbeLevel.DETECTED else report.level.capitalize()
    failed = report.level in {ProbeLevel.DETECTED, ProbeLevel.UNMEASURABLE}
    return ended(name, f"{report.level}: {report.reason}", report.summary(), failed=failed)
