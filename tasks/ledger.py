"""The ledger's store: append-only, hash-chained events in SQL; one gapless sequence per environment."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
import zlib
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc

from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import GENESIS, EventKind, LedgerEvent, content_digest, encode_payload

_WAL_ATTEMPTS = 100

_METADATA = sa.MetaData()
_EVENTS = sa.Table(
    "events",
    _METADATA,
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("salt", sa.String(32)),  # null: the payload was erased
    sa.Column("payload_digest", sa.String(64), nullable=False),
    sa.Column("content_digest", sa.String(64)),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Index("events_by_subject", "environment", "subject", "kind", "sequence"),
)
_CONTENTS = sa.Table(
    "contents",
    _METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


class Ledger:
    """Events of one environment. Safe for many processes: who comes second is told so."""

    def __init__(self, url: str, environment: str) -> None:
        self.environment = environment
        self._engine = _engine(url)
        try:
            _METADATA.create_all(self._engine)
        except sa_exc.DBAPIError as error:
            raise BadInput(f"ledger {self._engine.url.render_as_string()}: {error.orig}") from None

    def append(
        self,
        kind: EventKind,
        subject: str,
        payload: dict[str, Any],
        *,
        content: bytes | None = None,
        after: int | None = None,
        watched: Collection[EventKind] = (),
    ) -> LedgerEvent:
        """Append one event.

        `after` is the sequence of the subject's latest event of this kind (or of the `watched` kinds) as the caller
        knows it (0: none); LedgerConflict when there is a later one by now, so that nobody decides on an old state.
        """
        salt, digest = secrets.token_hex(16), None if content is None else content_digest(content)
        payload_digest = content_digest(encode_payload(payload, salt))
        for _ in range(100):
            try:
                with self._engine.begin() as connection:
                    # First the number, then the check: what is appended between the two takes this number.
                    last, previous = self._last(connection)
                    self._check_latest(connection, watched or (kind,), subject, after)
                    if digest is not None and content is not None:
                        _store(connection, digest, content)
                    event = LedgerEvent(
                        environment=self.environment,
                        sequence=last + 1,
                        at=datetime.now(UTC).isoformat(),
                        kind=kind,
                        subject=subject,
                        payload=payload,
                        salt=salt,
                        payload_digest=payload_digest,
                        content_digest=digest,
                        previous=previous,
                    )
                    row = event.model_dump(mode="json") | {
                        "payload": json.dumps(payload),
                        "salt": salt,
                        "digest": event.digest,
                    }
                    connection.execute(_EVENTS.insert().values(row))
                return event
            except sa_exc.IntegrityError:
                continue  # somebody took this sequence number: look again
        raise LedgerConflict(f"{subject}: no free sequence number after 100 attempts")

    def latest(self, kind: EventKind, subject: str) -> LedgerEvent | None:
        events = self.events(kind, subject, newest=1)
        return events[0] if events else None

    def events(
        self,
        kind: EventKind | None = None,
        subject: str | None = None,
        *,
        newest: int | None = None,
        since: int = 0,
    ) -> list[LedgerEvent]:
        """Events after the sequence `since`, in order; with `newest` only the last ones, newest first."""
        query = sa.select(_EVENTS).where(_EVENTS.c.environment == self.environment, _EVENTS.c.sequence > since)
        if kind is not None:
            query = query.where(_EVENTS.c.kind == kind.value)
        if subject is not None:
            query = query.where(_EVENTS.c.subject == subject)
        order = _EVENTS.c.sequence.desc() if newest else _EVENTS.c.sequence
        with self._reading() as connection:
            rows = connection.execute(query.order_by(order).limit(newest)).mappings().all()
        return [_event(row) for row in rows]

    def content(self, event: LedgerEvent) -> bytes:
        """The content that an event refers to. Raises BadInput when it was erased."""
        with self._reading() as connection:
            query = sa.select(_CONTENTS.c.body).where(_CONTENTS.c.digest == event.content_digest)
            body = connection.execute(query).scalar_one_or_none()
        if body is None:
            raise BadInput(f"ledger event {event.sequence} ({event.kind}): its content was erased")
        return zlib.decompress(body)

    @property
    def engine(self) -> sa.Engine:
        """For tables that lie beside the events, such as the outbox's cursors."""
        return self._engine

    def close(self) -> None:
        self._engine.dispose()

    def _reading(self) -> sa.Connection:
        return self._engine.connect().execution_options(reads=True)

    def _last(self, connection: sa.Connection) -> tuple[int, str]:
        """Sequence and digest of the last event."""
        query = sa.select(_EVENTS.c.sequence, _EVENTS.c.digest).where(_EVENTS.c.environment == self.environment)
        row = connection.execute(query.order_by(_EVENTS.c.sequence.desc()).limit(1)).first()
        return (row.sequence, row.digest) if row else (0, GENESIS)

    def _check_latest(
        self, connection: sa.Connection, kinds: Collection[EventKind], subject: str, after: int | None
    ) -> None:
        if after is None:
            return
        query = sa.select(sa.func.max(_EVENTS.c.sequence)).where(
            _EVENTS.c.environment == self.environment,
            _EVENTS.c.kind.in_([kind.value for kind in kinds]),
            _EVENTS.c.subject == subject,
        )
        latest = connection.execute(query).scalar_one() or 0
        if latest != after:
            raise LedgerConflict(f"{subject}: event {latest} was appended after {after}")


def _event(row: sa.RowMapping) -> LedgerEvent:
    stored = {name: value for name, value in row.items() if name != "digest"}
    return LedgerEvent.model_validate(stored | {"payload": json.loads(row["payload"])})


def _store(connection: sa.Connection, digest: str, content: bytes) -> None:
    known = connection.execute(sa.select(_CONTENTS.c.digest).where(_CONTENTS.c.digest == digest)).first()
    if known is None:
        connection.execute(_CONTENTS.insert().values(digest=digest, body=zlib.compress(content)))


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        is_async = parsed.get_dialect().is_async
        parsed.get_dialect().import_dbapi()
    except (sa_exc.ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise BadInput("TOUCHSTONE_LEDGER_URL: not an SQLAlchemy URL") from None
    except ImportError as error:
        raise BadInput(f"TOUCHSTONE_LEDGER_URL: the driver {error.name} is not installed") from None
    if is_async:
        raise BadInput(f"TOUCHSTONE_LEDGER_URL: {parsed.drivername} is asynchronous; name a synchronous driver")
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 30})

    @sa_event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # our BEGIN below, not the driver's deferred one
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @sa_event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        # An append takes the writer lock before it reads, or two would read the same; readers wait for nobody.
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _use_wal(connection: Any) -> None:
    """SQLite does not wait for the lock that a change of journal needs: two processes may make the file together."""
    for attempt in range(1, _WAL_ATTEMPTS + 1):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == _WAL_ATTEMPTS:
                raise
            time.sleep(0.1)
