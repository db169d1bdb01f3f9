"""How far each projection has come: one row beside the events it follows, and who may deliver to it now."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from tasks.ledger import Ledger

_METADATA = sa.MetaData()
_CURSORS = sa.Table(
    "outbox",
    _METADATA,
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("projection", sa.String(128), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),  # of the last event that was delivered
)


class Cursors:
    """The outbox's table, in the ledger's database."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine, self._environment = ledger.engine, ledger.environment
        try:
            _METADATA.create_all(self._engine)
        except sa_exc.DBAPIError:  # PostgreSQL, when two make the table together; what else is wrong is wrong again
            _METADATA.create_all(self._engine)

    def read(self, projection: str) -> int | None:
        """The last sequence that was delivered; None before its first delivery."""
        query = sa.select(_CURSORS.c.sequence).where(*self._of(projection))
        with self._engine.connect().execution_options(reads=True) as connection:
            return connection.execute(query).scalar_one_or_none()

    def move(self, projection: str, sequence: int) -> None:
        """Only for who has claimed the projection."""
        with self._engine.begin() as connection:
            moved = connection.execute(_CURSORS.update().where(*self._of(projection)).values(sequence=sequence))
            if moved.rowcount == 0:
                row = {"environment": self._environment, "projection": projection, "sequence": sequence}
                connection.execute(_CURSORS.insert().values(row))

    @contextmanager
    def claimed(self, projection: str) -> Iterator[bool]:
        """Yields whether nobody else delivers to it now. A process that dies gives its claim back by dying."""
        name = f"{self._environment}.{projection}"
        with self._file_lock(name) if self._engine.dialect.name == "sqlite" else self._database_lock(name) as mine:
            yield mine

    def _of(self, projection: str) -> tuple[sa.ColumnElement[bool], ...]:
        return _CURSORS.c.environment == self._environment, _CURSORS.c.projection == projection

    @contextmanager
    def _file_lock(self, name: str) -> Iterator[bool]:
        """SQLite has one lock for all of the ledger, which no slow target may hold: a file beside it instead."""
        with open(f"{self._engine.url.database}.outbox-{name}", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def _database_lock(self, name: str) -> Iterator[bool]:
        """PostgreSQL: an advisory lock that ends with its transaction."""
        key = int.from_bytes(hashlib.sha256(f"touchstone.outbox.{name}".encode()).digest()[:8], signed=True)
        with self._engine.begin() as connection:
            yield bool(connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key))).scalar_one())
