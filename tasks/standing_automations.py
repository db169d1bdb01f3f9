"""Automations that stand beside the deployments: who tells of silence and crashes, and who resumes what crashed.

Those that tell send a webhook from Prefect's server to the gateway, which looks at the ledger and tells people: no flow
run is needed, so that a dead worker swallows nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tasks.automations import TAG
from touchstone.alarms import AUTOMATION_FAILED, FLOW_CRASHED, SUITE_SILENT
from touchstone.deployments import GOLDEN_EVAL, Suite
from touchstone.errors import BadInput
from touchstone.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

PREFIX = "touchstone: "
TELLS = f"{PREFIX}tell "  # begins the name of those that send a webhook
_MARKS = f"{PREFIX}mark "
SILENCE = f"{TELLS}when a scheduled golden eval is silent"
COMPLETED, ARMED = "touchstone.eval.completed", "touchstone.suite.armed"
RESUMED = " (resumed)"  # ends the name of a flow run that resumes a crashed one
SOURCE = "prefect"  # of webhooks.sources: where the gateway hears of Prefect
_BLOCK = "touchstone-gateway"
_WAITS = "promotion"  # the flow that is suspended until people answer
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_LEAST_S = 10  # the shortest silence that Prefect watches
_HEARTBEATS_MISSED = timedelta(seconds=120)  # of one every 30 s


def hook_token(settings: Settings) -> tuple[str, str]:
    """The secret that the gateway knows Prefect by; or empty, and what is missing."""
    source = settings.webhooks.sources.get(SOURCE)
    if source is None or source.kind != "token":
        return "", f"touchstone.yaml: webhooks.sources has no `{SOURCE}` of kind token"
    tokens = os.environ.get(source.secret_env, "").split()  # while rotating, the new one is first
    return (tokens[0], "") if tokens else ("", f"{source.secret_env} is not set")


def gateway_block(
    client: SyncPrefectClient, settings: Settings, token: str, *, dry_run: bool
) -> tuple[UUID | None, str]:
    """Prefect's Webhook block that reaches the gateway, with what was done about it: created, updated, unchanged."""
    from prefect.blocks.webhook import Webhook
    from prefect.exceptions import ObjectNotFound
    from pydantic import SecretStr

    url = f"{settings.gateway_url.rstrip('/')}/hooks/{SOURCE}"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    wanted = {"url": url, "headers": headers}
    try:
        found = client.read_block_document_by_name(_BLOCK, "webhook", include_secrets=True)
    except ObjectNotFound:
        found = None
    if found and {name: found.data.get(name) for name in wanted} == wanted:
        return found.id, "unchanged"
    did = "updated" if found else "created"
    if dry_run:
        return (found.id if found else None), did
    block = Webhook(method="POST", url=SecretStr(url), headers=headers)  # type: ignore[arg-type]
    return block.save(_BLOCK, overwrite=True), did  # type: ignore[return-value]


def telling(settings: Settings, suites: Sequence[Suite], block: UUID) -> list[AutomationCore]:
    """Those that send a webhook. Raises BadInput when `silent_after_h` is shorter than Prefect can watch."""
    return [
        *([_silence(settings, suites, block)] if suites else []),
        _automation_failed(block),
        *_crashed(block),
    ]


def acting() -> list[AutomationCore]:
    """Those that need nobody to be told: they notice a dead worker, and resume a crashed eval once."""
    return [_worker_gone(), _resume()]


def _silence(settings: Settings, suites: Sequence[Suite], block: UUID) -> AutomationCore:
    """With `after`: Prefect waits from one event to the next, and fires once when it does not come."""
    within = timedelta(hours=settings.silent_after_h)
    if within < timedelta(seconds=_LEAST_S):
        raise BadInput(f"TOUCHSTONE_SILENT_AFTER_H: {settings.silent_after_h} is less than {_LEAST_S} seconds")
    trigger = {
        "posture": "Proactive",
        "match": {"prefect.resource.id": sorted({suite.resource for suite in suites})},
        "after": {COMPLETED, ARMED},
        "expect": {COMPLETED},
        "for_each": {"prefect.resource.id"},
        "threshold": 1,
        "within": within,
    }
    data = """{"resource": {{ labels["prefect.resource.id"] | tojson }}}"""
    said = f"No golden eval of a scheduled suite finished for {settings.silent_after_h:g} h."
    return _automation(SILENCE, said, trigger, _call(block, SUITE_SILENT, data))


