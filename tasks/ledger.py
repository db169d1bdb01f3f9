"""The ledger's store: append-only, hash-chained events in SQL; one gapless sequence per environment."""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from tasks.flow_run import flow_run_id
from tasks.ledger_engine import ledger_engine
from tasks.ledger_upgrade import upgrade
from touchstone.alarms import ALARM_KINDS
from touchstone.erasure import ERASURE_SUBJECT, Erasure, why_kept
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import GENESIS, EventKind, LedgerEvent, content_digest, encode_payload
from touchstone.privacy import clean_record

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
_OF_NO_FLOW = {EventKind.KEY_CREATED, EventKind.KEY_ROTATED, EventKind.ENTRY_ERASED, *ALARM_KINDS}
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
        self._engine = ledger_engine(url)
        try:
            with self._engine.begin() as connection:
                _one_at_a_time(connection, "tables")
                upgrade(connection, _EVENTS)
                _METADATA.create_all(connection)
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
        """Append one event, its prose scrubbed. In a Prefect flow run its payload names that too, as `flow_run_id`.

        `after` is the sequence of the subject's latest event of this kind (or of the `watched` kinds) as the caller
        knows it (0: none); LedgerConflict when there is a later one by now, so that nobody decides on an old state.
        """
        payload, content = clean_record(payload), _clean_content(content)
        if kind not in _OF_NO_FLOW and (run := flow_run_id()):
            payload = {"flow_run_id": run} | payload
        for _ in range(100):
            try:
                with self._engine.begin() as connection:
                    _one_at_a_time(connection, f"events.{self.environment}")
                    return self._append(connection, kind, subject, payload, content, after, watched)
            except sa_exc.IntegrityError:
                continue  # somebody took this sequence number: look again
        raise LedgerConflict(f"{subject}: no free sequence number after 100 attempts")

    def _append(
        self,
        connection: sa.Connection,
        kind: EventKind,
        subject: str,
        payload: dict[str, Any],
        content: bytes | None = None,
        after: int | None = None,
        watched: Collection[EventKind] = (),
    ) -> LedgerEvent:
        # First the number, then the check: what is appended between the two takes this number.
        last, previous = self._last(connection)
        self._check_latest(connection, watched or (kind,), subject, after)
        salt = secrets.token_hex(16)
        event = LedgerEvent(
            environment=self.environment,
            sequence=last + 1,
            at=datetime.now(UTC).isoformat(),
            kind=kind,
            subject=subject,
            payload=payload,
            salt=salt,
            payload_digest=content_digest(encode_payload(payload, salt)),
            content_digest=None if content is None else content_digest(content),
            previous=previous,
        )
        if content is not None and event.content_digest is not None:
            _store(connection, event.content_digest, content)
        row = {"payload": json.dumps(payload), "salt": salt, "digest": event.digest}
        connection.execute(_EVENTS.insert().values(event.model_dump(mode="json") | row))
        return event

    def erase(self, sequence: int, reason: str, by: str) -> LedgerEvent:
        """Overwrite what event `sequence` is about; the chain keeps its digests, and holds the erasure as an event.

        Its content goes too, unless another event that is not erased names it. Raises BadInput when the event is
        needed, or erased already.
        """
        with self._engine.begin() as connection:
            _one_at_a_time(connection, f"events.{self.environment}")
            mine = (_EVENTS.c.environment == self.environment, _EVENTS.c.sequence == sequence)
            row = connection.execute(sa.select(_EVENTS).where(*mine)).mappings().first()
            if row is None:
                raise BadInput(f"{self.environment} has no event {sequence}")
            event = _event(row)
            if kept := why_kept(event, is_latest=self._is_latest(connection, event)):
                raise BadInput(f"event {sequence} ({event.kind}) stays: {kept}")
            connection.execute(_EVENTS.update().where(*mine).values(payload="{}", salt=None))
            gone = event.content_digest if _drop_content(connection, event) else None
            erasure = Erasure(sequence=sequence, content_digest=gone, reason=reason, by=by)
            record = self._append(connection, EventKind.ENTRY_ERASED, ERASURE_SUBJECT, erasure.model_dump())
        self._forget_log()
        return record

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
        before: int | None = None,
        erased: bool = False,
    ) -> list[LedgerEvent]:
        """Events after the sequence `since`, up to `before`, in order; with `newest` only the last, newest first.

        Erased ones, of which nobody can read anything, only when they are asked for.
        """
        query = sa.select(_EVENTS).where(_EVENTS.c.environment == self.environment, _EVENTS.c.sequence > since)
        if kind is not None:
            query = query.where(_EVENTS.c.kind == kind.value)
        if subject is not None:
            query = query.where(_EVENTS.c.subject == subject)
        if before is not None:
            query = query.where(_EVENTS.c.sequence < before)
        if not erased:
            query = query.where(_EVENTS.c.salt.is_not(None))
        order = _EVENTS.c.sequence.desc() if newest else _EVENTS.c.sequence
        with self._reading() as connection:
            rows = connection.execute(query.order_by(order).limit(newest)).mappings().all()
        return [_event(row) for row in rows]

    def subjects(self, prefix: str, suffix: str) -> list[str]:
        """All that begin and end so."""
        subject = _EVENTS.c.subject
        mine = (_EVENTS.c.environment == self.environment, subject.startswith(prefix, autoescape=True))
        with self._reading() as connection:
            found = connection.execute(sa.select(subject).distinct().where(*mine).order_by(subject)).scalars().all()
        return [one for one in found if one.startswith(prefix) and one.endswith(suffix)]  # SQLite's LIKE minds no case

    def content(self, event: LedgerEvent) -> bytes:
        """The content that an event refers to. Raises BadInput when it was erased."""
        with self._reading() as connection:
            query = sa.select(_CONTENTS.c.body).where(_CONTENTS.c.digest == event.content_digest)
            body = connection.execute(query).scalar_one_or_none()
        if body is None:
            raise BadInput(f"ledger event {event.sequence} ({event.kind}): its content was erased")
        try:
            return zlib.decompress(body)
        except zlib.error:
            raise BadInput(f"ledger event {event.sequence} ({event.kind}): its content was changed") from None

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

    def _is_latest(self, connection: sa.Connection, event: LedgerEvent) -> bool:
        query = sa.select(sa.func.max(_EVENTS.c.sequence)).where(
            _EVENTS.c.environment == self.environment,
            _EVENTS.c.kind == event.kind.value,
            _EVENTS.c.subject == event.subject,
        )
        return connection.execute(query).scalar_one() == event.sequence

    def _forget_log(self) -> None:
        """SQLite's write-ahead log still holds the pages as they were; PostgreSQL's own vacuum sees to its pages."""
        if self._engine.dialect.name == "sqlite":
            with closing(self._engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

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


def _clean_content(content: bytes | None) -> bytes | None:
    """The same bytes when nothing was found; what is no JSON object is none of ours, and is left."""
    try:
        record = json.loads(content) if content else None
    except ValueError:
        return content
    cleaned = clean_record(record)
    return content if cleaned is record else json.dumps(cleaned, ensure_ascii=False).encode()


def _event(row: sa.RowMapping) -> LedgerEvent:
    stored = {name: value for name, value in row.items() if name != "digest"}
    return LedgerEvent.model_validate(stored | {"payload": json.loads(row["payload"])})


def _store(connection: sa.Connection, digest: str, content: bytes) -> None:
    # The row lock (PostgreSQL) keeps an erasure in another environment from taking it away meanwhile.
    query = sa.select(_CONTENTS.c.digest).where(_CONTENTS.c.digest == digest).with_for_update(read=True)
    known = connection.execute(query).first()
    if known is None:
        connection.execute(_CONTENTS.insert().values(digest=digest, body=zlib.compress(content)))


def _drop_content(connection: sa.Connection, event: LedgerEvent) -> bool:
    """Whether it is gone now: not while an event that is not erased, of any environment, names it."""
    if event.content_digest is None:
        return False
    mine = _CONTENTS.c.digest == event.content_digest
    connection.execute(sa.select(_CONTENTS.c.digest).where(mine).with_for_update()).first()
    named = sa.select(_EVENTS.c.sequence).where(
        _EVENTS.c.content_digest == event.content_digest, _EVENTS.c.salt.is_not(None)
    )
    if connection.execute(named.limit(1)).first() is not None:
        return False
    connection.execute(_CONTENTS.delete().where(mine))
    return True


def _one_at_a_time(connection: sa.Connection, what: str) -> None:
    """PostgreSQL: who comes second waits for the end of this transaction. SQLite has one writer as it is."""
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(f"touchstone.ledger.{what}".encode()).digest()[:8], signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
