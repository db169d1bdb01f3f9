"""Notifications over real HTTP: signed, redacted, kept while a receiver is away, and only when something changes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.notify import signed_headers
from tasks.outbox import deliver
from tests.core.release_line import deployment, without_canary
from tests.tasks.release_ledger import LedgerLine, Receiver, receiving
from touchstone.errors import BadInput
from touchstone.ledger import EventKind
from touchstone.notify_target import NotifyTarget
from touchstone.settings import Settings

SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes ...").decode()
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", f"{receiver.url}/services/T000/B000/xyz")
        yield receiver


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / '.touchstone' / 'ledger.db'}", "eu.production")
    yield ledger
    ledger.close()


def settings(tmp_path: Path, kind: str = "webhook", **changes: Any) -> Settings:
    target = NotifyTarget.model_validate({"kind": kind, "url_env": "HOOK", "secret_env": "HOOK_SECRET"} | changes)
    return Settings(root=tmp_path, notify=(target,), mlflow_tracking_uri=NOBODY)


def told(receiver: Receiver) -> list[str]:
    return [request.json["type"].removeprefix("touchstone.") for request in receiver.received]


def test_every_step_of_a_release_is_told_once_in_order(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    line = LedgerLine(ledger)
    line.release("old")
    line.candidate(deployment("new"))
    for step in (line.canary, line.widen, line.hold, line.graduate, line.ask):
        step()
    line.give("Ada")
    line.promote()
    line.roll_back()
    line.candidate(deployment("worse"))
    line.canary("canary-2")
    line.roll_back_canary()
    line.candidate(deployment("other", **without_canary()))
    line.ask("approval-2")
    line.give("Ada", "deny", approval_id="approval-2")
    deliver(settings(tmp_path), ledger)
    deliver(settings(tmp_path), ledger)
    assert told(receiver) == [
        *("release.candidate", "release.promoted", "release.candidate", "release.canary", "release.canary"),
        *("release.held", "release.graduated", "approval.asked", "release.promoted", "release.rolled_back"),
        *("release.candidate", "release.canary", "release.rolled_back"),
        *("release.candidate", "approval.asked", "release.denied"),
    ]
    headlines = [request.json["data"]["headline"] for request in receiver.received]
    assert headlines[4] == "eu.production: the canary of new is widened to 25% of the traffic"
    assert headlines[9] == "eu.production: new was rolled back; old takes all traffic"
    assert headlines[12] == "eu.production: worse was rolled back; old takes all traffic"


def test_a_webhook_is_signed_so_that_a_receiver_can_verify_and_tell_repetitions(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    LedgerLine(ledger).candidate(deployment("new"))
    deliver(settings(tmp_path), ledger)
    (request,) = receiver.received
    message, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    assert message == "eu_production-1"  # a full stop would make the signed text ambiguous
    signed = f"{message}.{timestamp}.".encode() + request.body
    expected = hmac.new(b"a secret of 24 bytes ...", signed, hashlib.sha256).digest()
    version, _, signature = request.headers["webhook-signature"].partition(",")
    assert (version, base64.b64decode(signature)) == ("v1", expected)
    assert request.json["timestamp"] == ledger.events()[0].at


def test_the_signature_is_the_one_of_the_published_example() -> None:
    """Of the Standard Webhooks specification's reference libraries."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_that_was_away_gets_each_event_once_with_the_next_delivery(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    LedgerLine(ledger).release("old")
    receiver.first = [200, 503]
    assert deliver(settings(tmp_path), ledger)[0] == "notify.HOOK: 127.0.0.1 answers 503"
    assert told(receiver) == ["release.candidate"]
    deliver(settings(tmp_path), ledger)
    deliver(settings(tmp_path), ledger)
    assert told(receiver) == ["release.candidate", "release.promoted"]


