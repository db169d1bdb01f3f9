"""MLflow's webhook to the gateway is made once, follows its address, and brings what was made in MLflow."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from cryptography.fernet import Fernet
from standardwebhooks import Webhook

from tasks.loading import load_settings
from tasks.mlflow_webhooks import ensure_webhook
from tests.conftest import Project
from touchstone.errors import BadInput

SECRET = "a-secret-of-the-gateway"


# MLflow's own app in a process of its own: in ours it would lead MLflow's client around the server.
SERVER = """
from werkzeug.serving import make_server
from mlflow.server import app
listening = make_server("127.0.0.1", 0, app, threaded=True)
print(listening.server_port, flush=True)
listening.serve_forever()
"""


@pytest.fixture
def server(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """On the project's store, with what `touchstone up` sets for webhooks."""
    store = f"sqlite:///{project.state / 'mlflow.db'}"
    environment = {
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(project.root / "artifacts"),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    command = [sys.executable, "-c", SERVER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture
def received() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Where webhooks may be sent, and what came."""
    came: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(202)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{receiver.server_port}/hooks/mlflow", came
        receiver.shutdown()


def test_a_prompt_version_made_in_mlflow_arrives_signed(server: str, received: Any) -> None:
    url, came = received
    settings = load_settings()
    assert ensure_webhook(settings, "gateway", "http://127.0.0.1:9/hooks/mlflow", SECRET) == "made"
    assert ensure_webhook(settings, "gateway", url, SECRET) == "changed"
    assert ensure_webhook(settings, "gateway", url, SECRET) == "unchanged"
    client = mlflow.MlflowClient(server)
    assert [one.name for one in client.list_webhooks()] == ["gateway"]

    client.register_prompt("support", "Answer: {{question}}")
    ends = time.monotonic() + 20
    while not came:
        assert time.monotonic() < ends, "nothing came"
        time.sleep(0.1)
    headers, body = came[0]
    signed = {
        "webhook-id": headers["X-MLflow-Delivery-Id"],
        "webhook-timestamp": headers["X-MLflow-Timestamp"],
        "webhook-signature": headers["X-MLflow-Signature"],
    }
    payload = Webhook(SECRET.encode()).verify(body, signed)
    assert (payload["entity"], payload["action"]) == ("prompt_version", "created")
    assert payload["data"]["name"] == "support"


def test_an_embedded_store_sends_nothing_and_this_is_said(project: Project, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI: names no MLflow server"):
        ensure_webhook(load_settings(), "gateway", "http://127.0.0.1:9", SECRET)
