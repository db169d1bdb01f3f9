"""Is the stack up, part by part, and what do its flows do?"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tasks.health import answers
from tasks.process_marks import marked
from tasks.stack_file import StackPart, is_held, read_stack
from tasks.stack_parts import prefect_login

_HEALTH = {"prefect": "/api/health", "mlflow": "/health", "gateway": "/health", "emulator": "/control/state"}


@dataclass(frozen=True)
class PartStatus:
    """`state`: up, starting, or down; `pid` is 0 for a server that `up` found running."""

    name: str
    state: str
    address: str
    pid: int
    since: datetime | None


@dataclass(frozen=True)
class FlowStatus:
    """A deployment; times are UTC."""

    deployment: str
    last_state: str | None
    last_at: datetime | None
    next_at: datetime | None


async def part_states(state: Path) -> list[PartStatus]:
    """The servers and the worker of this state folder; empty when nothing was started, or it was ended cleanly."""
    stack = read_stack(state)
    if stack is None:
        return []
    alive = {process.pid for process in await asyncio.to_thread(marked, stack.stack)}
    servers = [part for part in stack.parts if not part.step]
    states = await asyncio.gather(*(_state(part, alive) for part in servers))
    up = "up" if is_held(state) else "down"
    itself = PartStatus("up", up, "", stack.pid, None)
    return [itself, *(PartStatus(p.name, s, p.address, p.pid, p.since) for p, s in zip(servers, states, strict=True))]


async def _state(part: StackPart, alive: set[int]) -> str:
    if part.pid not in alive and (part.pid or not part.ready):
        return "down" if part.pid else "starting"
    path = _HEALTH.get(part.name) if part.address else None
    address = part.address.removesuffix("/api") if part.name == "prefect" else part.address
    if path and not await answers(address + path):
        return "down" if part.ready else "starting"
    return "up" if part.ready else "starting"


async def flow_states(api: str) -> list[FlowStatus]:
    """Each deployment's last and next run, by name; empty when Prefect does not answer."""
    try:
        async with httpx.AsyncClient(
            base_url=f"{api}/", timeout=10, trust_env=False, **prefect_login(dict(os.environ))
        ) as client:
            flows = {one["id"]: one["name"] for one in await _ask(client, "flows/filter", {})}
            found = await _ask(client, "deployments/filter", {})
            return sorted(
                await asyncio.gather(*(_flow(client, flows.get(one["flow_id"], "?"), one) for one in found)),
                key=lambda flow: flow.deployment,
            )
    except (httpx.HTTPError, ValueError):
        return []


async def _flow(client: httpx.AsyncClient, flow: str, deployment: dict[str, Any]) -> FlowStatus:
    of = {"deployments": {"id": {"any_": [deployment["id"]]}}, "limit": 1}
    began = {"start_time": {"is_null_": False}}
    waits = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    last, following = await asyncio.gather(
        _ask(client, "flow_runs/filter", {**of, "flow_runs": began, "sort": "START_TIME_DESC"}),
        _ask(client, "flow_runs/filter", {**of, "flow_runs": waits, "sort": "EXPECTED_START_TIME_ASC"}),
    )
    return FlowStatus(
        f"{flow}/{deployment['name']}",
        last[0]["state_name"] if last else None,
        datetime.fromisoformat(last[0]["start_time"]) if last else None,
        datetime.fromisoformat(following[0]["expected_start_time"]) if following else None,
    )


async def _ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()
