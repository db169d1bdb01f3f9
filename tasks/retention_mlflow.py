"""Live traffic in MLflow that is older than it is kept. Traces of evals stay: they are what runs are compared by."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tasks.tracking_address import connected
from tasks.tracking_experiment import full_name, traffic_experiment
from touchstone.housekeeping import Cleaned
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 100  # what MLflow's own server takes in one request
_BUDGET_S = 600.0  # what is left goes the next day
_MOST_COUNTED = 10_000


def clean_traffic(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """Traces with their spans, assessments and tags, in the traffic experiments of every environment, oldest first.

    Raises TrackingUnavailable; what was removed before stays removed.
    """
    days = settings.retention.traces
    limit = int((now - timedelta(days=days)).timestamp() * 1000)
    end = time.monotonic() + _BUDGET_S
    removed, is_over = 0, False
    with connected(settings) as client:
        for experiment in _experiments(client):
            if dry_run:
                removed += _count(client, experiment, limit)
                continue
            while not is_over:
                gone = client.delete_traces(experiment, max_timestamp_millis=limit, max_traces=_BATCH)
                removed, is_over = removed + gone, time.monotonic() > end
                if gone < _BATCH:
                    break
    note = "more are left for the next time" if is_over else ""
    return [Cleaned(what="live traffic traces", days=days, removed=removed, bytes_freed=None, note=note)]


def _experiments(client: MlflowClient) -> list[str]:
    """Ids of `touchstone/traffic/<environment>`."""
    prefix = full_name(traffic_experiment(""))
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(filter_string=f"name LIKE '{prefix}%'", page_token=token)
        found += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            return found


def _count(client: MlflowClient, experiment: str, limit: int) -> int:
    found, token = 0, None
    while found < _MOST_COUNTED:
        page = client.search_traces(
            locations=[experiment],
            filter_string=f"trace.timestamp_ms <= {limit}",
            max_results=500,
            page_token=token,
            include_spans=False,
        )
        found, token = found + len(page), page.token
        if not token:
            break
    return found
