"""The webhooks' inbox on SQLite and PostgreSQL: durable, each webhook once, each row to one dispatcher."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.inbox import LEASE_S, WebhookInbox
from tests.tasks.postgres import postgres_url
from touchstone.errors import BadInput, Unmeasurable
from touchstone.inbox import HookStatus
from touchstone.webhooks import Action, Hook

RUN = Action(kind="run", target="gate/support")


def hook(number: int, *actions: Action, age: timedelta = timedelta()) -> Hook:
    at = (datetime.now(UTC) - age).isoformat()
    return Hook(id=f"{number:032x}", source="github", event="push", received_at=at, actions=actions)


def put(inbox: WebhookInbox, *hooks: Hook) -> list[bool]:
    """All at once, as many callers would."""

    async def all_of_them() -> list[bool]:
        return list(await asyncio.gather(*(inbox.put(one) for one in hooks)))

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    yield from postgres_url()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'inbox.db'}"
        return
    found = request.getfixturevalue("postgres")
    yield found
    import sqlalchemy as sa

    engine = sa.create_engine(found)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM webhooks")
    engine.dispose()


@pytest.fixture
def inbox(url: str) -> Iterator[WebhookInbox]:
    with closing(WebhookInbox(url)) as opened:
        yield opened


def test_what_was_put_is_there_after_reopening(url: str) -> None:
    with closing(WebhookInbox(url)) as first:
        assert put(first, hook(1, RUN), hook(2)) == [True, True]
    with closing(WebhookInbox(url)) as second:
        found = {row.hook.id[-1]: row.status for row in second.listed()}
    assert found == {"1": HookStatus.WAITING, "2": HookStatus.IGNORED}


def test_a_repetition_is_told_in_one_batch_later_and_from_another_gateway(url: str, inbox: WebhookInbox) -> None:
    assert sorted(put(inbox, *(hook(1, RUN) for _ in range(50)))) == [False] * 49 + [True]
    assert put(inbox, hook(1, RUN), hook(2, RUN)) == [False, True]
    with closing(WebhookInbox(url)) as other:
        assert put(other, hook(2, RUN), hook(3, RUN)) == [False, True]
    assert inbox.counted() == {HookStatus.WAITING: 3}


def test_two_dispatchers_never_get_one_row(url: str, inbox: WebhookInbox) -> None:
    put(inbox, *(hook(number, RUN) for number in range(120)))
    got: list[str] = []

    def take() -> None:
        with closing(WebhookInbox(url)) as own:
            while rows := own.claim(7):
                got.extend(row.hook.id for row in rows)

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sorted(got) == [f"{number:032x}" for number in range(120)]


def test_a_row_of_a_dispatcher_that_died_is_handed_out_again(inbox: WebhookInbox) -> None:
    put(inbox, hook(1, RUN))
    now = time.time()
    assert len(inbox.claim(5, now)) == 1
    assert inbox.claim(5, now + LEASE_S - 1) == []
    assert len(inbox.claim(5, now + LEASE_S + 1)) == 1


def test_a_row_is_postponed_finished_and_retried(inbox: WebhookInbox) -> None:
    put(inbox, hook(1, RUN), hook(2, RUN), hook(3, RUN))
    now = time.time()
    ids = [row.hook.id for row in inbox.claim(5, now)]
    inbox.postpone(ids[0], now + 60, ["first: done"])
    inbox.finish(ids[1], HookStatus.DONE, ["done"])
    inbox.finish(ids[2], HookStatus.FAILED, ["failed: no"])
    assert inbox.claim(5, now + 59) == []
    [again] = inbox.claim(5, now + 61)
    assert (again.hook.id, again.attempts, again.outcomes) == (ids[0], 1, ("first: done",))
    assert [row.status for row in inbox.listed(HookStatus.FAILED)] == [HookStatus.FAILED]
    assert inbox.retry(ids[1]) == 0  # it is done
    assert inbox.retry() == 1
    assert [row.hook.id for row in inbox.claim(5, now)] == [ids[2]]


def test_who_comes_late_changes_nothing_of_what_is_done(inbox: WebhookInbox) -> None:
    put(inbox, hook(1, RUN))
    [row] = inbox.claim(5)
    inbox.finish(row.hook.id, HookStatus.DONE, ["flow run 1"])
    inbox.postpone(row.hook.id, 0.0, [])  # it was handed out to two: the first had stood still for too long
    inbox.keep(row.hook.id, ["half"])
    inbox.finish(row.hook.id, HookStatus.FAILED, ["failed: no"])
    [row] = inbox.listed()
    assert (row.status, row.outcomes, row.attempts) == (HookStatus.DONE, ("flow run 1",), 1)


def test_what_is_kept_of_a_row_renews_its_lease(inbox: WebhookInbox) -> None:
    put(inbox, hook(1, RUN))
    now = time.time()
    [row] = inbox.claim(5, now - LEASE_S + 1)
    inbox.keep(row.hook.id, ["first: done"])
    assert inbox.claim(5, now + 2) == []
    [again] = inbox.claim(5, time.time() + LEASE_S + 1)
    assert (again.outcomes, again.attempts) == (("first: done",), 0)


def test_alarms_go_first_and_what_was_postponed_goes_last(inbox: WebhookInbox) -> None:
    put(inbox, hook(1, RUN, age=timedelta(hours=1)))
    now = time.time()
    inbox.claim(1, now)
    inbox.postpone(f"{1:032x}", now + 1, [])
    put(inbox, hook(2, RUN), hook(3, RUN, Action(kind="alarm", target="suite-silent")))
    order = [inbox.claim(1, now + 2)[0].hook.id[-1] for _ in range(3)]
    assert order == ["3", "2", "1"]


def test_what_waits_or_failed_stays_however_old(inbox: WebhookInbox) -> None:
    old = timedelta(days=40)
    put(inbox, hook(1, RUN, age=old), hook(2, RUN, age=old), hook(3, RUN, age=old), hook(4, age=old), hook(5))
    inbox.finish(f"{2:032x}", HookStatus.FAILED, ["failed: no"])
    inbox.finish(f"{3:032x}", HookStatus.DONE, ["done"])
    assert inbox.remove_older_than(30) == 2
    assert sorted(row.hook.id[-1] for row in inbox.listed()) == ["1", "2", "5"]


def test_an_inbox_that_does_not_answer_is_told_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(Unmeasurable, match="TOUCHSTONE_INBOX_URL"):
        WebhookInbox("postgresql://nobody@127.0.0.1:9/none")
    with pytest.raises(BadInput, match="TOUCHSTONE_INBOX_URL: not an SQLAlchemy URL"):
        WebhookInbox("here")


def test_a_postgresql_that_takes_connections_and_is_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from tasks import inbox

    monkeypatch.setattr(inbox, "_CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(Unmeasurable, match="TOUCHSTONE_INBOX_URL"):
            WebhookInbox(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none")
    assert time.monotonic() - began < 20


def test_an_inbox_that_breaks_refuses_and_takes_again_when_it_is_mended(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "inbox.db"
    with closing(WebhookInbox(f"sqlite:///{path}")) as inbox, closing(sqlite3.connect(path)) as other:
        other.execute("ALTER TABLE webhooks RENAME TO elsewhere")
        with pytest.raises(Unmeasurable, match="TOUCHSTONE_INBOX_URL: the inbox's database does not answer"):
            put(inbox, hook(1, RUN))
        with pytest.raises(Unmeasurable):
            inbox.claim(1)
        other.execute("ALTER TABLE elsewhere RENAME TO webhooks")
        assert put(inbox, hook(1, RUN)) == [True]


KEEP_PUTTING = """
import asyncio, sys
from tasks.inbox import WebhookInbox
from touchstone.webhooks import Action, Hook
async def main(url, start):
    inbox = WebhookInbox(url)
    for number in range(start, start + 10**6):
        action = Action(kind="run", target="gate/support", parameters={"text": "x" * 500})
        await inbox.put(Hook(id=f"{number:032x}", source="s", event="e", received_at="2026-01-01", actions=(action,)))
        print(number, flush=True)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    acknowledged: set[int] = set()
    for kill in range(3):
        command = [sys.executable, "-c", KEEP_PUTTING, url, str(kill * 10**7)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(30 + 7 * kill):
                acknowledged.add(int(process.stdout.readline()))
            process.kill()
            acknowledged |= {int(line) for line in process.stdout if line.endswith("\n")}
    with closing(WebhookInbox(url)) as inbox:
        kept = {int(row.hook.id, 16) for row in inbox.listed(limit=100_000)}
    assert len(acknowledged) > 100
    assert acknowledged <= kept
