"""What the stack on one machine consists of: its servers, its worker, and the steps between them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from tasks.health import LOOPBACK, Port, answers
from tasks.loading import load_bundle, load_deployments
from tasks.processes import Part
from tasks.stack_secrets import ensure_secrets
from tasks.tracking_address import is_http, tracking_uri
from touchstone.errors import BadInput, TouchstoneError
from touchstone.settings import Settings

VENDOR_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AZURE_API_KEY")
_RUNS_AT_ONCE = "4"  # of flows, per worker: each is a Python process of some 200 MB


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, on loopback."""

    prefect: int = 4200
    mlflow: int = 5000
    gateway: int = 8700
    emulator: int = 4010


@dataclass(frozen=True)
class Plan:
    """What is started, where, and what a user's shell needs to know. `own` are servers that run already."""

    parts: tuple[Part, ...]
    ports: tuple[Port, ...]
    exports: dict[str, str]
    own: dict[str, str]
    addresses: dict[str, str]


def plan_stack(settings: Settings, ports: Ports, *, emulator: bool | None = None) -> Plan:
    """Raises BadInput for a project that cannot be deployed, before anything is started."""
    pools = _pools(settings)
    emulator = emulated_vendor(settings) is not None if emulator is None else emulator
    prefect_api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    own = {"prefect": prefect_api} if prefect_api else {}
    if is_http(mlflow := tracking_uri(settings)):
        own["mlflow"] = mlflow
    exports = {
        "PREFECT_API_URL": prefect_api or f"http://{LOOPBACK}:{ports.prefect}/api",
        "MLFLOW_TRACKING_URI": own.get("mlflow") or f"http://{LOOPBACK}:{ports.mlflow}",
        "TOUCHSTONE_GATEWAY_URL": f"http://{LOOPBACK}:{ports.gateway}",
    }
    links = {
        "TOUCHSTONE_MLFLOW_TRACKING_URI": exports["MLFLOW_TRACKING_URI"],  # the file may name the store itself
        "TOUCHSTONE_PREFECT_UI_URL": settings.prefect_ui_url or exports["PREFECT_API_URL"].removesuffix("/api"),
        "TOUCHSTONE_MLFLOW_UI_URL": settings.mlflow_ui_url or exports["MLFLOW_TRACKING_URI"],
    }
    secrets = ensure_secrets(settings.state, os.environ)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **secrets, **exports, **links}
    if not prefect_api:
        environment["PREFECT_HOME"] = str((settings.state / "prefect").absolute())
    parts = [
        *([] if prefect_api else [_prefect(environment, ports.prefect)]),
        *([] if "mlflow" in own else [_mlflow(environment, settings, mlflow, ports.mlflow)]),
        *([_emulator(environment, ports.emulator)] if emulator else []),
        _gateway(environment, ports.gateway),
    ]
    servers = tuple(part.name for part in parts)
    parts += [_deploy(environment, servers)]
    if any(source.kind == "mlflow" for source in settings.webhooks.sources.values()):
        parts += [_mlflow_webhook(environment, servers)]
    parts += [_worker(environment, pool, alone=len(pools) == 1) for pool in pools]
    known = {
        "prefect": Port(ports.prefect, "the Prefect server", "another Prefect server", "--prefect-port"),
        "mlflow": Port(ports.mlflow, "MLflow", "another MLflow server, or AirPlay on a Mac", "--mlflow-port"),
        "gateway": Port(ports.gateway, "the gateway", "another `touchstone gateway serve`", "--gateway-port"),
        "emulator": Port(ports.emulator, "the emulator", "another `touchstone emulator serve`", "--emulator-port"),
    }
    addresses = {**own, **{part.name: part.address for part in parts if part.address}}
    return Plan(tuple(parts), tuple(known[name] for name in servers), exports, own, addresses)


def emulated_vendor(settings: Settings) -> int | None:
    """The port of the emulator that scheduled evals call; None when they call no vendor here, or a key is set."""
    if any(os.environ.get(name) for name in VENDOR_KEYS):
        return None
    for suite in load_deployments(settings.root).suites():
        try:
            bundle = load_bundle(settings.root, suite.bundle)
        except TouchstoneError:
            continue  # its eval will say so
        for endpoint in (bundle.endpoint if bundle.model else None, bundle.judge):
            if endpoint and endpoint.is_local and endpoint.api_base:
                return urlsplit(endpoint.api_base).port or 80
    return None


