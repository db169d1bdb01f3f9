"""Finished flow runs in Prefect that are older than they are kept; by default Prefect keeps them for ever."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tasks.environment import apply_defaults
from touchstone.housekeeping import Cleaned
from touchstone.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

TAG = "touchstone"  # that every deployment of prefect.yaml has, and so every run of one
_TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_BATCH = 50  # the most that Prefect deletes in one request
_BUDGET_S = 300.0


def clean_flow_runs(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """Runs of our deployments that ended long ago, with their task runs and logs; those of others stay.

    Raises what Prefect's client raises.
    """
    days = settings.retention.flow_runs
    if not os.environ.get("PREFECT_API_URL"):
        return [Cleaned(what="flow runs", days=days, note="PREFECT_API_URL is not set: there is no server to clean")]
    apply_defaults()
    from prefect.client.orchestration import get_client

    old = _ended_before(now - timedelta(days=days))
    end, removed, note = time.monotonic() + _BUDGET_S, 0, ""
    with get_client(sync_client=True, httpx_settings={"timeout": 30}) as client:
        if dry_run:
            removed = int(_post(client, "/flow_runs/count", {"flow_runs": old}))
        while not dry_run:
            answer = _post(client, "/flow_runs/bulk_delete", {"flow_runs": old, "limit": _BATCH})
            gone = len(answer["deleted"])
            removed += gone
            if gone < _BATCH:
                break
            if time.monotonic() > end:
                note = "more are left for the next time"
                break
    return [Cleaned(what="flow runs", days=days, removed=removed, bytes_freed=None, note=note)]


def _post(client: SyncPrefectClient, path: Any, body: dict[str, Any]) -> Any:
    """`path` is none of those that the client has methods for. The client raises on a status of 4xx and 5xx."""
    return client.request("POST", path, json=body).json()


def _ended_before(limit: datetime) -> dict[str, Any]:
    """A filter as Prefect's API takes it; all of it must hold."""
    return {
        "operator": "and_",
        "tags": {"operator": "and_", "all_": [TAG]},
        "state": {"operator": "and_", "type": {"any_": list(_TERMINAL)}},
        "end_time": {"before_": limit.isoformat()},
    }
