"""The outbox on a real ledger and real HTTP: in order, at least once, by one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.anchors import anchor_path, read_anchors
from tasks.ledger import Ledger
from tasks.outbox import TOO_LATE, deliver, deliver_all, standings, tell_people
from tests.core.release_line import deployment
from tests.tasks.postgres import postgres_url
from tests.tasks.release_ledger import LedgerLine, Received, Receiver, receiving
from touchstone.ledger import EventKind
from touchstone.notify_target import NotifyTarget
from touchstone.settings import Settings

ROOT = Path(__file__).parents[2]
NOBODY = "http://127.0.0.1:9"  # discard: refuses at once
DELIVER = """
import sys
from pathlib import Path
from tasks.ledger import Ledger
from tasks.outbox import deliver
from touchstone.notify_target import NotifyTarget
from touchstone.settings import Settings
target = NotifyTarget(kind="slack", url_env="FIRST")
settings = Settings(root=Path(sys.argv[1]), notify=(target,), mlflow_tracking_uri="http://127.0.0.1:9")
deliver(settings, Ledger(settings.ledger, "default"))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two receivers by the names FIRST and SECOND; MLflow is away, and Prefect is not configured."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    targets = tuple(NotifyTarget(kind="slack", url_env=name) for name in ("FIRST", "SECOND"))
    return Settings(root=tmp_path, notify=targets, mlflow_tracking_uri=NOBODY)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.ledger, "default")
    yield ledger
    ledger.close()


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("FIRST", receiver.url)
        yield receiver


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("SECOND", receiver.url)
        yield receiver


def texts(receiver: Receiver) -> list[str]:
    return [request.json["text"].split(": ", 1)[1] for request in receiver.received]


def waiting(settings: Settings, ledger: Ledger) -> dict[str, int]:
    return {standing.projection: standing.waiting for standing in standings(settings, ledger)}


def test_events_arrive_in_order_and_once(settings: Settings, ledger: Ledger, first: Receiver, second: Receiver) -> None:
    line = LedgerLine(ledger)
    line.release("old")
    deliver(settings, ledger)
    line.candidate(deployment("new"))
    line.canary()
    deliver(settings, ledger)
    deliver(settings, ledger)
    assert (
        texts(first)
        == texts(second)
        == [
            "old passed the gate and is the candidate",
            "old was promoted and takes all traffic",
            "new passed the gate and is the candidate",
            "new is on canary with 5% of the traffic",
        ]
    )


def test_a_target_that_is_down_holds_up_no_other_and_gets_all_of_it_later(
    settings: Settings, ledger: Ledger, first: Receiver, second: Receiver
) -> None:
    LedgerLine(ledger).release("old")
    first.status = 503
    warnings = deliver(settings, ledger)
    assert (len(first.received), len(second.received)) == (0, 2)
    assert first.refused == 1  # it is not asked again for the second event
    assert warnings[0] == "notify.FIRST: 127.0.0.1 answers 503"
    assert warnings[1].startswith(f"mlflow: MLflow at {NOBODY}")
    assert "records not anchored" in warnings[2]
    left = {"notify.FIRST": 2, "notify.SECOND": 0, "events": 2, "mlflow": 2, "anchor": 2}
    assert waiting(settings, ledger) == left
    first.status = 200
    deliver(settings, ledger)
    assert texts(first) == texts(second)
    assert len(second.received) == 2


def test_a_kill_between_sending_and_the_cursor_sends_again_and_loses_nothing(
    settings: Settings, ledger: Ledger, first: Receiver, tmp_path: Path
) -> None:
    LedgerLine(ledger).release("old")
    process: list[subprocess.Popen[bytes]] = []

    def kill_at_first(request: Received) -> int:
        first.received.append(request)
        os.kill(process[0].pid, signal.SIGKILL)
        return 200

    answer, first.answer = first.answer, kill_at_first  # type: ignore[method-assign]
    process.append(subprocess.Popen([sys.executable, "-c", DELIVER, str(tmp_path)], cwd=ROOT))
    assert process[0].wait(60) == -signal.SIGKILL
    first.answer = answer  # type: ignore[method-assign]
    deliver(settings, ledger)  # at once: the claim died with the process
    assert texts(first) == [
        "old passed the gate and is the candidate",
        "old passed the gate and is the candidate",
        "old was promoted and takes all traffic",
    ]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    if request.param == "sqlite":
        yield settings.ledger
    else:
        yield from postgres_url()