def _pools(settings: Settings) -> list[str]:
    pools = list(dict.fromkeys(one.work_pool.name for one in load_deployments(settings.root).deployments))
    if not pools:
        raise BadInput(f"{settings.root / 'prefect.yaml'}: field deployments: there are none")
    return pools


def _ours(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "cli.main", *arguments)


def _module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _health(url: str) -> Callable[[], Awaitable[bool]]:
    return lambda: answers(url)


def _prefect(environment: dict[str, str], port: int) -> Part:
    return Part(
        "prefect",
        _module("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        environment,
        _health(f"http://{LOOPBACK}:{port}/api/health"),
        address=f"http://{LOOPBACK}:{port}",
    )


def _mlflow(environment: dict[str, str], settings: Settings, store: str, port: int) -> Part:
    """On the store of the embedded default, which nobody else opens while the server has it."""
    artifacts = settings.state.absolute() / "mlartifacts"
    options = ("--backend-store-uri", store, "--artifacts-destination", str(artifacts))
    listens = ("--host", LOOPBACK, "--port", str(port), "--workers", "1")
    own = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_URI"}  # it would ask itself
    webhooks = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job workers take longer to start than all the rest
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",  # the gateway is on loopback
    }
    return Part(
        "mlflow",
        _module("mlflow", "server", *options, *listens),
        own | webhooks,
        _health(f"http://{LOOPBACK}:{port}/health"),
        address=f"http://{LOOPBACK}:{port}",
    )


def _emulator(environment: dict[str, str], port: int) -> Part:
    return Part(
        "emulator",
        _ours("emulator", "serve", "--port", str(port), "--seed", "7"),
        environment,
        _health(f"http://{LOOPBACK}:{port}/control/state"),
        address=f"http://{LOOPBACK}:{port}",
    )


def _gateway(environment: dict[str, str], port: int) -> Part:
    return Part(
        "gateway",
        _ours("gateway", "serve", "--port", str(port)),
        environment,
        _health(f"http://{LOOPBACK}:{port}/health"),
        address=f"http://{LOOPBACK}:{port}",
    )


def _deploy(environment: dict[str, str], servers: tuple[str, ...]) -> Part:
    """Asks the gateway for nothing, but Prefect may send to it as soon as it is done."""
    after = tuple(name for name in servers if name in ("prefect", "gateway"))
    return Part("deploy", _ours("deploy"), environment, after=after)


def _mlflow_webhook(environment: dict[str, str], servers: tuple[str, ...]) -> Part:
    after = tuple(name for name in servers if name in ("mlflow", "gateway"))
    return Part("webhook", _ours("connect", "mlflow"), environment, after=after)


def _worker(environment: dict[str, str], pool: str, *, alone: bool) -> Part:
    """After `deploy`, which makes its pool. Its end comes first, so that runs finish or are marked."""
    name = f"up-{socket.gethostname()}"
    options = ("--pool", pool, "--type", "process", "--name", name, "--limit", _RUNS_AT_ONCE)
    return Part(
        "worker" if alone else f"worker-{pool}",
        _module("prefect", "worker", "start", *options),
        environment,
        _worker_is_online(environment, pool, name, datetime.now(UTC)),
        after=("deploy",),
        children_first=True,
    )


def _worker_is_online(
    environment: dict[str, str], pool: str, name: str, since: datetime
) -> Callable[[], Awaitable[bool]]:
    """Seen by Prefect since the start; one of that name may be online from before."""
    url = f"{environment['PREFECT_API_URL']}/work_pools/{pool}/workers/filter"

    async def online() -> bool:
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False, **prefect_login(environment)) as client:
                answer = await client.post(url, json={"workers": {"status": {"any_": ["ONLINE"]}}})
            workers = answer.json() if answer.status_code == 200 else []
        except (httpx.HTTPError, ValueError):
            return False
        return any(
            one["name"] == name and datetime.fromisoformat(one["last_heartbeat_time"]) >= since for one in workers
        )

    return online


def prefect_login(environment: dict[str, str]) -> dict[str, Any]:
    """What httpx needs to be let in by a server with PREFECT_SERVER_API_AUTH_STRING."""
    user, _, password = environment.get("PREFECT_API_AUTH_STRING", "").partition(":")
    key = environment.get("PREFECT_API_KEY", "")
    return {"headers": {"Authorization": f"Bearer {key}"} if key else {}, "auth": (user, password) if user else None}
