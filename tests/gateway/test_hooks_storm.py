"""Webhooks under attack, and what operators see: nothing forged gets in, slow callers shut nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth

from gateway.server import running
from tests.gateway.webhook_site import HookSite, hook_site, sign

TOKEN = {"Authorization": "Bearer operators-token"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HookSite]:
    with hook_site(tmp_path_factory.mktemp("hooks"), operator_token="operators-token") as found:
        yield found


def forgeries(n: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """(source, body, headers) of webhooks none of which may be taken."""
    chance = random.Random(7)
    for number in range(n):
        source = chance.choice(("standard", "github", "mlflow", "ci", "plain"))
        body = b'{"type": "prompt.changed", "n": %d}' % number
        right = sign(source, body, at=time.time() - chance.choice((0, 0, 7200)))
        kind = number % 4
        if kind == 0:
            yield source, body, sign(source, body, secret="whsec_bm90IHRoZSByaWdodCBzZWNyZXQgYXQgYWxs")
        elif kind == 1:
            yield source, body[:-1], right
        elif kind == 2:
            yield source, bytes(chance.randrange(256) for _ in range(40)), right
        else:
            name = next(name for name in right if "Signature" in name or "signature" in name)
            mangled = bytes(chance.randrange(33, 256) for _ in range(60)).decode("latin-1")
            yield source, body, right | {name: mangled.replace("\x7f", "")}


def test_none_of_a_thousand_forgeries_is_accepted_and_none_is_a_5xx(site: HookSite) -> None:
    async def storm() -> Counter[int]:
        statuses: Counter[int] = Counter()
        waiting = iter(list(forgeries(1000)))

        async def attack(client: httpx.AsyncClient) -> None:
            for source, body, headers in waiting:
                encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
                statuses[(await client.post(f"/hooks/{source}", content=body, headers=encoded)).status_code] += 1

        async with httpx.AsyncClient(base_url=site.url, timeout=30) as client:
            await asyncio.gather(*(attack(client) for _ in range(8)))
        return statuses

    kept = len(site.inbox.listed(limit=10_000))
    statuses = asyncio.run(storm())
    assert sum(statuses.values()) == 1000
    assert set(statuses) <= {400, 401}
    assert len(site.inbox.listed(limit=10_000)) == kept


def test_replays_with_fresh_ids_are_never_accepted_twice(site: HookSite) -> None:
    body = b'{"commits": [{"added": ["prompts/a.yaml"]}], "after": "1"}'
    answers = [site.post("github", body, delivery=f"fresh-{number}") for number in range(30)]
    assert Counter(answer.json()["status"] for answer in answers) == {"accepted": 1, "duplicate": 29}


def test_operators_see_the_inbox_with_their_token_only(site: HookSite) -> None:
    site.post("standard", {"type": "prompt.changed", "data": "seen"})
    assert site.http.get("/hooks/inbox").status_code == 401
    assert site.http.get("/hooks/inbox", headers={"Authorization": "Bearer wrong"}).status_code == 401
    rows = site.http.get("/hooks/inbox?status=waiting&source=standard&limit=1", headers=TOKEN).json()["rows"]
    assert [row["hook"]["actions"][0]["parameters"] for row in rows] == [{"data": "seen"}]
    assert site.http.get("/hooks/inbox?limit=0", headers=TOKEN).status_code == 422


def test_without_a_token_only_this_machine_sees_the_inbox(tmp_path: Path) -> None:
    with hook_site(tmp_path) as site:
        assert site.http.get("/hooks/inbox").status_code == 200
        through_a_proxy = site.http.get("/hooks/inbox", headers={"X-Forwarded-For": "203.0.113.7"})
        assert through_a_proxy.status_code == 403
        assert "TOUCHSTONE_GATEWAY_TOKEN" in through_a_proxy.json()["error"]


def test_metrics_count_by_source_and_reason_without_labels_of_strangers(site: HookSite) -> None:
    for path in ("stranger-one", "stranger-two"):
        site.post(path, {}, {})
    site.post("plain", {}, {})
    site.post("plain", {"type": "built", "data": "counted"})
    lines = site.http.get("/metrics").text.splitlines()
    assert not any("stranger" in line for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['touchstone_webhooks_total{outcome="refused",reason="source",source="unknown"}']) >= 2
    assert float(values['touchstone_webhooks_total{outcome="refused",reason="signature",source="plain"}']) >= 1
    assert float(values['touchstone_webhooks_total{outcome="accepted",reason="",source="plain"}']) == 1
    assert float(values['touchstone_inbox{status="waiting"}']) == site.inbox.counted()["waiting"]  # type: ignore[index]
    assert float(values["process_resident_memory_bytes"]) > 1e6


def test_the_openapi_document_has_every_answer(site: HookSite) -> None:
    document = site.http.get("/openapi.json").json()
    receive = document["paths"]["/hooks/{source}"]["post"]
    assert set(receive["responses"]) == {"200", "202", "400", "401", "404", "408", "413", "415", "429", "503"}
    assert {"X-Hub-Signature-256", "X-MLflow-Signature", "webhook-signature"} <= {
        parameter["name"] for parameter in receive["parameters"] if parameter["example"]
    }
    assert set(document["paths"]["/hooks/inbox"]["get"]["responses"]) == {"200", "401", "403", "422", "503"}


def test_schemathesis_finds_nothing(site: HookSite) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{site.url}/openapi.json", "--max-examples", "15"]
    options = ["--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color"]
    secret = ["--header", f"Authorization: {TOKEN['Authorization']}"]
    found = subprocess.run([*command, *options, *secret], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout[-3000:]
    assert "Tested: 6" in found.stdout


def test_schemathesis_finds_nothing_behind_the_signature(site: HookSite) -> None:
    schema = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
    statuses: Counter[int] = Counter()

    slow = [HealthCheck.too_slow]

    @settings(max_examples=50, database=None, deadline=None, derandomize=True, suppress_health_check=slow)
    @given(case=schema["/hooks/{source}"]["POST"].as_strategy())
    def check(case: Any) -> None:
        case.path_parameters["source"] = "prefect"
        answer = case.call_and_validate(headers=sign("prefect", b""), excluded_checks=[ignored_auth])
        statuses[answer.status_code] += 1

    check()
    assert statuses[202] > 3
    assert set(statuses) <= {200, 202, 400}


async def _not_found(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def _slow(url: str, begin: bytes, n: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    address = (httpx.URL(url).host, httpx.URL(url).port or 80)
    found = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(n)]
    for one in found:
        with contextlib.suppress(OSError):
            one.sendall(begin)
    return found


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"POST /hooks/github HTTP/1.1\r\nX-Slow: ",
        b"POST /hooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",  # answered, and then kept alive without a next request
    ],
    ids=["silent", "in the headers", "in the body", "between requests"],
)
def test_more_slow_callers_than_there_are_places_shut_nobody_out(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr("gateway.server._MOST_CONNECTIONS", 40)
    with running(_not_found) as url, contextlib.ExitStack() as stack:
        _slow(url, begin, 120, stack)
        for _ in range(3):
            _slow(url, begin, 10, stack)
            started = time.monotonic()
            assert httpx.get(url, timeout=5).status_code == 404
            assert time.monotonic() - started < 2


def test_a_pipelined_request_that_never_ends_is_cut_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.HEADER_DEADLINE_S", 0.5)
    with running(_not_found) as url, contextlib.ExitStack() as stack:
        two = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        [caller] = _slow(url, two, 1, stack)
        started, got = time.monotonic(), b""
        with contextlib.suppress(ConnectionResetError):
            while data := caller.recv(1000):
                got += data
        assert time.monotonic() - started < 4
        assert got.startswith(b"HTTP/1.1 404")
