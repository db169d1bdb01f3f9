"""The webhooks' inbox: what was acknowledged is on disk, and is handed out until it is done.

One row per webhook, under an id that every repetition has too. Several gateways may share one on PostgreSQL: who takes
a row has it for LEASE_S, and a process that died gives it back by that.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import postgresql, sqlite

from tasks.ledger_engine import ledger_engine
from touchstone.errors import Unmeasurable
from touchstone.inbox import HookStatus, InboxRow
from touchstone.webhooks import Hook

LEASE_S = 20.0
_MOST_AT_ONCE = 256  # rows per transaction
_GATHER_S = 0.002  # that the first of them waits for more: they share its fsync
_MOST_WAITING = 4096  # that may queue for the writer before callers are told to come again
_CONNECT_S = 5  # psycopg waits 130 s for a PostgreSQL that takes connections and says nothing
_FIRST = -1.0  # due before all else: an alarm does not wait behind runs while Prefect is away

_METADATA = sa.MetaData()
_HOOKS = sa.Table(
    "webhooks",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("received_at", sa.String(40), nullable=False, index=True),
    sa.Column("hook", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Float, nullable=False, default=0.0),  # Unix seconds
    sa.Column("lease_until", sa.Float, nullable=False, default=0.0),
    sa.Column("outcomes", sa.Text, nullable=False, default="[]"),
    sa.Column("done_at", sa.String(40)),
    sa.Index("webhooks_due", "status", "due_at"),
)
_ONE_MORE = _HOOKS.c.attempts + 1


@dataclass(frozen=True)
class _Put:
    row: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]


class WebhookInbox:
    """On SQLite or PostgreSQL; safe to share between threads, and between tasks of one event loop.

    Raises BadInput for what is no database, Unmeasurable for one that is away.
    """

    def __init__(self, url: str) -> None:
        self._engine = ledger_engine(url, setting="TOUCHSTONE_INBOX_URL")
        if self._engine.driver == "psycopg":
            sa_event.listen(self._engine, "do_connect", _with_deadline)
        try:
            _METADATA.create_all(self._engine)
        except sa_exc.DBAPIError:  # two that make the table together; what else is wrong is wrong again
            try:
                _METADATA.create_all(self._engine)
            except sa_exc.DBAPIError as error:
                raise Unmeasurable(f"TOUCHSTONE_INBOX_URL: {error.orig}") from None
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        self._insert = insert(_HOOKS).on_conflict_do_nothing().returning(_HOOKS.c.id)
        self._puts: queue.Queue[_Put | None] = queue.Queue(_MOST_WAITING)
        self._writer = threading.Thread(target=self._write, name="inbox", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """What was put before is written first."""
        self._puts.put(None)
        self._writer.join()
        self._engine.dispose()

    async def put(self, hook: Hook) -> bool:
        """True once it is on disk; False when this id is there already. Raises Unmeasurable when it cannot be kept."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        status = HookStatus.WAITING if hook.actions else HookStatus.IGNORED
        done_at = None if hook.actions else hook.received_at
        row = {"id": hook.id, "source": hook.source, "received_at": hook.received_at, "status": status.value}
        due_at = _FIRST if any(action.kind == "alarm" for action in hook.actions) else 0.0
        row |= {"hook": hook.model_dump_json(), "done_at": done_at, "due_at": due_at}
        try:
            self._puts.put_nowait(_Put(row, loop, future))
        except queue.Full:
            raise Unmeasurable("more webhooks wait to be written than the inbox's database takes") from None
        return await future

    async def rows(self, status: HookStatus | None, source: str | None, limit: int) -> Sequence[InboxRow]:
        """Newest first. Raises Unmeasurable."""
        return await asyncio.to_thread(self.listed, status, source, limit)

    async def counts(self) -> dict[HookStatus, int]:
        """How many there are of each status. Raises Unmeasurable."""
        return await asyncio.to_thread(self.counted)

    def listed(self, status: HookStatus | None = None, source: str | None = None, limit: int = 100) -> list[InboxRow]:
        query = sa.select(_HOOKS).order_by(_HOOKS.c.received_at.desc()).limit(limit)
        if status is not None:
            query = query.where(_HOOKS.c.status == status.value)
        if source is not None:
            query = query.where(_HOOKS.c.source == source)
        return [_row(found) for found in self._read(query)]

    def counted(self) -> dict[HookStatus, int]:
        query = sa.select(_HOOKS.c.status, sa.func.count()).group_by(_HOOKS.c.status)
        return {HookStatus(status): count for status, count in self._read(query)}

    def claim(self, limit: int, now: float | None = None) -> list[InboxRow]:
        """Up to `limit` rows that are due; nobody else gets them for LEASE_S.

        The oldest first, but those that were postponed after all others: what cannot be done must not stand before
        what can.
        """
        now = time.time() if now is None else now
        due = (
            sa.select(_HOOKS)
            .where(_HOOKS.c.status == HookStatus.WAITING.value, _HOOKS.c.due_at <= now, _HOOKS.c.lease_until <= now)
            .order_by(_HOOKS.c.due_at, _HOOKS.c.received_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self._changing() as connection:
            found = connection.execute(due).all()
            ids = [row.id for row in found]
            if ids:
                lease = {"lease_until": now + LEASE_S}
                connection.execute(_HOOKS.update().where(_HOOKS.c.id.in_(ids)).values(lease))
        return [_row(row) for row in found]

    def keep(self, hook_id: str, outcomes: Sequence[str]) -> None:
        """What is settled of a row so far; its lease begins anew."""
        self._update(hook_id, outcomes, lease_until=time.time() + LEASE_S)

    def finish(self, hook_id: str, status: HookStatus, outcomes: Sequence[str]) -> None:
        """Nothing more is tried by itself."""
        done_at = datetime.now(UTC).isoformat()
        self._update(hook_id, outcomes, status=status.value, done_at=done_at, lease_until=0.0, attempts=_ONE_MORE)

    def postpone(self, hook_id: str, due_at: float, outcomes: Sequence[str]) -> None:
        """To be tried again at `due_at`, in Unix seconds."""
        self._update(hook_id, outcomes, due_at=due_at, lease_until=0.0, attempts=_ONE_MORE)

    def retry(self, hook_id: str | None = None) -> int:
        """Give failed webhooks another chance, one or all; how many there were. What was done is not done again."""
        change = _HOOKS.update().where(_HOOKS.c.status == HookStatus.FAILED.value)
        if hook_id is not None:
            change = change.where(_HOOKS.c.id == hook_id)
        with self._changing() as connection:
            again = {"status": HookStatus.WAITING.value, "due_at": 0.0, "done_at": None}
            return connection.execute(change.values(again)).rowcount

    def remove_older_than(self, days: float) -> int:
        """Those that are done or ignored; how many. A repetition of one that was removed is taken as new."""
        before = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        over = [HookStatus.DONE.value, HookStatus.IGNORED.value]
        with self._changing() as connection:
            gone = _HOOKS.delete().where(_HOOKS.c.status.in_(over), _HOOKS.c.received_at < before)
            return connection.execute(gone).rowcount

    def _update(self, hook_id: str, outcomes: Sequence[str], **values: Any) -> None:
        """Of a row that waits: who stood still beyond his lease comes after another has finished."""
        waits = _HOOKS.update().where(_HOOKS.c.id == hook_id, _HOOKS.c.status == HookStatus.WAITING.value)
        with self._changing() as connection:
            connection.execute(waits.values(values | {"outcomes": json.dumps(list(outcomes))}))

    def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        try:
            with self._engine.connect().execution_options(reads=True) as connection:
                return connection.execute(query).all()
        except sa_exc.SQLAlchemyError as error:
            raise _away(error) from None

    def _changing(self) -> _Changing:
        return _Changing(self._engine)

    def _write(self) -> None:
        """The one writer: all that has queued goes into one transaction, so that its fsync is shared."""
        while (first := self._puts.get()) is not None:
            batch: list[_Put] = [first]
            time.sleep(_GATHER_S)
            while len(batch) < _MOST_AT_ONCE:
                try:
                    following = self._puts.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._puts.put(None)
                    break
                batch.append(following)
            _resolve(batch, self._written(batch))

    def _written(self, batch: Sequence[_Put]) -> set[str] | Unmeasurable:
        """Ids that are new."""
        rows = list({put.row["id"]: put.row for put in reversed(batch)}.values())
        try:
            with self._changing() as connection:
                return set(connection.execute(self._insert, rows).scalars())
        except Unmeasurable as error:
            return error
        except Exception as error:  # a writer that ends would leave every caller waiting
            return Unmeasurable(f"the inbox cannot be written: {type(error).__name__}")


class _Changing:
    """A transaction whose database errors are Unmeasurable."""

    def __init__(self, engine: sa.Engine) -> None:
        self._transaction = engine.begin()

    def __enter__(self) -> sa.Connection:
        try:
            return self._transaction.__enter__()
        except sa_exc.SQLAlchemyError as error:
            raise _away(error) from None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._transaction.__exit__(kind, error, trace)
        except sa_exc.SQLAlchemyError as failed:
            raise _away(failed) from None
        if isinstance(error, sa_exc.SQLAlchemyError):
            raise _away(error) from None


def _resolve(batch: Sequence[_Put], new: set[str] | Unmeasurable) -> None:
    """Each caller learns whether its webhook is new; of two with one id in one batch only the first is."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[bool], bool | Unmeasurable]]] = {}
    for put in batch:
        answer: bool | Unmeasurable = new if isinstance(new, Unmeasurable) else put.row["id"] in new
        if isinstance(new, set):
            new.discard(put.row["id"])
        by_loop.setdefault(put.loop, []).append((put.future, answer))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell, answers)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _tell(answers: Sequence[tuple[asyncio.Future[bool], bool | Unmeasurable]]) -> None:
    for future, answer in answers:
        if future.done():  # its caller hung up
            continue
        if isinstance(answer, Unmeasurable):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _with_deadline(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
    parameters.setdefault("connect_timeout", _CONNECT_S)


def _row(found: sa.Row[Any]) -> InboxRow:
    return InboxRow(
        hook=Hook.model_validate_json(found.hook),
        status=HookStatus(found.status),
        attempts=found.attempts,
        outcomes=tuple(json.loads(found.outcomes)),
        done_at=found.done_at,
    )


def _away(error: sa_exc.SQLAlchemyError) -> Unmeasurable:
    reason = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
    return Unmeasurable(f"TOUCHSTONE_INBOX_URL: the inbox's database does not answer: {reason[0]}")