def _automation_failed(block: UUID) -> AutomationCore:
    """Not of those that send webhooks: a gateway that is away would be told for ever that it is away.

    Nor of the one that marks runs: the heartbeat of a run of a second may come after its end, and waits in vain.
    """
    tells_or_marks = f"{PREFIX}[{TELLS[len(PREFIX)]}{_MARKS[len(PREFIX)]}]*"  # a label takes one pattern to leave out
    trigger = {
        "match": {"prefect.resource.id": "prefect.automation.*", "prefect.resource.name": f"!{tells_or_marks}"},
        "expect": {"prefect.automation.action.failed"},
        "for_each": {"prefect.resource.id"},
        "within": timedelta(seconds=60),
    }
    data = (
        '{"automation": {{ event.resource["prefect.resource.name"] | tojson }}, '
        '"automation_id": {{ event.resource["prefect.resource.id"] | tojson }}, '
        '"reason": {{ event.payload["reason"] | default("", true) | string | tojson }}}'
    )
    said = "An action of an automation failed, such as a run that was not started since a parameter is missing."
    return _automation(f"{TELLS}when an automation fails", said, trigger, _call(block, AUTOMATION_FAILED, data))


def _crashed(block: UUID) -> list[AutomationCore]:
    """A golden eval is resumed once by itself; only a crash of that is told."""
    data = (
        '{"flow_run": {{ event.resource["prefect.resource.id"] | tojson }}, '
        '"deployment": {{ ((flow.name ~ "/" ~ deployment.name) if flow and deployment else "") | tojson }}, '
        '"state": {{ event.resource["prefect.state-name"] | default("", true) | tojson }}, '
        '"message": {{ event.resource["prefect.state-message"] | default("", true) | tojson }}}'
    )
    action = _call(block, FLOW_CRASHED, data)
    return [
        _automation(
            f"{TELLS}when a flow run crashed",
            "A run of ours was killed, or its worker is gone.",
            _crash({}, f"!{GOLDEN_EVAL}"),
            action,
        ),
        _automation(
            f"{TELLS}when a resumed golden eval crashed again",
            "It is not resumed a second time.",
            _crash({"prefect.resource.name": f"*{RESUMED}"}, GOLDEN_EVAL),
            action,
        ),
    ]


def _resume() -> AutomationCore:
    """For one crash two events may come, so that the flow itself makes sure that it is resumed once."""
    from prefect.events.actions import RunDeployment

    return _automation(
        f"{PREFIX}resume a crashed golden eval",
        "Once: finished calls are not paid for again.",
        _crash({"prefect.resource.name": f"!*{RESUMED}"}, GOLDEN_EVAL),
        RunDeployment(
            source="inferred",
            deployment_id=None,
            parameters={"resume_crashed": "{{ event.resource.id }}"},
            job_variables=None,
        ),
    )


def _worker_gone() -> AutomationCore:
    """Runs of deployments send a heartbeat; whatever else a run says of itself ends the wait for the next one.

    A promotion that waits for people has no process, and its last heartbeat may come after it was suspended.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    trigger = {
        "posture": "Proactive",
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": [_flow(f"!{_WAITS}"), _OURS],
        "after": {"prefect.flow-run.heartbeat"},
        "expect": {"prefect.flow-run.*"},
        "for_each": {"prefect.resource.id"},
        "threshold": 1,
        "within": _HEARTBEATS_MISSED,
    }
    message = "No heartbeat for two minutes: the process and its worker are gone."
    return _automation(
        f"{_MARKS}a run as crashed when its worker is gone",
        message,
        trigger,
        ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False),
    )


def _crash(match: dict[str, str], flow: str) -> dict[str, Any]:
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*", **match},
        "match_related": [_flow(flow), _OURS],
        "expect": {"prefect.flow-run.Crashed"},
        "for_each": {"prefect.resource.id"},
        "within": timedelta(seconds=120),  # a run is said to have crashed by its worker, and by its missing heartbeat
    }


def _flow(name: str) -> dict[str, str]:
    """Of runs of a flow; with `!`, of all others."""
    return {"prefect.resource.role": "flow", "prefect.resource.name": name}


def _call(block: UUID, alarm: str, data: str) -> Any:
    from prefect.events.actions import CallWebhook

    payload = f'{{"type": "{alarm}", "alarm": "{alarm}", "id": "{{{{ firing.id }}}}", "data": {data}}}'
    return CallWebhook(block_document_id=block, payload=payload)


def _automation(name: str, description: str, trigger: dict[str, Any], action: Any) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    return AutomationCore(
        name=name,
        description=description,
        enabled=True,
        tags=[TAG],
        trigger=EventTrigger.model_validate(trigger),
        actions=[action],
    )