def test_several_deliverers_at_once_send_each_event_once(url: str, settings: Settings, first: Receiver) -> None:
    slow, settings = first.answer, settings.model_copy(update={"notify": settings.notify[:1]})

    def answer(request: Received) -> int:
        time.sleep(0.02)  # long enough for the others to come by
        return slow(request)

    first.answer = answer  # type: ignore[method-assign]
    ledgers = [Ledger(url, "default") for _ in range(4)]
    line = LedgerLine(ledgers[0])
    line.releases(["a", "b", "c"])

    def run(ledger: Ledger) -> list[list[str]]:
        return [deliver(settings, ledger) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        warnings = [text for runs in pool.map(run, ledgers) for texts in runs for text in texts]
    assert [request.json["text"] for request in first.received] == [
        f"{mark} default: {name} {did}"
        for name in "abc"
        for mark, did in (("•", "passed the gate and is the candidate"), ("✅", "was promoted and takes all traffic"))
    ]
    assert all(warning.startswith(("mlflow:", "anchor:")) for warning in warnings)
    for ledger in ledgers:
        ledger.close()


def test_an_event_that_comes_while_somebody_delivers_is_delivered_by_them(
    settings: Settings, ledger: Ledger, first: Receiver
) -> None:
    settings, line = settings.model_copy(update={"notify": settings.notify[:1]}), LedgerLine(ledger)
    line.candidate(deployment("old", canary={"required": False}, approval={"required": 0}))
    answered, other = first.answer, Ledger(settings.ledger, "default")

    def promote_meanwhile(request: Received) -> int:
        first.answer = answered  # type: ignore[method-assign]
        line.promote()
        deliver(settings, other)  # finds the projection claimed, and leaves its event there
        assert not first.received
        return answered(request)

    first.answer = promote_meanwhile  # type: ignore[method-assign]
    deliver(settings, ledger)
    assert texts(first) == ["old passed the gate and is the candidate", "old was promoted and takes all traffic"]


def test_a_new_target_is_told_no_history(settings: Settings, ledger: Ledger, first: Receiver, second: Receiver) -> None:
    LedgerLine(ledger).release("old")
    later = datetime.now(UTC) + timedelta(hours=1)
    deliver(settings, ledger, now=later)
    assert not first.received
    LedgerLine(ledger).candidate(deployment("new"))
    deliver(settings, ledger, now=later)
    assert texts(first) == texts(second) == ["new passed the gate and is the candidate"]


def test_an_outage_at_the_very_first_delivery_makes_no_history_of_what_waits(
    settings: Settings, ledger: Ledger, first: Receiver
) -> None:
    LedgerLine(ledger).release("old")
    first.status = 503
    deliver(settings, ledger)
    first.status = 200
    deliver(settings, ledger, now=datetime.now(UTC) + timedelta(hours=1))
    assert len(first.received) == 2


def test_news_of_yesterday_is_passed_over_and_said_so(settings: Settings, ledger: Ledger, first: Receiver) -> None:
    first.status = 503
    LedgerLine(ledger).release("old")
    deliver(settings, ledger)
    first.status = 200
    warnings = deliver(settings, ledger, now=datetime.now(UTC) + TOO_LATE + timedelta(minutes=1))
    assert not first.received
    assert "notify.FIRST: 2 events of before" in warnings[0]


def test_a_rebuild_sends_no_news_again(settings: Settings, ledger: Ledger, first: Receiver, second: Receiver) -> None:
    LedgerLine(ledger).release("old")
    deliver(settings, ledger)
    warnings = deliver_all(settings, ledger, rebuild=True)
    assert len(first.received) == len(second.received) == 2
    assert waiting(settings, ledger)["mlflow"] == 2
    assert [warning.partition(":")[0] for warning in warnings] == ["mlflow", "anchor"]


def test_a_variable_that_is_not_set_is_named_and_the_event_waits(settings: Settings, ledger: Ledger) -> None:
    LedgerLine(ledger).release("old")
    warnings = deliver(settings, ledger)
    assert warnings[0] == "notify.FIRST: FIRST is not set; what waits is sent by a process that has it"
    assert waiting(settings, ledger)["notify.FIRST"] == 2


def test_a_ledger_that_cannot_be_read_is_a_warning(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    LedgerLine(ledger).release("old")
    ledger.close()
    for path in (tmp_path / ".touchstone").glob("ledger.db*"):
        path.write_bytes(b"not a database" * 1000)
    warnings = deliver(settings, ledger)
    assert [warning.split(":")[1] for warning in warnings] == [" DatabaseError"] * 4


def test_the_ledger_is_anchored_after_a_release(settings: Settings, ledger: Ledger) -> None:
    LedgerLine(ledger).release("old")
    deliver(settings, ledger)
    (checkpoint,) = read_anchors(anchor_path(settings))
    assert checkpoint.size == len(ledger.events()) == 3  # with the key that signs


def test_people_are_told_without_the_rest(settings: Settings, ledger: Ledger, first: Receiver) -> None:
    settings = settings.model_copy(update={"notify": settings.notify[:1]})
    payload: dict[str, Any] = {"run_key": "r", "verdict": "drifted", "direction": "worse", "reason": ""}
    ledger.append(EventKind.EVAL_DECIDED, "support:f1:golden", payload)
    assert tell_people(settings) == []
    assert texts(first) == ["drift detected: support on golden"]
    assert tell_people(settings.model_copy(update={"notify": ()})) == []


def test_events_that_concern_nobody_leave_nothing_behind(settings: Settings, ledger: Ledger, first: Receiver) -> None:
    payload: dict[str, Any] = {"run_key": "r", "verdict": "stable", "direction": None, "reason": ""}
    ledger.append(EventKind.EVAL_DECIDED, "support:f1:golden", payload)
    ledger.append(EventKind.INDEX_PROMOTED, "index:docs", {})
    settings = settings.model_copy(update={"notify": settings.notify[:1]})
    assert deliver(settings, ledger) == []  # MLflow, which is away, is not even asked
    assert set(waiting(settings, ledger).values()) == {0}
