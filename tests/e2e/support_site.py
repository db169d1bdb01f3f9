"""The support app as it runs: emulated vendors, a ledger, a gateway, MLflow on SQLite, all over real HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from examples.support_app.app import AppOptions, create_app
from gateway.app import create_app as create_gateway
from gateway.releases import Releases
from gateway.server import running
from tasks.ledger import Ledger
from tasks.plan import load_definition
from tasks.published import PublishedReleases
from tests.conftest import ROOT, Project, VendorControl
from tests.gateway.release_line import ReleaseLine
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.settings import Settings

FALLBACKS = ("support-app-anthropic", "support-app-gemini")
EXPERIMENT = "touchstone/traffic/default"


class SupportSite:
    """A project with the app's bundles on keyword search, which loads no model."""

    def __init__(self, project: Project, vendor: VendorControl) -> None:
        self.vendor = vendor
        self.settings = Settings(root=project.root)
        for path in (ROOT / "examples/support_app/bundles").glob("*.yaml"):
            text = path.read_text().replace("http://127.0.0.1:4010", vendor.url)
            project.write(
                f"bundles/{path.name}",
                text.replace("retrieval: support@1.0.0", "retrieval: support-fast"),
            )
        self.ledger = Ledger(self.settings.ledger, self.settings.environment)
        self.line = ReleaseLine(self.ledger)
        self.published = PublishedReleases(self.settings)
        self._gateway: contextlib.ExitStack | None = None
        self.gateway_url = ""
        self.http: httpx.Client

    def definition(self, bundle: str = "support-app", **changes: Any) -> Definition:
        """A bundle's, with fields of the bundle changed."""
        found = load_definition(self.settings, bundle)
        return found.model_copy(update={"bundle": Bundle.model_validate(found.bundle.model_dump() | changes)})

    def promote(self, *parity: str) -> None:
        """The app's bundle serves; the gate has passed these fall-backs."""
        self.line.promote(self.definition())
        for name in parity:
            self.line.check_parity(self.definition(name))

    def start_gateway(self, port: int = 0) -> None:
        self._gateway = contextlib.ExitStack()
        app = create_gateway(Releases(self.published.newest, self.published.read), lambda: None)
        self.gateway_url = self._gateway.enter_context(running(app, port=port))

    def stop_gateway(self) -> None:
        assert self._gateway
        self._gateway.close()

    @contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        """The app, until the block ends: all its traces are sent then."""
        failover = {"threshold": 2, "cool_down_s": 0.3, **options.pop("failover", {})}
        app = create_app(AppOptions(self.settings, self.gateway_url, poll_s=0.1, failover=failover, **options))
        with running(app) as self.app_url, httpx.Client(base_url=self.app_url, timeout=30) as self.http:
            yield

    def ask(self, question: str = "Within how many days can Pro subscriptions be refunded?", key: str = "u") -> Any:
        answer = self.http.post("/ask", json={"question": question, "key": key, "segment": "billing"})
        return answer.json() | {"status": answer.status_code}

    def until(self, holds: Callable[[], Any], seconds: float = 20) -> None:
        ends = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < ends, "it never came"
            threading.Event().wait(0.05)

    def traces(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.settings.state / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return list(client.search_traces(locations=[experiment.experiment_id], max_results=500)) if experiment else []

    def down(self, *models: str) -> None:
        self.vendor.put("faults", [{"kind": "server_error", "models": list(models)}])

    def close(self) -> None:
        if self._gateway:
            self._gateway.close()
        self.published.close()
        self.ledger.close()
