"""What the gateway's soaks share: Prefect, a deployment without a worker, the gateway as users run it, a sender."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import yaml

from tasks.webhook_senders import signed_headers
from touchstone.webhooks import Source

SECRET = "a-secret-of-benchmarks"
DEPLOYMENT = "hooked/soak"
SOURCE = Source(kind="github", secret_env="SOAK_SECRET")
RULE = {"source": "github", "run": DEPLOYMENT, "parameters": {"event": {"number": "${payload.number}"}}}
SCHEMA = {"type": "object", "properties": {"event": {"type": "object"}}}


class Server:
    """A process that answers at an address, started, stopped and killed."""

    def __init__(self, command: list[str], health: str, folder: Path, environment: dict[str, str]) -> None:
        self._command, self._health, self._folder = command, health, folder
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / f"{self._command[2]}.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )
        wait_for(lambda: answers(self._health), 180)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


class Site:
    """Prefect and the gateway, each a process of its own, on a folder of their own.

    `database`: an empty one for Prefect, as postgresql+asyncpg://USER@HOST/NAME; else SQLite. `api`: of a Prefect that
    somebody else has started.
    """

    def __init__(self, folder: Path, database: str = "", api: str = "") -> None:
        self.folder, ports = folder, (free_port(), free_port())
        self.api = api or f"http://127.0.0.1:{ports[0]}/api"
        self.url = f"http://127.0.0.1:{ports[1]}"
        (folder / "touchstone.yaml").write_text(
            yaml.safe_dump({"webhooks": {"sources": {"github": SOURCE.model_dump(mode="json")}, "rules": [RULE]}})
        )
        (folder / "prefect.yaml").write_text("name: soak\ndeployments: []\n")
        home = {"PREFECT_HOME": str(folder / "prefect"), "SOAK_SECRET": SECRET}
        if database:
            home["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
        server = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports[0])]
        self._has_prefect = bool(api)
        self.prefect = Server(server, f"{self.api}/health", folder, home)
        gateway = ["-m", "cli.main", "gateway", "serve", "--port", str(ports[1])]
        paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "PREFECT_API_URL": self.api}
        self.gateway = Server(gateway, f"{self.url}/health", folder, home | paths)

    def start(self) -> None:
        if not self._has_prefect:
            self.prefect.start()
        flow, name = DEPLOYMENT.split("/")
        flow_id = self._made("/flows/", {"name": flow})
        self._made("/deployments/", {"name": name, "flow_id": flow_id, "parameter_openapi_schema": SCHEMA})
        self.gateway.start()

    def stop(self) -> None:
        self.gateway.stop()
        self.prefect.stop()

    def _made(self, path: str, body: dict[str, Any]) -> str:
        """Its id. A Prefect that just started is busy with its own tables, and says 503."""
        for _ in range(20):
            answer = httpx.post(f"{self.api}{path}", json=body, timeout=60)
            if answer.status_code != 503:
                break
            time.sleep(0.5)
        return answer.raise_for_status().json()["id"]

    def waiting(self) -> int:
        """Webhooks that are not settled."""
        found = httpx.get(f"{self.url}/hooks/inbox", params={"status": "waiting", "limit": 500}, timeout=60)
        return len(found.raise_for_status().json()["rows"])

    def runs(self) -> dict[int, list[dict[str, Any]]]:
        """Flow runs by the number that their webhook had."""
        found: dict[int, list[dict[str, Any]]] = {}
        ours = {"deployments": {"name": {"any_": [DEPLOYMENT.split("/")[1]]}}, "limit": 200, "sort": "ID_DESC"}
        with httpx.Client(base_url=self.api, timeout=60) as http:
            offset = 0
            while page := http.post("/flow_runs/filter", json=ours | {"offset": offset}).json():
                offset += len(page)
                for run in page:
                    found.setdefault(run["parameters"]["event"]["number"], []).append(run)
        return found


class Sender:
    """Sends numbered webhooks at a pace; one that is not acknowledged is sent again, as senders do, a few times."""

    def __init__(self, site: Site, per_second: float, first: int = 0, threads: int = 4) -> None:
        self._site, self._pause = site, threads / per_second
        self._numbers, self._lock, self._over = count(first), threading.Lock(), threading.Event()
        self.acknowledged: dict[int, float] = {}  # number -> Unix time of the acknowledgement
        self.answers: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(60)

    def _send(self) -> None:
        with httpx.Client(base_url=self._site.url, timeout=15) as http:
            while not self._over.is_set():
                began = time.monotonic()
                with self._lock:
                    number = next(self._numbers)
                for _ in range(5):
                    if self._sent(http, number):
                        break
                    self._over.wait(0.5)
                self._over.wait(max(0.0, self._pause - (time.monotonic() - began)))

    def _sent(self, http: httpx.Client, number: int) -> bool:
        body = json.dumps({"number": number}).encode()
        headers = signed_headers(SOURCE, SECRET, body, str(number), "push", time.time())
        try:
            answer = http.post("/hooks/github", content=body, headers=headers | {"content-type": "application/json"})
        except httpx.HTTPError:
            return False
        self.answers[answer.status_code] += 1
        if answer.is_success:
            self.acknowledged.setdefault(number, time.time())
        return answer.is_success


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it was true."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)
    return time.monotonic() - began


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).is_success
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
