"""The dead-man's switch is armed: an automation that was made or changed waits for nothing until an event starts it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tasks.standing_automations import ARMED, COMPLETED, SILENCE
from touchstone.deployments import Suite

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_LOADED_S = 1.0  # until the server has loaded an automation that was just changed
_SEEN_S = 15.0
_SLACK = timedelta(seconds=8)  # Prefect forgets a wait that ended more than a minute ago: none may begin as ended


def arm(client: SyncPrefectClient, suites: Sequence[Suite], within: timedelta, *, dry_run: bool) -> list[str]:
    """Start the wait of every suite that does not wait yet, from its last completed eval on; returns their resources.

    A suite whose silence was told already is left alone: its next eval starts the wait anew.
    """
    automation = _switch(client)
    if automation is None:
        return []
    trigger = automation["trigger"]["id"]  # another one after each change
    changed = datetime.fromisoformat(automation["updated"])
    events = {resource: _events(client, resource) for resource in sorted({suite.resource for suite in suites})}
    unarmed = [resource for resource, found in events.items() if not _is_armed(found, trigger, changed)]
    if unarmed and not dry_run:
        time.sleep(_LOADED_S)
        now = datetime.now(UTC)
        sent = [_event(one, trigger, _since(events[one], now, within)) for one in unarmed]
        client.request("POST", "/events", json=sent)
        _wait_until_seen(client, sent)
        # Prefect looks at a switch again when its longest wait is over. One that began earlier ends before that, and
        # would be forgotten; a touched automation is looked at at once.
        client.resume_automation(automation["id"])
    return unarmed


def _switch(client: SyncPrefectClient) -> dict[str, Any] | None:
    body = {"automations": {"name": {"any_": [SILENCE]}}}
    found = client.request("POST", "/automations/filter", json=body).json()
    return found[0] if found else None


def _events(client: SyncPrefectClient, resource: str) -> list[dict[str, Any]]:
    """The newest that start a wait, as long as Prefect keeps them."""
    since = datetime.now(UTC) - timedelta(days=30)
    wanted = {
        "event": {"name": [COMPLETED, ARMED]},
        "resource": {"id": [resource]},
        "occurred": {"since": since.isoformat()},
        "order": "DESC",
    }
    return client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50}).json()["events"]


def _is_armed(events: Sequence[dict[str, Any]], trigger: str, changed: datetime) -> bool:
    return any(
        one["payload"].get("trigger") == trigger
        if one["event"] == ARMED
        else datetime.fromisoformat(one["occurred"]) > changed
        for one in events
    )


def _since(events: Sequence[dict[str, Any]], now: datetime, within: timedelta) -> datetime:
    """From when silence counts."""
    completed = [datetime.fromisoformat(one["occurred"]) for one in events if one["event"] == COMPLETED]
    return max(completed[0], now - within + _SLACK) if completed else now


def _event(resource: str, trigger: str, since: datetime) -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "event": ARMED,
        "occurred": since.isoformat(),
        "resource": {"prefect.resource.id": resource},
        "payload": {"trigger": trigger},
    }


def _wait_until_seen(client: SyncPrefectClient, sent: Sequence[dict[str, Any]]) -> None:
    end = time.monotonic() + _SEEN_S
    while time.monotonic() < end:
        known = {one["id"] for event in sent for one in _events(client, event["resource"]["prefect.resource.id"])}
        if {event["id"] for event in sent} <= known:
            time.sleep(_LOADED_S)
            return
        time.sleep(0.3)
