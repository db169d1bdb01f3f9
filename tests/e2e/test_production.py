"""The production settings of compose.yaml against real PostgreSQL and Redis: the same commands, by hand.

Two API servers, Prefect's services apart, two workers, the gateway. Skips where PostgreSQL or Redis is missing.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa

from tasks.health import answers
from tasks.processes import Part, Supervisor
from tests.e2e.compose_file import required, resolved
from tests.tasks.postgres import postgres_url

pytestmark = pytest.mark.asyncio(loop_scope="module")

REDIS = os.environ.get("TOUCHSTONE_TEST_REDIS", "redis://127.0.0.1:6379")
LOGIN = ("admin", secrets.token_hex(8))
GIVEN = {name: secrets.token_hex(16) for name in required()} | {"PREFECT_AUTH": ":".join(LOGIN)}


@pytest.fixture(scope="module")
def prefect_database() -> Iterator[str]:
    yield from postgres_url()


@pytest.fixture(scope="module")
def touchstone_database() -> Iterator[str]:
    yield from postgres_url()


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A database of Redis that is empty, and is emptied again."""
    import redis

    for number in range(15, 0, -1):
        url = f"{REDIS}/{number}"
        client = redis.Redis.from_url(url, socket_connect_timeout=3)
        try:
            is_empty = client.dbsize() == 0
        except redis.RedisError as error:
            pytest.skip(f"no Redis (start one, or name it in TOUCHSTONE_TEST_REDIS): {error}")
        if is_empty:
            yield url
            client.flushdb()
            return
    pytest.skip(f"no empty database in Redis at {REDIS}")


@dataclass(frozen=True)
class Production:
    """What runs: its two API servers, which share nothing but PostgreSQL and Redis."""

    first: httpx.AsyncClient
    second: httpx.AsyncClient

    async def deployment(self, name: str) -> str:
        answer = await self.first.get(f"/deployments/name/{name}")
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code < 300, answer.text
    return answer.json()


async def until(check: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    ends = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < ends, "waited in vain"
        await asyncio.sleep(0.5)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def production(
    prefect_database: str, touchstone_database: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    first, second, gateway = free_port(), free_port(), free_port()
    services = resolved(GIVEN)["services"]
    hosts = {  # of compose.yaml -> here
        r"\w+://touchstone:[^@]*@postgres:5432/touchstone": touchstone_database,
        r"postgresql\+asyncpg://touchstone:[^@]*@postgres:5432/prefect": _asynchronous(prefect_database),
        r"redis://redis:6379/0": redis_url,
        r"^0\.0\.0\.0$": "127.0.0.1",
        r"^/state$": str(folder / "state"),
        r"http://mlflow:5000": f"sqlite:///{folder / 'mlflow.db'}",  # of its own: no flow below writes to it
    }

    def here(text: str, ports: dict[str, int]) -> str:
        for pattern, found in (hosts | {rf"^{old}$": str(new) for old, new in ports.items()}).items():
            text = re.sub(pattern, lambda _, found=found: found, text)
        return text.replace("http://prefect:4200", f"http://127.0.0.1:{ports.get('api', first)}")

    def part(name: str, service: str, after: tuple[str, ...] = (), ready: Any = None, **ports: int) -> Part:
        moved = {key.removeprefix("port_"): value for key, value in ports.items()}
        program, *arguments = (here(word, moved) for word in services[service]["command"])
        environment = {key: here(str(value), moved) for key, value in services[service]["environment"].items()}
        machine = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        bare = machine | {"PREFECT_HOME": str(folder / name), "PREFECT_LOGGING_LEVEL": "WARNING"} | environment
        command = (sys.executable, "-m", {"touchstone": "cli.main"}.get(program, program), *arguments)
        return Part(name, command, bare, ready, after)

    def healthy(port: int, path: str = "/api/health") -> Any:
        return lambda: answers(f"http://127.0.0.1:{port}{path}")

    def worker(name: str, api: int) -> Part:
        health = free_port()
        return part(name, "worker", ("deploy",), healthy(health, "/health"), api=api, port_8080=health)

    parts = [
        part("migrate", "migrate"),
        part("prefect-1", "prefect-1", ("migrate",), healthy(first), port_4200=first),
        part("prefect-2", "prefect-2", ("prefect-1",), healthy(second), port_4200=second),
        part("prefect-services", "prefect-services", ("prefect-1",), _at_once),
        part("gateway", "gateway", ("migrate",), healthy(gateway, "/health"), port_8700=gateway),
        part("deploy", "deploy", ("prefect-2", "gateway")),
        worker("worker-1", first),
        worker("worker-2", second),
    ]
    supervisor = Supervisor(parts, folder / "logs", lambda name, line: None)
    login: dict[str, Any] = {"auth": LOGIN, "timeout": 30, "trust_env": False}
    try:
        await supervisor.start()
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{first}/api", **login) as one,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{second}/api", **login) as other,
        ):
            yield Production(one, other)
    finally:
        await supervisor.stop()


async def _at_once() -> bool:
    return True


def _asynchronous(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


async def test_no_api_server_answers_without_the_login(production: Production) -> None:
    for server in (production.first, production.second):
        assert (await server.post("/deployments/filter", json={}, auth=("admin", "wrong"))).status_code == 401


async def test_services_of_their_own_process_create_scheduled_runs(production: Production) -> None:
    daily = await production.deployment("golden-eval/daily")

    async def scheduled() -> Any:
        of = {"deployments": {"id": {"any_": [daily]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        return await ask(production.second, "/flow_runs/filter", **of)

    runs = await until(scheduled)
    assert all(run["auto_scheduled"] for run in runs)


async def test_a_run_made_at_one_server_is_done_by_a_worker_and_seen_at_the_other(production: Production) -> None:
    start = await production.deployment("canary-start/start")  # no schedule of it can come between
    made = await ask(production.first, f"/deployments/{start}/create_flow_run")

    async def ended() -> Any:
        run = (await production.second.get(f"/flow_runs/{made['id']}")).json()
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    run = await until(ended, 90)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["infrastructure_pid"]
    workers = await ask(production.second, "/work_pools/evals/workers/filter", limit=10)
    assert [one["status"] for one in workers] == ["ONLINE", "ONLINE"]


async def test_an_event_sent_to_the_other_server_fires_a_trigger(production: Production) -> None:
    start = await production.deployment("canary-start/start")
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "touchstone.release.candidate",
        "resource": {"prefect.resource.id": "touchstone.release.default"},
        "payload": {},
    }
    assert (await production.second.post("/events", json=[event])).status_code == 204

    async def started() -> Any:
        runs = await ask(production.first, "/flow_runs/filter", deployments={"id": {"any_": [start]}})
        return [run for run in runs if run["created_by"] and run["created_by"]["type"] == "AUTOMATION"]

    assert len(await until(started)) == 1
