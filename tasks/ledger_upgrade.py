"""A ledger from before the hash chain gets one: its events are chained in their order, and none is lost."""

from __future__ import annotations

import json
import secrets

import sqlalchemy as sa

from touchstone.errors import BadInput
from touchstone.ledger import GENESIS, LedgerEvent, content_digest, encode_payload


def upgrade(connection: sa.Connection, events: sa.Table) -> None:
    """Bring the table that `events` describes up to date, in this transaction; the caller holds the writers' lock.

    The old table is replaced, not altered: a process of the old version that still runs must fail to append, since it
    would append outside the chain.
    """
    inspector = sa.inspect(connection)
    if not inspector.has_table(events.name):
        return
    if {column["name"] for column in inspector.get_columns(events.name)} >= set(events.columns.keys()):
        return
    chained = events.to_metadata(sa.MetaData(), name=f"{events.name}_chained")
    chained.indexes.clear()  # their names are taken while the old table is there
    chained.create(connection)
    _chain(connection, events, chained)
    connection.exec_driver_sql(f"DROP TABLE {events.name}")
    connection.exec_driver_sql(f"ALTER TABLE {chained.name} RENAME TO {events.name}")
    for index in events.indexes:
        index.create(connection)


def _chain(connection: sa.Connection, events: sa.Table, chained: sa.Table) -> None:
    names = ("environment", "sequence", "at", "kind", "subject", "payload", "content_digest")
    query = sa.select(*(events.c[name] for name in names)).order_by(events.c.environment, events.c.sequence)
    environment, previous = None, GENESIS
    for row in connection.execute(query).mappings().all():
        if row["environment"] != environment:
            environment, previous = row["environment"], GENESIS
        event = _leaf(row, previous)
        values = event.model_dump(mode="json") | {"payload": row["payload"], "salt": event.salt, "digest": event.digest}
        connection.execute(chained.insert().values(values))
        previous = event.digest


def _leaf(row: sa.RowMapping, previous: str) -> LedgerEvent:
    payload, salt = json.loads(row["payload"]), secrets.token_hex(16)
    try:
        digest = content_digest(encode_payload(payload, salt))
    except ValueError as error:  # such as NaN, which canonical JSON has no form for
        raise BadInput(
            f"ledger event {row['sequence']} of {row['environment']} cannot be chained ({error}); nothing was changed"
        ) from None
    return LedgerEvent.model_validate(
        dict(row) | {"payload": payload, "salt": salt, "payload_digest": digest, "previous": previous}
    )
