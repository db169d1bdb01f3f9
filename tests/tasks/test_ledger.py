"""The ledger on real SQLite: a gapless order that threads and processes share, and a refusal for who comes second."""

from __future__ import annotations

import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.ledger import Ledger
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import EventKind, content_digest

DECIDED, FROZEN = EventKind.EVAL_DECIDED, EventKind.BASELINE_FROZEN
ROOT = Path(__file__).parents[2]
APPEND_20 = """
import sys
from tasks.ledger import Ledger
from touchstone.ledger import EventKind
ledger = Ledger(sys.argv[1], "default")
for number in range(20):
    ledger.append(EventKind.EVAL_DECIDED, sys.argv[2], {"number": number})
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url, "default")


def test_four_threads_share_one_gapless_sequence(ledger: Ledger) -> None:
    def append(thread: int) -> list[int]:
        return [ledger.append(DECIDED, f"subject-{thread}", {"n": n}).sequence for n in range(15)]

    with ThreadPoolExecutor(4) as pool:
        returned = list(pool.map(append, range(4)))
    assert sorted(sequence for own in returned for sequence in own) == list(range(1, 61))
    assert [event.sequence for event in ledger.events()] == list(range(1, 61))
    for thread, own in enumerate(returned):
        assert [event.sequence for event in ledger.events(DECIDED, f"subject-{thread}")] == own == sorted(own)


def test_two_processes_share_one_gapless_sequence(url: str) -> None:
    """They make the tables at the same time, too."""
    commands = [[sys.executable, "-c", APPEND_20, url, subject] for subject in ("a", "b")]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for command in commands]
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors.decode()
    ledger = Ledger(url, "default")
    assert [event.sequence for event in ledger.events()] == list(range(1, 41))
    assert [event.payload["number"] for event in ledger.events(DECIDED, "a")] == list(range(20))


def test_who_decides_on_an_old_state_is_told_so_and_nothing_is_appended(ledger: Ledger) -> None:
    first = ledger.append(DECIDED, "x", {}, after=0)
    second = ledger.append(DECIDED, "x", {}, after=first.sequence)
    for stale in (0, first.sequence):
        with pytest.raises(LedgerConflict, match=f"event {second.sequence} was appended after {stale}"):
            ledger.append(DECIDED, "x", {}, content=b"never stored", after=stale)
    assert ledger.events() == [first, second]


def test_after_looks_at_this_subject_and_kind_only(ledger: Ledger) -> None:
    own = ledger.append(DECIDED, "x", {})
    ledger.append(DECIDED, "another subject", {})
    ledger.append(FROZEN, "x", {})
    assert ledger.append(DECIDED, "x", {}, after=own.sequence).sequence == 4


def test_of_threads_that_saw_the_same_state_one_appends(ledger: Ledger) -> None:
    def decide(number: int) -> bool:
        try:
            ledger.append(DECIDED, "x", {"number": number}, after=0)
        except LedgerConflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(decide, range(8))) == [False] * 7 + [True]
    assert len(ledger.events()) == 1


def test_content_is_stored_beside_its_event_and_survives_a_reopening(ledger: Ledger, url: str) -> None:
    body = bytes(range(256)) * 40
    stored = ledger.append(FROZEN, "x", {"id": "b1"}, content=body)
    same = ledger.append(FROZEN, "y", {"id": "b2"}, content=body)
    ledger.close()
    reopened = Ledger(url, "default")
    assert reopened.events() == [stored, same]
    assert reopened.content(stored) == reopened.content(same) == body
    assert stored.content_digest == content_digest(body)


def test_an_event_without_content_says_so_instead_of_giving_an_empty_one(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match=r"event 1 \(eval\.decided\): its content was erased"):
        ledger.content(ledger.append(DECIDED, "x", {}))


def test_environments_count_and_read_on_their_own(ledger: Ledger, url: str) -> None:
    staging = Ledger(url, "staging")
    ledger.append(DECIDED, "x", {"where": "default"})
    ledger.append(DECIDED, "x", {"where": "default"})
    event = staging.append(DECIDED, "x", {"where": "staging"}, after=0)
    assert event.sequence == 1
    assert staging.events() == [event]
    assert staging.latest(DECIDED, "x") == event
    assert [found.payload["where"] for found in ledger.events()] == ["default", "default"]


def test_newest_counts_from_the_end_and_latest_is_the_last(ledger: Ledger) -> None:
    for number in range(5):
        ledger.append(DECIDED, "x", {"number": number})
        ledger.append(FROZEN, "x", {"number": -number})
    assert [event.payload["number"] for event in ledger.events(DECIDED, "x")] == [0, 1, 2, 3, 4]
    assert [event.payload["number"] for event in ledger.events(DECIDED, "x", newest=2)] == [4, 3]
    latest = ledger.latest(DECIDED, "x")
    assert latest is not None
    assert latest.payload == {"number": 4}
    assert ledger.latest(DECIDED, "nobody") is None


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgres//touchstone:hunter2@db/ledger", "not an SQLAlchemy URL, as postgresql://USER@HOST"),
        ("nosuchbase://touchstone:hunter2@db/ledger", "not an SQLAlchemy URL"),
        ("postgresql+asyncpg://touchstone:hunter2@db:port/ledger", "not an SQLAlchemy URL"),
        ("sqlite+pysqlcipher://:hunter2@/ledger.db", "driver .* is not installed"),
        ("postgresql+asyncpg://touchstone:hunter2@db/ledger", "name a synchronous driver"),
    ],
)
def test_a_bad_url_is_bad_input_and_its_password_is_never_shown(url: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as caught:
        Ledger(url, "default")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is a text, longer than the header of a database file would be\n" * 20)
    with pytest.raises(BadInput, match="not a database"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "default")
