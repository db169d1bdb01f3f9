"""The gateway over real HTTP on a real ledger: cheap to poll, and a roll-back is served at once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.releases import Releases
from gateway.server import running
from tasks.ledger import Ledger
from tasks.published import PublishedReleases
from tests.gateway.release_line import ReleaseLine, prompt_definition
from touchstone.errors import Unmeasurable
from touchstone.ledger import EventKind
from touchstone.routing import PublishedRelease, route
from touchstone.settings import Settings

OLD, NEW = prompt_definition("old"), prompt_definition("new", "1.1.0")


class Site:
    """A gateway on a ledger, and a count of what it asks of the ledger."""

    def __init__(self, settings: Settings) -> None:
        self.published = PublishedReleases(settings)
        self.ledger = Ledger(settings.ledger, settings.environment)
        self.line = ReleaseLine(self.ledger)
        self.looks, self.reads = 0, 0
        self.is_down = False
        self.app = create_app(Releases(self._newest, self._read), lambda: self._newest(settings.environment))
        self.http: httpx.Client

    def _newest(self, environment: str) -> int:
        self.looks += 1
        if self.is_down:
            raise Unmeasurable("the ledger cannot be read: away")
        return self.published.newest(environment)

    def _read(self, environment: str) -> PublishedRelease | None:
        self.reads += 1
        return self.published.read(environment)

    def get(self, path: str = "/releases/default", **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def release(self) -> PublishedRelease:
        return PublishedRelease.model_validate(self.get().json())

    def until(self, holds: Any, seconds: float = 10) -> float:
        """Seconds until `holds(release)`."""
        started = time.monotonic()
        while not holds(self.release()):
            assert time.monotonic() - started < seconds
        return time.monotonic() - started


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(Settings(root=tmp_path))
    with running(found.app) as url, httpx.Client(base_url=url) as found.http:
        yield found
    found.published.close()
    found.ledger.close()


def test_what_is_served_comes_with_its_whole_definition(site: Site) -> None:
    site.line.promote(OLD)
    site.line.canary(NEW)
    release = site.release()
    assert release.champion
    assert release.champion.definition == OLD
    assert release.canary
    assert (release.canary.canary_id, release.canary.share, release.canary.status) == ("c-1", 0.25, "running")
    assert release.canary.served.definition == NEW
    assert (release.promoted_by, release.environment) == ("ann", "default")


def test_an_unchanged_release_is_a_304_and_costs_at_most_one_look(site: Site) -> None:
    site.line.promote(OLD)
    first = site.get()
    etag = first.headers["etag"]
    assert etag.startswith('"')
    site.looks = site.reads = 0
    for _ in range(20):
        again = site.get(**{"If-None-Match": f'"other", {etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert site.looks <= 20
    assert site.reads == 0


def test_the_etag_changes_with_what_is_served_and_not_with_other_events(site: Site) -> None:
    site.line.promote(OLD)
    before = site.get().headers["etag"]
    site.ledger.append(EventKind.EVAL_DECIDED, "support", {"verdict": "stable"})
    time.sleep(0.15)
    assert site.get().headers["etag"] == before
    site.line.canary(NEW)
    site.until(lambda release: release.canary)
    assert site.get().headers["etag"] != before


def test_a_roll_back_takes_effect_within_a_second(site: Site) -> None:
    site.line.promote(OLD)
    site.line.promote(NEW)
    assert site.until(lambda release: release.champion.bundle == "new") < 1
    site.line.roll_back()
    assert site.until(lambda release: release.champion.bundle == "old") < 1


def test_a_canary_that_is_rolled_back_is_gone_within_a_second(site: Site) -> None:
    site.line.promote(OLD)
    site.line.canary(NEW)
    site.until(lambda release: release.canary)
    site.line.roll_back_canary()
    assert site.until(lambda release: release.canary is None) < 1


def test_the_route_endpoint_says_what_the_client_would(site: Site) -> None:
    site.line.promote(OLD)
    site.line.canary(NEW)
    site.line.widen()
    site.line.hold()
    release = site.release()
    arms = set()
    for n in range(20):
        found = site.http.get("/releases/default/route", params={"key": f"user-{n}"}).json()
        expected = route(release, f"user-{n}")
        assert (found["arm"], found["fingerprint"]) == (expected.arm, expected.fingerprint)
        arms.add(found["arm"])
    assert arms == {"champion", "canary"}


def test_an_environment_without_releases_is_a_404_that_says_what_to_do(site: Site) -> None:
    for path in ("/releases/staging", "/releases/staging/route?key=u"):
        answer = site.get(path)
        assert answer.status_code == 404
        assert "touchstone promote" in answer.json()["error"]


def test_a_candidate_without_a_champion_answers_nothing_yet(site: Site) -> None:
    site.line.candidate(NEW)
    assert site.release().champion is None
    answer = site.get("/releases/default/route?key=u")
    assert answer.status_code == 409
    assert "no champion" in answer.json()["error"]


def test_a_ledger_that_cannot_be_read_is_a_503_and_heals(site: Site) -> None:
    site.line.promote(OLD)
    assert site.get("/health").json() == {"status": "ok"}
    site.is_down = True
    time.sleep(0.15)
    for path in ("/releases/default", "/releases/default/route?key=u", "/health"):
        answer = site.get(path)
        assert answer.status_code == 503
        assert "away" in answer.json()["error"]
    site.is_down = False
    assert site.get().status_code == 200


def test_environments_are_served_apart(site: Site) -> None:
    site.line.promote(OLD)
    production = ReleaseLine(Ledger(f"sqlite:///{site.published._settings.state / 'ledger.db'}", "production"))
    production.promote(NEW)
    assert site.get("/releases/production").json()["champion"]["bundle"] == "new"
    assert site.release().champion.bundle == "old"  # pyright: ignore[reportOptionalMemberAccess]
    production.ledger.close()


def test_parity_is_passed_until_another_champion_comes(site: Site) -> None:
    other = prompt_definition("other", model="anthropic/extractive-20260115")
    site.line.promote(prompt_definition("old", fallbacks=("other", "third")))
    before = site.release()
    assert [(one.bundle, one.parity, one.served) for one in before.fallbacks] == [
        ("other", "missing", None),
        ("third", "missing", None),
    ]
    site.line.check_parity(other)
    assert site.until(lambda release: release.fallbacks[0].parity == "passed") < 1
    assert site.release().fallbacks[0].served.definition == other  # pyright: ignore[reportOptionalMemberAccess]
    site.line.promote(prompt_definition("newer", "1.2.0", fallbacks=("other",)))
    site.until(lambda release: release.champion.bundle == "newer")
    assert site.release().fallbacks[0].parity == "stale"
    site.line.check_parity(other, verdict="fail")
    site.until(lambda release: release.fallbacks[0].parity == "missing")


def test_no_secret_is_served_but_the_name_of_its_variable(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENDOR_KEY", "sk-verysecret1234567890")
    site.line.promote(prompt_definition("old", api_key_env="VENDOR_KEY"))
    text = site.get().text
    assert "VENDOR_KEY" in text
    assert "verysecret" not in text


def test_every_error_is_in_the_openapi_document(site: Site) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    assert set(paths["/releases/{environment}"]["get"]["responses"]) == {"200", "304", "404", "422", "503"}
    assert set(paths["/releases/{environment}/route"]["get"]["responses"]) == {"200", "404", "409", "422", "503"}
    assert set(paths["/health"]["get"]["responses"]) == {"200", "503"}
    schema = paths["/releases/{environment}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/PublishedRelease")


def test_a_bad_environment_or_a_missing_key_is_a_422(site: Site) -> None:
    assert site.get("/releases/no%20name").status_code == 422
    assert site.get("/releases/default/route").status_code == 422


def test_a_large_body_or_header_is_refused(site: Site) -> None:
    assert site.http.request("GET", "/releases/default", content=b"x" * 100_000).status_code == 413
    chunked = (b"x" * 10_000 for _ in range(10))
    assert site.http.request("GET", "/health", content=chunked).status_code in {200, 413}
    assert site.get("/health", **{"X-Big": "x" * 600_000}).status_code == 400


def test_a_request_that_never_ends_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.HEADER_DEADLINE_S", 0.3)
    with socket.create_connection((site.http.base_url.host, site.http.base_url.port or 80), timeout=5) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(3):
            time.sleep(0.05)
            slow.sendall(b"X-Drip: 1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""


def test_the_command_says_where_it_serves_and_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    ledger = Ledger(settings.ledger, settings.environment)
    ReleaseLine(ledger).promote(OLD)
    ledger.close()
    command = [sys.executable, "-m", "cli.main", "gateway", "serve", "--port"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([*command, "0"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout
            url = serving.stdout.readline().split()[2]
            body = json.loads(httpx.get(f"{url}/releases/default").text)
            assert body["champion"]["bundle"] == "old"
            port = url.rpartition(":")[2]
            again = subprocess.run([*command, port], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert again.returncode == 2
            assert "is taken" in again.stderr
        finally:
            serving.terminate()
    assert serving.returncode in {0, -15}
