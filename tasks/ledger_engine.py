"""Connections to the ledger's database: SQLite in WAL mode, or whatever else SQLAlchemy reaches."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc

from touchstone.errors import BadInput

_WAL_ATTEMPTS = 100


def ledger_engine(url: str, setting: str = "TOUCHSTONE_LEDGER_URL") -> sa.Engine:
    """Raises BadInput, which names the setting, for what is no URL, or one whose driver is missing or asynchronous."""
    try:
        parsed = sa.make_url(url)
        if parsed.drivername == "postgresql":  # which SQLAlchemy takes for a driver that is not installed
            parsed = parsed.set(drivername="postgresql+psycopg")
        is_async = parsed.get_dialect().is_async
        parsed.get_dialect().import_dbapi()
    except (sa_exc.ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise BadInput(
            f"{setting}: not an SQLAlchemy URL, as postgresql://USER@HOST/DATABASE or sqlite:////FOLDER/FILE"
        ) from None
    except ImportError as error:
        raise BadInput(f"{setting}: the driver {error.name} is not installed") from None
    if is_async:
        raise BadInput(f"{setting}: {parsed.drivername} is asynchronous; name a synchronous driver")
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
        connection.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten, not just forgotten

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
