"""A Prefect server of a test's own, and a project that is deployed to it."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """`prefect server start` on SQLite; yields its API's address."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: _answers(f"{url}/health"), 120)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """What `condition` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


class Receiver:
    """Keeps what is posted to it, as the gateway would be sent it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                heard.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(202)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, alarm: str) -> list[dict[str, Any]]:
        return [body for _, _, body in self.heard if body["alarm"] == alarm]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class DeploySite:
    """The project's prefect.yaml and touchstone.yaml in a folder, to be edited."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefect = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        self.touchstone = yaml.safe_load((ROOT / "touchstone.yaml").read_text())
        self._shipped = deepcopy((self.prefect, self.touchstone))
        self.write()

    def reset(self) -> None:
        self.prefect, self.touchstone = deepcopy(self._shipped)
        self.write()

    def write(self) -> None:
        (self.root / "prefect.yaml").write_text(yaml.safe_dump(self.prefect, sort_keys=False))
        (self.root / "touchstone.yaml").write_text(yaml.safe_dump(self.touchstone, sort_keys=False))

    def entry(self, full_name: str) -> dict[str, Any]:
        """By FLOW/NAME."""
        return next(
            one
            for one in self.prefect["deployments"]
            if f"{one['entrypoint'].split('.')[-1].replace('_', '-')}/{one['name']}" == full_name
        )
