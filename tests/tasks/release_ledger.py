"""What tests of the outbox share: a release line in a real ledger, and a receiver that keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tasks.ledger import Ledger
from tests.core.release_line import Line
from touchstone.ledger import RELEASE_SUBJECT, EventKind
from touchstone.release import ReleaseState


class LedgerLine(Line):
    """The steps of a release, appended to a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def take(self, kind: EventKind, payload: dict[str, Any]) -> ReleaseState:
        self.events.append(self._ledger.append(kind, RELEASE_SUBJECT, payload))
        return self.state


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """An HTTP server that answers `status`; the next answers first take what is in `first`."""

    url: str = ""
    status: int = 200
    first: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    refused: int = 0

    def answer(self, request: Received) -> int:
        status = self.first.pop(0) if self.first else self.status
        if status < 300:
            self.received.append(request)
        else:
            self.refused += 1
        return status


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.answer(Received(self.path, headers, body)))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
