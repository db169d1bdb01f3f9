"""Release events as Prefect's API takes them: whole, flat, with an id that a repetition keeps."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.ledger import Ledger
from tasks.outbox import deliver, standings
from tests.core.release_line import deployment, without_canary
from tests.tasks.release_ledger import LedgerLine, Receiver, receiving
from touchstone.ledger import EventKind, gate_subject
from touchstone.release_news import News
from touchstone.settings import Settings

GATE = {
    "gate_key": "gate-new",
    "bundle": "new",
    "fingerprint": "f",
    "against": None,
    "verdict": "fail",
    "reason": "worse by 0.1",
    "changed": ["prompt"],
    "role": "candidate",
    "run_keys": ["new-run", "champion-run"],
    "dataset": "support",
    "dataset_digest": "d",
    "by": "ci",
}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """What answers as Prefect's API does, and keeps what it was sent."""
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with receiving() as receiver:
        receiver.status = 204
        monkeypatch.setenv("PREFECT_API_URL", f"{receiver.url}/api")
        yield receiver


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(root=tmp_path, mlflow_tracking_uri="http://127.0.0.1:9")


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.ledger, "default")
    yield ledger
    ledger.close()


def events(api: Receiver) -> list[dict[str, Any]]:
    assert all(request.path == "/api/events" for request in api.received)
    return [event for request in api.received for event in request.json]


def test_each_step_is_an_event_with_a_whole_and_flat_payload(settings: Settings, ledger: Ledger, api: Receiver) -> None:
    line = LedgerLine(ledger)
    line.release("old")
    ledger.append(EventKind.GATE_DECIDED, gate_subject("new"), GATE)
    line.candidate(deployment("new"))
    for step in (line.canary, line.widen, line.hold, line.graduate, line.ask):
        step()
    line.give("Ada")  # an approval is told by what follows from it
    line.promote()
    line.roll_back()
    line.candidate(deployment("third"))
    line.canary("canary-2")
    line.stop()
    line.candidate(deployment("fourth", **without_canary()))
    line.ask("approval-2")
    line.give("Ada", "deny", approval_id="approval-2")
    deliver(settings, ledger)
    sent = events(api)
    assert [event["event"].removeprefix("touchstone.") for event in sent] == [
        *("release.candidate", "release.promoted", "gate.decided", "release.candidate"),
        *("release.canary", "release.canary", "release.held", "release.graduated", "approval.asked"),
        *("release.promoted", "release.rolled_back", "release.candidate", "release.canary", "release.stopped"),
        *("release.candidate", "approval.asked", "release.denied"),
    ]
    from prefect.events import Event

    keys = {*News.model_fields, "mlflow_url", "mlflow_compare_url", "prefect_url"}
    for event in sent:
        Event.model_validate(event)
        assert set(event["payload"]) == keys
        assert not any(isinstance(value, dict) for value in event["payload"].values())
        assert event["payload"]["bundle"]
        assert event["resource"]["prefect.resource.id"] == "touchstone.release.default"


def test_a_payload_says_what_a_trigger_needs(settings: Settings, ledger: Ledger, api: Receiver) -> None:
    line = LedgerLine(ledger)
    line.release("old")
    line.candidate(deployment("new", approval={"owner": "Grace", "approvers": ["Ada", "Grace"]}))
    line.canary()
    ledger.append(EventKind.GATE_DECIDED, gate_subject("new"), GATE)
    line.graduate()
    line.ask()
    deliver(settings, ledger)
    canary, gate, asked = (events(api)[place]["payload"] for place in (3, 4, 6))
    assert (canary["step"], canary["share"], canary["canary_id"]) == ("canary.started", 0.05, "canary-1")
    assert (canary["bundle"], canary["champion"], canary["prompt"]) == ("new", "old", "new@1.0.0")
    assert (gate["verdict"], gate["changed"], gate["run_keys"]) == ("fail", ["prompt"], ["new-run", "champion-run"])
    assert (asked["approval_id"], asked["owner"], asked["approvers"]) == ("approval-1", "Grace", ["Ada", "Grace"])
    assert asked["expires_at"]
    assert asked["environment"] == "default"


def test_with_the_server_away_the_cursor_stays_and_a_repetition_has_the_same_id(
    settings: Settings, ledger: Ledger, api: Receiver
) -> None:
    LedgerLine(ledger).release("old")
    api.first = [204, 503]
    assert deliver(settings, ledger)[0] == "events: 127.0.0.1 answers 503"
    assert [standing.waiting for standing in standings(settings, ledger) if standing.projection == "events"] == [1]
    deliver(settings, ledger)
    assert [event["event"] for event in events(api)] == ["touchstone.release.candidate", "touchstone.release.promoted"]
    other = Ledger(f"sqlite:///{settings.state / 'copy.db'}", "default")  # the same places in another ledger
    LedgerLine(other).release("old")
    deliver(settings, other)
    ids = [UUID(event["id"]) for event in events(api)]
    assert ids[:2] == ids[2:]


def test_without_a_configured_server_events_wait_and_no_server_is_started(
    settings: Settings, ledger: Ledger, api: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    LedgerLine(ledger).release("old")
    warnings = deliver(settings, ledger)
    assert [warning.partition(":")[0] for warning in warnings] == ["mlflow", "anchor"]
    (standing,) = (standing for standing in standings(settings, ledger) if standing.projection == "events")
    assert (standing.off, standing.waiting) == ("no PREFECT_API_URL", 2)
    assert not api.received


def test_a_server_that_asks_who_we_are_is_told(
    settings: Settings, ledger: Ledger, api: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:pass")
    LedgerLine(ledger).release("old")
    deliver(settings, ledger)
    sent = api.received[0].headers["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"admin:pass"
