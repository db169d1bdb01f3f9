"""Follows the gateway: polls the release state, and keeps the last good one while the gateway is away."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import httpx
from pydantic import ValidationError

from touchstone.errors import Unmeasurable
from touchstone.routing import PublishedRelease

_log = logging.getLogger("touchstone")


class ReleaseClient:
    """What an environment serves, at most `poll_s` behind the gateway. Polls from a thread of its own."""

    def __init__(self, gateway: str, environment: str, poll_s: float = 0.3) -> None:
        self._path = f"/releases/{environment}"
        self._environment = environment
        self._gateway = gateway
        self._poll_s = poll_s
        self._http = httpx.Client(base_url=gateway, timeout=2.0)
        self._release: PublishedRelease | None = None
        self._etag = ""
        self._confirmed_at = 0.0  # when the gateway last said what is served
        self._error = "not asked yet"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="release client", daemon=True)

    def start(self) -> None:
        """One poll at once, so that the first request finds a state; then in the background."""
        self._poll()
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._http.close()

    def current(self) -> PublishedRelease:
        """The last good state. Raises Unmeasurable when there was none yet."""
        if self._release is None:
            raise Unmeasurable(f"no release state of {self._environment} from {self._gateway} yet: {self._error}")
        return self._release

    def report(self) -> dict[str, Any]:
        """What is served by, and whether the gateway still says so."""
        release = self._release
        return {
            "environment": self._environment,
            "sequence": release.sequence if release else None,
            "champion": release.champion.bundle if release and release.champion else None,
            "canary": release.canary.served.bundle if release and release.canary else None,
            "gateway": "away" if self._error else "ok",
            "confirmed_s_ago": round(time.monotonic() - self._confirmed_at, 1) if self._confirmed_at else None,
            "error": self._error,
        }

    def _run(self) -> None:
        while not self._closing.wait(self._poll_s):
            self._poll()

    def _poll(self) -> None:
        try:
            answer = self._http.get(self._path, headers={"If-None-Match": self._etag} if self._etag else {})
            if answer.status_code == 304:
                self._confirm()
            elif answer.status_code == 200:
                self._release = PublishedRelease.model_validate_json(answer.content)
                self._etag = answer.headers["etag"]
                self._confirm()
            else:
                self._keep(f"{answer.status_code}: {answer.text[:200]}")
        except (httpx.HTTPError, ValidationError, KeyError) as error:
            self._keep(f"{type(error).__name__}: {error}")

    def _confirm(self) -> None:
        if self._error and self._confirmed_at:
            _log.info("gateway %s is back", self._gateway)
        self._error, self._confirmed_at = "", time.monotonic()

    def _keep(self, error: str) -> None:
        if not self._error:  # once per outage
            _log.warning("gateway %s: %s; serving the last good state on", self._gateway, error)
        self._error = error
