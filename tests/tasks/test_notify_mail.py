"""Mail against a real SMTP server, and another service through Apprise; their addresses stay secret."""

from __future__ import annotations

import email
import email.policy
import logging
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from tasks import notify_apprise
from tasks.ledger import Ledger
from tasks.outbox import deliver
from tests.tasks.release_ledger import receiving
from touchstone.ledger import EventKind
from touchstone.notify_target import NotifyTarget
from touchstone.settings import Settings

PASSWORD = "hunter2-and-more"


class Mailbox:
    """What an SMTP server took. While `closed` it refuses everybody."""

    def __init__(self) -> None:
        self.letters: list[EmailMessage] = []
        self.closed = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.closed:
            return "451 try again later"
        letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        return "250 OK"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ledger = Ledger(f"sqlite:///{tmp_path / '.touchstone' / 'ledger.db'}", "production")
    payload = {"run_key": "r", "verdict": "drifted", "direction": "worse", "reason": "5 points <b>worse</b> & falling"}
    ledger.append(EventKind.EVAL_DECIDED, "support:f1:golden", payload | {"flow_run_id": "0b0f"})
    yield ledger
    ledger.close()


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    mailbox = Mailbox()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    address = f"mailto://127.0.0.1:{port}?smtp=127.0.0.1&mode=insecure&from=touchstone@shop.example"
    monkeypatch.setenv("ONCALL_MAIL", f"{address}&to=oncall@shop.example&format=text")
    yield mailbox
    server.stop()


def settings(root: Path, kind: str) -> Settings:
    target = NotifyTarget.model_validate({"kind": kind, "url_env": "ONCALL_MAIL"})
    return Settings(
        root=root, notify=(target,), prefect_ui_url="http://prefect", mlflow_tracking_uri="http://127.0.0.1:9"
    )


def test_a_mail_arrives_and_one_that_was_refused_comes_with_the_next_delivery(
    ledger: Ledger, mailbox: Mailbox, tmp_path: Path
) -> None:
    mailbox.closed = True
    assert deliver(settings(tmp_path, "email"), ledger) == ["notify.ONCALL_MAIL: mailto: the service did not take it"]
    mailbox.closed = False
    assert deliver(settings(tmp_path, "email"), ledger) == []
    assert deliver(settings(tmp_path, "email"), ledger) == []
    (letter,) = mailbox.letters
    assert letter["Subject"] == "▼ production: drift detected: support on golden"
    assert letter["To"] == "oncall@shop.example"
    body = letter.get_body(("plain",))
    assert body is not None
    text = body.get_content()
    assert "5 points <b>worse</b> & falling" in text
    assert "severity: critical" in text
    assert "Prefect: http://prefect/runs/flow-run/0b0f" in text


def test_another_service_is_reached_through_apprise(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("ONCALL_MAIL", receiver.url.replace("http://", f"json://user:{PASSWORD}@") + "/hook")
        assert deliver(settings(tmp_path, "apprise"), ledger) == []
    (request,) = receiver.received
    assert (request.json["type"], request.json["title"]) == (
        "failure",
        "▼ production: drift detected: support on golden",
    )


@pytest.mark.parametrize(
    ("kind", "address", "warning"),
    [
        (
            "email",
            f"mailto://user:{PASSWORD}@127.0.0.1:9?to=a@b.example&mode=insecure&from=t@b.example",
            "mailto: the service did not",
        ),
        ("email", f"slack://{PASSWORD}", "slack: mail needs a mailto:// or mailtos:// address"),
        ("apprise", f"nowhere://user:{PASSWORD}@host", "nowhere: Apprise does not know this service"),
        ("apprise", PASSWORD, "not an address of Apprise"),
    ],
)
def test_an_address_that_takes_nothing_is_named_without_its_secret(
    kind: str,
    address: str,
    warning: str,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ONCALL_MAIL", address)
    with caplog.at_level(logging.DEBUG):
        (said,) = deliver(settings(tmp_path, kind), ledger)
    assert warning in said
    seen = capfd.readouterr()
    assert PASSWORD not in said + seen.out + seen.err + caplog.text


def test_a_service_that_never_answers_costs_a_deadline(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_apprise, "DEADLINE_S", 2.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv(
            "ONCALL_MAIL", f"mailto://127.0.0.1:{port}?smtp=127.0.0.1&mode=insecure&from=t@b.example&to=a@b.example"
        )
        (said,) = deliver(settings(tmp_path, "email"), ledger)
    assert said == "notify.ONCALL_MAIL: mailto: no answer within 2 s"
