"""Remove what is older than it is kept, on disk and in the systems around; what is still needed stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.verdicts import ended
from tasks.announce_housekeeping import create_housekeeping_artifact
from tasks.environment import apply_defaults
from tasks.loading import load_settings
from tasks.retention_files import clean_folders, clean_retrieval_log
from tasks.retention_inbox import clean_inbox
from tasks.retention_index import clean_indexes
from tasks.retention_mlflow import clean_traffic
from tasks.retention_prefect import clean_flow_runs
from touchstone.errors import TouchstoneError
from touchstone.housekeeping import Cleaned, HousekeepingReport
from touchstone.privacy import redact_secrets
from touchstone.settings import Settings

Clean = Callable[[Settings, datetime, bool], list[Cleaned]]
Run = Callable[[str, Callable[[], list[Cleaned]]], list[Cleaned]]

SYSTEMS: Mapping[str, Clean] = {
    "files": clean_folders,
    "retrieval log": clean_retrieval_log,
    "indexes": clean_indexes,
    "MLflow": clean_traffic,
    "Prefect": clean_flow_runs,
    "inbox": clean_inbox,
}


@flow(name="housekeeping", flow_run_name="housekeeping")
def housekeeping(dry_run: bool = False) -> State:
    """Remove what is older than `retention` in touchstone.yaml allows, and say what went and what stayed.

    One system that is away does not stop the others; the flow run then fails, naming it.

    Args:
        dry_run: Count what would be removed, and remove nothing.
    """
    apply_defaults()
    report = conduct(load_settings(), dry_run=dry_run, run=clean_as_task)
    get_run_logger().info("%s", report.headline)
    create_housekeeping_artifact(report)
    return final_state(report)


def conduct(
    settings: Settings, *, dry_run: bool = False, now: datetime | None = None, run: Run | None = None
) -> HousekeepingReport:
    """Clean system after system; without Prefect, unless `run` makes tasks of them."""
    now, started = now or datetime.now(UTC), time.monotonic()
    items: list[Cleaned] = []
    for system, clean in SYSTEMS.items():
        work = partial(clean, settings, now, dry_run)
        try:
            items += run(system, work) if run else work()
        except Exception as error:  # whatever it is: the other systems are cleaned all the same
            items.append(Cleaned(what=system, error=_reason(error)))
    at, wall_s = now.isoformat(timespec="seconds"), round(time.monotonic() - started, 3)
    return HousekeepingReport(dry_run=dry_run, at=at, items=tuple(items), wall_s=wall_s)


@task(task_run_name="clean {system}", cache_policy=NO_CACHE)
def clean_as_task(system: str, work: Callable[[], list[Cleaned]]) -> list[Cleaned]:
    """One system. `work` is a function, so that Prefect does not walk through the settings."""
    return work()


def final_state(report: HousekeepingReport) -> State:
    """Failed when something could not be cleaned: disks fill up silently otherwise."""
    name = "Incomplete" if report.failed else "Cleaned" if not report.dry_run else "Counted"
    return ended(name, report.headline, report.summary(), failed=bool(report.failed))


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, TouchstoneError) else f"{type(error).__name__}: {error}"
    return redact_secrets((text.splitlines() or [""])[0])
