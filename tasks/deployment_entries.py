"""One entry of prefect.yaml as Prefect takes it, and whether the server has it so already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from tasks.automations import TAG, Applied, reconcile
from tasks.deploy_checks import Entry
from touchstone.deployments import Trigger

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation, AutomationCore

_HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}  # seconds, the least that Prefect takes
_OURS = "touchstone-"  # begins the version of a deployment: the digest of all that was sent


@dataclass(frozen=True)
class Wanted:
    """What is sent. `version` changes with the entry, the flow's parameters and the working directory."""

    entry: Entry
    body: dict[str, Any]
    version: str

    @property
    def full_name(self) -> str:
        return self.entry.deployment.full_name


def wanted_deployment(entry: Entry, pull: list[dict[str, Any]]) -> Wanted:
    """`pull`: the steps by which a worker gets at the project."""
    one = entry.deployment
    limit = one.concurrency_limit
    variables = one.work_pool.job_variables
    environment = {**_HEARTBEAT, **(variables.get("env") or {})}  # a run whose worker is gone is noticed by its silence
    body = {
        "name": one.name,
        "description": one.description,
        "tags": sorted({*one.tags, TAG}),
        "entrypoint": one.entrypoint,
        "parameters": one.parameters,
        "parameter_openapi_schema": entry.schema,
        "enforce_parameter_schema": True,
        "schedules": [
            {
                "schedule": {"cron": schedule.cron, "timezone": schedule.timezone, "day_or": True},
                "active": schedule.active,
                "parameters": schedule.parameters,
                "slug": schedule.slug,
            }
            for schedule in one.schedules
        ],
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": limit.model_dump(include={"collision_strategy", "grace_period_seconds"})
        if limit
        else None,
        "work_pool_name": one.work_pool.name,
        "work_queue_name": one.work_pool.work_queue_name,
        "job_variables": {**variables, "env": environment},
        "pull_steps": pull,
    }
    told = {"body": body, "triggers": [trigger.model_dump(mode="json") for trigger in one.triggers]}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return Wanted(entry, body, f"{_OURS}{digest[:16]}")


def apply(
    client: SyncPrefectClient,
    wanted: Wanted,
    found: DeploymentResponse | None,
    triggers: Sequence[Automation],
    *,
    dry_run: bool,
) -> tuple[Literal["created", "updated", "unchanged"], list[str]]:
    """Bring one deployment to what is wanted; returns what was done, and its details in words."""
    if found is not None and _is_same(wanted, found, triggers):
        return "unchanged", []
    gone = _gone_schedules(wanted, found)
    details = [f"schedule {slug} removed" for slug in gone]
    if dry_run:
        known = [one.name for one in triggers]
        new = [one.name for one in wanted.entry.deployment.triggers if one.name not in known]
        return ("updated" if found else "created"), [*details, *(f"trigger {name} created" for name in new)]
    id = _send(client, wanted)
    if found is not None and not _is_ours(
        found
    ):  # `prefect deploy` made it, and its triggers are not told from others'
        client.delete_resource_owned_automations(f"prefect.deployment.{id}")
        triggers = []
    automations = [_automation(trigger, id) for trigger in wanted.entry.deployment.triggers]
    details += [
        _words(one) for one in reconcile(client, automations, triggers, dry_run=False) if one.change != "unchanged"
    ]
    return ("updated" if found else "created"), details


def triggers_of(automations: Sequence[Automation], deployment: UUID) -> list[Automation]:
    """Those that run a deployment and nothing else."""
    return [one for one in automations if one.actions and getattr(one.actions[0], "deployment_id", None) == deployment]


def _is_ours(found: DeploymentResponse) -> bool:
    return (found.version or "").startswith(_OURS)


def _is_same(wanted: Wanted, found: DeploymentResponse, triggers: Sequence[Automation]) -> bool:
    """By its version; and nobody has taken a schedule or a trigger away since."""
    one = wanted.entry.deployment
    return (
        found.version == wanted.version
        and {schedule.slug for schedule in found.schedules} == {schedule.slug for schedule in one.schedules}
        and {trigger.name for trigger in triggers} == {trigger.name for trigger in one.triggers}
    )


def _gone_schedules(wanted: Wanted, found: DeploymentResponse | None) -> list[str]:
    kept = {schedule.slug for schedule in wanted.entry.deployment.schedules}
    return [str(one.slug or one.id) for one in (found.schedules if found else ()) if one.slug not in kept]


def _send(client: SyncPrefectClient, wanted: Wanted) -> UUID:
    """Prefect replaces all schedules and keeps the deployment's id; `prefect deploy` would leave old schedules on."""
    from uuid import UUID

    flow_id = client.create_flow_from_name(wanted.entry.flow.name)
    body = {**wanted.body, "flow_id": str(flow_id), "version": wanted.version}
    return UUID(client.request("POST", "/deployments/", json=body).json()["id"])


def _automation(trigger: Trigger, deployment: UUID) -> AutomationCore:
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    return AutomationCore(
        name=trigger.name,
        description=trigger.description,
        enabled=trigger.enabled,
        tags=[TAG],
        trigger=EventTrigger.model_validate(
            {
                "match": trigger.match,
                "match_related": trigger.match_related,
                "expect": set(trigger.expect),
                "for_each": set(trigger.for_each),
                "threshold": trigger.threshold,
                "within": timedelta(seconds=trigger.within),
                "posture": "Reactive",
            }
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment,
                parameters=trigger.parameters or None,
                job_variables=None,
                schedule_after=timedelta(seconds=trigger.schedule_after),
            )
        ],
        owner_resource=f"prefect.deployment.{deployment}",
    )


def _words(applied: Applied) -> str:
    return f"trigger {applied.name} {applied.change}"
