"""Webhooks become flow runs of a real Prefect server: at once, once, also through an outage of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.gateway_kills import kill
from benchmarks.gateway_site import Sender, Site
from gateway.dispatch import Dispatcher, Doers
from tasks.inbox import WebhookInbox
from tasks.prefect_api import PrefectApi
from tests.tasks import prefect_site
from touchstone.errors import BadInput
from touchstone.inbox import HookStatus, InboxRow
from touchstone.webhooks import Action, Hook

SCHEMA = {"type": "object", "properties": {"repeats": {"type": "integer"}, "event": {"type": "object"}}}


class Prefect:
    """A server that can be stopped and started again on the same port and database."""

    def __init__(self, home: Path) -> None:
        self._home, self._server = home, None
        self.url = ""
        self.start()

    def start(self) -> None:
        self._server = prefect_site.prefect_server(self._home)
        self.url = self._server.__enter__()

    def stop(self) -> None:
        assert self._server is not None
        self._server.__exit__(None, None, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        for _ in range(30):  # SQLite behind a server that just started answers 503 now and then
            answer = httpx.post(f"{self.url}{path}", json=body, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(0.3)
        return answer.raise_for_status().json()

    def runs(self, **parameters: Any) -> list[dict[str, Any]]:
        found = self.post("/flow_runs/filter", {"limit": 200})
        return [run for run in found if run["parameters"] == parameters]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    server = Prefect(tmp_path_factory.mktemp("prefect"))
    flow_id = server.post("/flows/", {"name": "hooked"})["id"]
    for name in ("one", "two"):
        body = {"name": name, "flow_id": flow_id, "parameter_openapi_schema": SCHEMA, "enforce_parameter_schema": True}
        server.post("/deployments/", body)
    broken = {"type": "object", "properties": {"event": {"type": "string", "pattern": "("}}}
    server.post("/deployments/", {"name": "broken", "flow_id": flow_id, "parameter_openapi_schema": broken})
    server.post("/deployments/", {"name": "odd na?me#1", "flow_id": flow_id, "parameter_openapi_schema": SCHEMA})
    yield server
    server.stop()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[WebhookInbox]:
    with closing(WebhookInbox(f"sqlite:///{tmp_path / 'inbox.db'}")) as opened:
        yield opened


def put(inbox: WebhookInbox, id: str, *actions: Action) -> None:
    at = datetime.now(UTC).isoformat()
    asyncio.run(inbox.put(Hook(id=id, source="github", event="push", received_at=at, actions=actions)))


def run(deployment: str, **parameters: Any) -> Action:
    return Action(kind="run", target=deployment, parameters=parameters)


@contextmanager
def dispatching(prefect: Prefect, inbox: WebhookInbox, seconds: float = 30) -> Iterator[None]:
    """A dispatcher that works until nothing waits, after the body."""
    yield

    async def main() -> None:
        api = PrefectApi(prefect.url)

        async def no_alarm(name: str, facts: Any) -> str:
            raise AssertionError(name)

        dispatcher = Dispatcher(inbox, Doers(api.create_run, api.emit, no_alarm))
        working = asyncio.create_task(dispatcher.work())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while HookStatus.WAITING in inbox.counted():  # noqa: ASYNC110  (what is waited for is on disk)
                    await asyncio.sleep(0.02)
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        await api.close()

    asyncio.run(main())


def row(inbox: WebhookInbox, id: str) -> InboxRow:
    return next(found for found in inbox.listed() if found.hook.id == id)


def test_a_run_is_created_and_a_second_delivery_makes_no_other(
    prefect: Prefect, inbox: WebhookInbox, tmp_path: Path
) -> None:
    with dispatching(prefect, inbox):
        put(inbox, "first", run("hooked/one", event={"n": 1}), run("hooked/two", event={"n": 1}))
    assert row(inbox, "first").status is HookStatus.DONE
    assert len(prefect.runs(event={"n": 1})) == 2  # one of each deployment, though they are of one flow

    with closing(WebhookInbox(f"sqlite:///{tmp_path / 'lost.db'}")) as other, dispatching(prefect, other):
        put(other, "first", run("hooked/one", event={"n": 1}), run("hooked/two", event={"n": 1}))
    assert len(prefect.runs(event={"n": 1})) == 2


def test_what_prefect_does_not_take_is_failed_and_named(prefect: Prefect, inbox: WebhookInbox) -> None:
    template = {"__prefect_kind": "jinja", "template": "{{ 1 }}"}
    with dispatching(prefect, inbox):
        put(inbox, "gone", run("hooked/nowhere"))
        put(inbox, "wrong", run("hooked/one", repeats="many"))
        put(inbox, "code", run("hooked/one", event={"deep": [template]}))
    assert {row(inbox, id).status for id in ("gone", "wrong", "code")} == {HookStatus.FAILED}
    assert "Prefect has no deployment hooked/nowhere: correct `run`" in row(inbox, "gone").outcomes[0]
    assert "hooked/one: Prefect refuses the run: " in row(inbox, "wrong").outcomes[0]
    assert "Validation failed for field 'repeats'" in row(inbox, "wrong").outcomes[0]
    assert "holds __prefect_kind, which Prefect would evaluate" in row(inbox, "code").outcomes[0]


def test_a_deployment_that_prefect_breaks_on_holds_up_no_others(prefect: Prefect, inbox: WebhookInbox) -> None:
    with dispatching(prefect, inbox, seconds=4):
        for number in range(6):
            put(inbox, f"broken-{number}", run("hooked/broken", event="x"))
        put(inbox, "sound", run("hooked/one", event={"sound": 1}))
    assert row(inbox, "sound").status is HookStatus.DONE
    assert inbox.counted() == {HookStatus.WAITING: 6, HookStatus.DONE: 1}


def test_a_deployment_is_found_by_whatever_name_prefect_lets_it_have(prefect: Prefect) -> None:
    async def main() -> str:
        api = PrefectApi(prefect.url)
        try:
            return await api.create_run("hooked/odd na?me#1", {}, "odd:1")
        finally:
            await api.close()

    assert asyncio.run(main())


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/api", "127.0.0.1:4200/api", "ftp://here/api", "http://"])
def test_an_address_that_is_none_is_told_with_its_setting(url: str) -> None:
    with pytest.raises(BadInput, match="PREFECT_API_URL: no http"):
        PrefectApi(url)


def test_an_event_is_sent_once(prefect: Prefect, inbox: WebhookInbox) -> None:
    event = Action(kind="emit", target="my.event", resource="my.thing", parameters={"n": 3})
    with dispatching(prefect, inbox):
        put(inbox, "event", event)
    assert row(inbox, "event").outcomes == ("my.event: sent",)

    def seen() -> list[dict[str, Any]]:
        wanted = {"filter": {"event": {"name": ["my.event"]}}, "limit": 10}
        return prefect.post("/events/filter", wanted)["events"]

    [found] = prefect_site.wait_for(seen, 20)
    assert (found["resource"]["prefect.resource.id"], found["payload"]) == ("my.thing", {"n": 3})


def test_kills_of_the_gateway_lose_nothing_that_was_acknowledged_and_run_nothing_twice(
    prefect: Prefect, tmp_path: Path
) -> None:
    """A short form of benchmarks/gateway_kills.py."""
    site = Site(tmp_path, api=prefect.url)
    sender = Sender(site, per_second=15)
    try:
        site.start()
        sender.start()
        kill(site, 3, random.Random(1))
        sender.stop()
        prefect_site.wait_for(lambda: site.waiting() == 0, 60)
    finally:
        sender.stop()
        site.stop()
    runs = {number: len(found) for number, found in site.runs().items()}
    assert len(sender.acknowledged) > 20
    assert {number: runs.get(number, 0) for number in sender.acknowledged} == dict.fromkeys(sender.acknowledged, 1)
    assert set(runs.values()) == {1}


def test_through_an_outage_what_waits_is_delivered_once(prefect: Prefect, inbox: WebhookInbox) -> None:
    prefect.stop()
    with dispatching(prefect, inbox, seconds=3):
        for number in range(8):
            put(inbox, f"outage-{number}", run("hooked/one", event={"outage": number}))
    assert inbox.counted() == {HookStatus.WAITING: 8}
    assert row(inbox, "outage-0").attempts > 0
    prefect.start()
    with dispatching(prefect, inbox, seconds=60):
        pass
    assert inbox.counted() == {HookStatus.DONE: 8}
    assert [len(prefect.runs(event={"outage": number})) for number in range(8)] == [1] * 8
