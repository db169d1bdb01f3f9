"""The ledger on a real PostgreSQL: the same order, the same refusals and the same proof as on SQLite."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.audit_export import export_ledger, verify_folder
from tasks.ledger import Ledger
from tests.tasks.postgres import postgres_url
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import EventKind
from touchstone.settings import Settings

ROOT = Path(__file__).parents[2]
DECIDED, GATE = EventKind.EVAL_DECIDED, EventKind.GATE_DECIDED
APPEND_40 = """
import sys
from tasks.ledger import Ledger
from touchstone.ledger import EventKind
ledger = Ledger(sys.argv[1], "default")
for number in range(40):
    ledger.append(EventKind.EVAL_DECIDED, sys.argv[2], {"number": number}, content=b"shared %d" % (number % 3))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    yield from postgres_url()


@pytest.fixture
def ledger(server: str, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """An environment of its own for each test."""
    ledger = Ledger(server, f"env-{abs(hash(request.node.name))}")
    yield ledger
    ledger.close()


def test_two_processes_share_one_gapless_chain_that_verifies(server: str, tmp_path: Path) -> None:
    """They make the tables at the same time, too."""
    commands = [[sys.executable, "-c", APPEND_40, server, subject] for subject in ("a", "b")]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for command in commands]
    for process in started:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors.decode()
    ledger = Ledger(server, "default")
    assert [event.sequence for event in ledger.events()] == list(range(1, 81))
    assert [event.payload["number"] for event in ledger.events(DECIDED, "a")] == list(range(40))
    settings = Settings(root=tmp_path, ledger_url=server)
    export_ledger(settings, ledger, tmp_path / "out")
    report = verify_folder(tmp_path / "out")
    assert report.finding is None
    assert report.records == 81  # and the key
    ledger.close()


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


def test_content_and_payload_come_back_as_they_were_and_can_be_erased(ledger: Ledger) -> None:
    payload = {"text": "naïve \u2028 \x00 line", "share": 0.1, "none": None}
    event = ledger.append(GATE, "gate:b", payload, content=bytes(range(256)))
    assert ledger.events() == [event]
    assert ledger.content(event) == bytes(range(256))
    ledger.erase(event.sequence, "asked for", "ada")
    assert ledger.events(GATE) == []
    with pytest.raises(BadInput, match="its content was erased"):
        ledger.content(event)


def test_the_short_form_of_the_url_takes_the_driver_that_is_installed(server: str) -> None:
    short = Ledger(server.replace("postgresql+psycopg", "postgresql"), "short")
    assert short.append(DECIDED, "x", {}).sequence == 1
    short.close()


def test_a_server_that_does_not_answer_is_bad_input_without_the_password() -> None:
    with pytest.raises(BadInput, match=r"ledger postgresql\+psycopg://ada:\*\*\*@127\.0\.0\.1:1/test") as caught:
        Ledger("postgresql+psycopg://ada:hunter2@127.0.0.1:1/test", "default")
    assert "hunter2" not in str(caught.value)
