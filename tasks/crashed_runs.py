"""A golden eval whose process was killed is taken over once: what it had finished is not paid for again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from tasks.alarms import hear
from tasks.environment import apply_defaults
from tasks.flow_run import flow_run_id
from tasks.outbox import tell_people
from tasks.plan import EvalRequest
from tasks.spool import Spool, run_folders
from touchstone.alarms import FLOW_CRASHED
from touchstone.errors import BadInput, TouchstoneError
from touchstone.settings import Settings

_FILE = "flow_run.json"  # beside a run's manifest: whose process it is in


@dataclass(frozen=True)
class Takeover:
    """What the crashed run was asked for, and how far it came: its run key, or None when nothing was paid yet."""

    request: EvalRequest
    resume: str | None
    retry_failures: bool


@dataclass(frozen=True)
class LeftAlone:
    """Why a run is not taken over."""

    reason: str


def note_flow_run(spool: Spool) -> None:
    """Remember which flow run works on a run; outside of one, nothing."""
    if run := flow_run_id():
        spool.write_json(_FILE, json.dumps({"id": run}))


async def take_over(settings: Settings, flow_run: str) -> Takeover | LeftAlone:
    """Claim a crashed run for this one; `flow_run` is its id, also as prefect.flow-run.ID.

    Whether it crashed is read from Prefect. Raises BadInput for an id that Prefect does not know.
    """
    run = await _read(flow_run)
    id, given = str(run.id), run.parameters
    if run.state is None or not run.state.is_crashed():
        return LeftAlone(f"flow run {id} is {run.state.name if run.state else 'not begun'}, not crashed")
    if given.get("resume_crashed"):
        facts = {"flow_run": id, "deployment": await _deployment(run.deployment_id)}
        told = await asyncio.to_thread(_tell, settings, facts)
        return LeftAlone(f"flow run {id} was itself a resumption; {told}")
    return claim(settings.state, id, given)


def claim(state: Path, id: str, parameters: Mapping[str, Any]) -> Takeover | LeftAlone:
    """Of those that want to take a run over, the first one gets it."""
    spool = spool_of(state, id)
    with ExitStack() as stack:
        try:
            if spool is not None:  # held by a process that lives, whatever Prefect thinks of it
                stack.enter_context(spool.locked())
        except TouchstoneError as error:
            return LeftAlone(str(error))
        mine = flow_run_id() or ""
        if not _mark(state / "taken_over" / id, mine):
            return LeftAlone(f"flow run {id} was taken over before")
    fields = {name: parameters[name] for name in EvalRequest.model_fields if name in parameters}
    resume = spool.run_key if spool is not None else parameters.get("resume")
    return Takeover(EvalRequest.model_validate(fields), resume, bool(parameters.get("retry_failures")))


def spool_of(state: Path, id: str) -> Spool | None:
    """The run that a flow run worked on last."""
    for folder in reversed(run_folders(state)):
        try:
            if json.loads((folder / _FILE).read_text()).get("id") == id:
                return Spool(folder)
        except (OSError, ValueError):
            continue
    return None


def _mark(path: Path, mine: str) -> bool:
    """False when another was first; the same flow run may come again, after a retry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return bool(mine) and path.read_text() == mine
    with os.fdopen(descriptor, "w") as file:
        file.write(mine)
    return True


def _tell(settings: Settings, facts: Mapping[str, str]) -> str:
    did = hear(settings, FLOW_CRASHED, facts)
    return "; ".join([did, *tell_people(settings)])


async def _read(flow_run: str) -> Any:
    apply_defaults()
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    text = flow_run.removeprefix("prefect.flow-run.")
    try:
        async with get_client() as client:
            return await client.read_flow_run(UUID(text))
    except (ValueError, ObjectNotFound):
        raise BadInput(f"resume_crashed: {text[:100]!r} is no flow run of this Prefect server") from None


async def _deployment(id: UUID | None) -> str:
    """FLOW/NAME, as alarms name it."""
    from prefect.client.orchestration import get_client

    if id is None:
        return ""
    async with get_client() as client:
        deployment = await client.read_deployment(id)
        flow = await client.read_flow(deployment.flow_id)
    return f"{flow.name}/{deployment.name}"