def test_slack_gets_text_and_blocks_and_nothing_that_its_markup_would_read(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    line, secret = LedgerLine(ledger), "sk-" + "a1" * 12
    spool = tmp_path / ".touchstone" / "runs" / "new-run"
    spool.mkdir(parents=True)
    pages = {"url": "http://mlflow/#/runs/1", "compare_url": "http://mlflow/#/compare"}
    (spool / "published.json").write_text(json.dumps(pages))
    reason = f"<!channel> see {secret} & ask"
    line.take(EventKind.RELEASE_CANDIDATE, candidate_payload("new", reason))
    deliver(settings(tmp_path, "slack", secret_env=""), ledger)
    message = receiver.received[0].json
    assert message["text"] == "• eu.production: new passed the gate and is the candidate"
    section, context = message["blocks"]
    assert section["text"]["text"].splitlines()[1] == "&lt;!channel&gt; see [redacted] &amp; ask"
    assert "<http://mlflow/#/compare|MLflow: compare>" in context["elements"][0]["text"]
    assert "webhook-signature" not in receiver.received[0].headers


def candidate_payload(name: str, reason: str) -> dict[str, Any]:
    return {"deployment": deployment(name).model_dump(mode="json"), "by": "ci", "reason": reason}


def test_levels_are_told_when_they_are_reached_or_left_only(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    verdicts = ["stable", "flagged", "drifted", "unmeasurable", "drifted", "stable", "stable"]
    for place, verdict in enumerate(verdicts):
        payload = {"run_key": f"run-{place}", "verdict": verdict, "direction": None, "reason": f"because {place}"}
        ledger.append(EventKind.EVAL_DECIDED, "support:f1:golden", payload)
    for announcement in (None, "flagged", None, "breached", None):
        payload = {"level": "x", "reason": "late", "announcement": announcement}
        ledger.append(EventKind.FRESHNESS_CHECKED, "index:docs", payload)
    for transition in (None, "drifted", None, "recovered"):
        payload = {"verdict": "x", "reason": "moved", "transition": transition}
        ledger.append(EventKind.QUERIES_CHECKED, "index:docs", payload)
    deliver(settings(tmp_path), ledger)
    quiet = [
        *("drift.detected", "eval.unmeasurable", "eval.measurable", "drift.recovered"),
        *("freshness.breached", "queries.drifted", "queries.recovered"),
    ]
    assert told(receiver) == quiet
    assert receiver.received[0].json["data"]["headline"] == "eu.production: drift detected: support on golden"
    assert receiver.received[0].json["data"]["reason"] == "because 2"


def test_a_target_hears_what_it_asked_for(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    line = LedgerLine(ledger)
    line.release("old")
    gate = {"gate_key": "g", "bundle": "new", "fingerprint": "f", "verdict": "fail", "reason": "worse", "by": "ci"}
    ledger.append(EventKind.GATE_DECIDED, "gate:new", gate)
    drifted = {"run_key": "r", "verdict": "flagged", "direction": None, "reason": ""}
    ledger.append(EventKind.EVAL_DECIDED, "support:f1:golden", drifted)
    deliver(settings(tmp_path, events=["release.promoted", "gate", "drift"]), ledger)
    assert told(receiver) == ["release.promoted", "gate.decided", "drift.flagged"]
    assert receiver.received[1].json["data"]["headline"] == "eu.production: the gate says fail of new"


def test_no_message_and_no_warning_holds_an_address_or_a_secret(
    ledger: Ledger, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LedgerLine(ledger).release("old")
    for status in (302, 400, 503):
        receiver.status = status
        assert deliver(settings(tmp_path), ledger)[0] == f"notify.HOOK: 127.0.0.1 answers {status}"
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/services/T000/B000/xyz")
    assert deliver(settings(tmp_path), ledger)[0] == "notify.HOOK: 127.0.0.1: ConnectionRefusedError"
    monkeypatch.setenv("HOOK", "services/T000/B000/xyz")
    assert deliver(settings(tmp_path), ledger)[0] == "notify.HOOK: an address without a host: not an http(s) address"
    monkeypatch.setenv("HOOK", receiver.url)
    monkeypatch.setenv("HOOK_SECRET", "whsec_not base64")
    assert "base64 does not follow" in deliver(settings(tmp_path), ledger)[0]
    assert not receiver.received


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"kind": "webhook", "url_env": "HOOK"}, "secret_env"),
        ({"kind": "slack", "url_env": "https://hooks.slack.com/services/T/B/x"}, "pattern"),
        ({"kind": "slack", "url_env": "HOOK", "events": ["released"]}, "unknown event released; there are alarm"),
        ({"kind": "mail", "url_env": "HOOK"}, "'slack', 'webhook', 'email' or 'apprise'"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entry: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=problem):
        Settings(root=tmp_path, notify=(entry,))  # type: ignore[arg-type]


def test_touchstone_yaml_names_who_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "touchstone.yaml").write_text("notify:\n  - {kind: slack, url_env: SLACK_URL, events: [release]}\n")
    (target,) = load_settings().notify
    assert (target.url_env, target.wants("release.held"), target.wants("approval.asked")) == ("SLACK_URL", True, False)
    (tmp_path / "touchstone.yaml").write_text("notify:\n  - {kind: slack, url_env: SLACK_URL, events: [nothing]}\n")
    with pytest.raises(BadInput, match=r"notify.*unknown event nothing"):
        load_settings()


def decide(ledger: Ledger, dataset: str, verdict: str, **payload: Any) -> None:
    known = {"run_key": "r", "verdict": verdict, "direction": None, "reason": ""}
    ledger.append(EventKind.EVAL_DECIDED, f"support:f1:{dataset}", known | payload)


def test_what_is_less_severe_than_a_target_asks_for_is_not_told(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    decide(ledger, "golden", "unmeasurable")
    decide(ledger, "golden", "drifted")
    decide(ledger, "golden", "stable")
    decide(ledger, "other", "drifted", direction="better")
    LedgerLine(ledger).release("old")
    deliver(settings(tmp_path, minimum_severity="critical"), ledger)
    assert told(receiver) == ["drift.detected", "drift.recovered"]  # who heard of it hears of its end
    assert receiver.received[0].json["data"]["severity"] == "critical"


def test_what_cannot_be_measured_is_told_once_and_that_it_can_be_again(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    def check(level: str) -> None:
        payload = {"level": "ok", "reason": "no source", "announcement": None}
        ledger.append(
            EventKind.FRESHNESS_CHECKED, "index:docs", payload | {"measures": {"never_embedded": {"level": level}}}
        )

    for verdict in ("unmeasurable", "unmeasurable", "unmeasurable", "stable", "stable"):
        decide(ledger, "golden", verdict)
    for level in ("ok", "unmeasurable", "unmeasurable", "ok"):
        check(level)
    deliver(settings(tmp_path), ledger)
    assert told(receiver) == [
        *("eval.unmeasurable", "eval.measurable"),
        *("freshness.unmeasurable", "freshness.measurable"),
    ]
    assert receiver.received[0].json["data"]["headline"] == "eu.production: eval unmeasurable: support on golden"


def test_a_probe_is_told_when_it_finds_a_change(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    for transition in (None, "flagged", "detected", None, "recovered"):
        payload = {"bundle": "support", "transition": transition, "reason": "another fingerprint"}
        ledger.append(EventKind.PROBE_CHECKED, "probe:support:f1", payload)
    deliver(settings(tmp_path), ledger)
    assert told(receiver) == ["probe.detected", "probe.recovered"]
    assert receiver.received[0].json["data"]["about"] == "support"


def test_fifty_at_once_are_one_message_for_people(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    for number in range(49):
        decide(ledger, f"set-{number}", "unmeasurable")
    decide(ledger, "golden", "drifted")
    deliver(settings(tmp_path, "slack", secret_env=""), ledger)
    (message,) = receiver.received
    assert message.json["text"] == "• eu.production: 50 notices at once"
    text = message.json["blocks"][0]["text"]["text"]
    assert text.splitlines()[1] == "critical: eu.production: drift detected: support on golden"
    assert "and 25 more" in text
    deliver(settings(tmp_path, "slack", secret_env=""), ledger)
    assert len(receiver.received) == 1


def test_a_program_gets_each_of_fifty(ledger: Ledger, receiver: Receiver, tmp_path: Path) -> None:
    for number in range(50):
        decide(ledger, f"set-{number}", "unmeasurable")
    deliver(settings(tmp_path), ledger)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 50


def test_a_notice_links_to_the_flow_run_that_recorded_it_whoever_delivers(
    ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    decide(ledger, "golden", "drifted", flow_run_id="0b0f")
    deliver(settings(tmp_path).model_copy(update={"prefect_ui_url": "http://prefect/"}), ledger)
    assert receiver.received[0].json["data"]["links"] == {"Prefect": "http://prefect/runs/flow-run/0b0f"}
