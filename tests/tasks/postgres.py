"""A PostgreSQL database of the tests' own, where a server answers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

SERVER = os.environ.get("TOUCHSTONE_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1:5432/test")


def postgres_url() -> Iterator[str]:
    """Yields the URL of an empty database and drops it at the end; skips where no server answers."""
    admin = sa.create_engine(SERVER, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    name = f"touchstone_{secrets.token_hex(6)}"
    try:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).splitlines()[0]
        pytest.skip(f"no PostgreSQL (start one, or name it in TOUCHSTONE_TEST_POSTGRES): {reason}")
    yield sa.make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()
