"""Prefect's automations by name: only what differs is touched, so that what is armed stays armed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

TAG = "touchstone"  # of every automation of ours, by which it is told from those that people made

Change = Literal["created", "updated", "removed", "unchanged"]


@dataclass(frozen=True)
class Applied:
    """What was done about one automation."""

    name: str
    change: Change


def reconcile(
    client: SyncPrefectClient, wanted: Sequence[AutomationCore], found: Sequence[Automation], *, dry_run: bool
) -> list[Applied]:
    """Bring those that were found to those that are wanted; names are unique among the wanted."""
    by_name = {one.name: one for one in reversed(found)}
    doubles = [one for one in found if by_name[one.name] is not one]
    names = {one.name for one in wanted}
    applied = [_apply(client, one, by_name.get(one.name), dry_run) for one in wanted]
    for one in [*doubles, *(one for name, one in by_name.items() if name not in names)]:
        if not dry_run:
            client.delete_automation(one.id)
        applied.append(Applied(one.name, "removed"))
    return applied


def ours(client: SyncPrefectClient) -> list[Automation]:
    """All automations with our tag."""
    from prefect.events.schemas.automations import Automation

    rows: list[dict[str, Any]] = []
    while True:
        body = {"automations": {"tags": {"all_": [TAG]}}, "sort": "NAME_ASC", "limit": 200, "offset": len(rows)}
        page = client.request("POST", "/automations/filter", json=body).json()
        rows += page
        if len(page) < 200:
            return [Automation.model_validate(row) for row in rows]


def _apply(client: SyncPrefectClient, wanted: AutomationCore, found: Automation | None, dry_run: bool) -> Applied:
    if found is None:
        if not dry_run:
            client.create_automation(wanted)
        return Applied(wanted.name, "created")
    if _content(found) == _content(wanted):
        return Applied(wanted.name, "unchanged")
    if not dry_run:
        # Whole: the client's own update leaves out what is the default, and Prefect refuses that.
        body = wanted.model_dump(mode="json", exclude={"owner_resource"})
        client.request("PUT", "/automations/{id}", path_params={"id": found.id}, json=body)
    return Applied(wanted.name, "updated")


def _content(automation: AutomationCore) -> dict[str, Any]:
    """What makes two automations the same."""
    return automation.model_dump(include={"name", "description", "enabled", "tags", "trigger", "actions"})
