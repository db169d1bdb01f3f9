"""A ledger made before the hash chain is chained when it is opened: on SQLite and on PostgreSQL, by two at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tasks.ledger import Ledger
from tasks.ledger_engine import ledger_engine
from tests.tasks.postgres import postgres_url
from touchstone.errors import BadInput
from touchstone.ledger import GENESIS, EventKind, LedgerEvent, content_digest, encode_payload

ROOT = Path(__file__).parents[2]
OPEN_AND_APPEND = """
import sys
from tasks.ledger import Ledger
from touchstone.ledger import EventKind
Ledger(sys.argv[1], "default").append(EventKind.EVAL_DECIDED, "new", {})
"""
BEFORE = [
    """CREATE TABLE events (environment VARCHAR(64) NOT NULL, sequence BIGINT NOT NULL, at VARCHAR(40) NOT NULL,
    kind VARCHAR(64) NOT NULL, subject VARCHAR(255) NOT NULL, payload TEXT NOT NULL, content_digest VARCHAR(64),
    PRIMARY KEY (environment, sequence))""",
    "CREATE INDEX events_by_subject ON events (environment, subject, kind, sequence)",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres")


@pytest.fixture(scope="module")
def postgres():
    yield from postgres_url()


def write_old(url: str, counts: dict[str, int], payload: str = "") -> None:
    """What version b2b9d07 left behind: events without salt, payload digest, previous and digest."""
    engine = ledger_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS events")
        for statement in BEFORE:
            connection.exec_driver_sql(statement)
        insert = sa.text(
            "INSERT INTO events VALUES (:environment, :sequence, '2026-11-01T00:00:00+00:00', 'eval.decided', "
            "'a:b:c', :payload, :digest)"
        )
        for environment, count in counts.items():
            for sequence in range(1, count + 1):
                text = payload or json.dumps({"n": sequence, "share": 0.1 * sequence})
                row = {"environment": environment, "sequence": sequence, "payload": text, "digest": "c" * 64}
                connection.execute(insert, row)
    engine.dispose()


def assert_chained(events: list[LedgerEvent]) -> None:
    previous = GENESIS
    for number, event in enumerate(events, start=1):
        assert (event.sequence, event.previous) == (number, previous)
        assert event.salt is not None
        assert event.payload_digest == content_digest(encode_payload(event.payload, event.salt))
        previous = event.digest


def test_an_old_ledger_keeps_every_event_and_gets_its_chain(url: str) -> None:
    write_old(url, {"default": 40, "staging": 3})
    ledger = Ledger(url, "default")
    events = ledger.events()
    assert [event.payload for event in events] == [{"n": n, "share": 0.1 * n} for n in range(1, 41)]
    assert {(event.at, event.subject, event.content_digest) for event in events} == {
        ("2026-11-01T00:00:00+00:00", "a:b:c", "c" * 64)
    }
    assert_chained(events)
    assert_chained(Ledger(url, "staging").events())
    assert ledger.append(EventKind.EVAL_DECIDED, "a:b:c", {}, after=40).sequence == 41
    assert_chained(ledger.events())
    assert Ledger(url, "default").events() == ledger.events()
    ledger.close()


def test_two_processes_that_open_an_old_ledger_at_once_chain_it_once(url: str) -> None:
    write_old(url, {"default": 200})
    command = [sys.executable, "-c", OPEN_AND_APPEND, url]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in started:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors.decode()
    ledger = Ledger(url, "default")
    assert len(ledger.events()) == 202
    assert_chained(ledger.events())
    ledger.close()


def test_a_process_of_the_old_version_cannot_append_outside_the_chain(url: str) -> None:
    write_old(url, {"default": 1})
    ledger = Ledger(url, "default")
    columns = "environment, sequence, at, kind, subject, payload"
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO events ({columns}) VALUES ('default', 2, '', '', '', '{{}}')")
    ledger.close()


def test_a_ledger_that_cannot_be_chained_is_left_as_it_was(url: str) -> None:
    write_old(url, {"default": 2}, payload='{"score": NaN}')
    with pytest.raises(BadInput, match=r"event 1 of default cannot be chained .* nothing was changed"):
        Ledger(url, "default")
    engine = ledger_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one() == 2
        assert "salt" not in {column["name"] for column in sa.inspect(connection).get_columns("events")}
    engine.dispose()
