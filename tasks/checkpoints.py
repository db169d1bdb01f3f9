"""Signed checkpoints of a ledger, in its database: each covers the events so far and names the checkpoint before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from tasks.ledger import Ledger
from tasks.ledger_keys import read_keys, signing_key
from touchstone.checkpoint import Checkpoint, SignedCheckpoint, read_checkpoint
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import GENESIS, LedgerEvent
from touchstone.merkle import Frontier
from touchstone.settings import Settings

_METADATA = sa.MetaData()
_CHECKPOINTS = sa.Table(
    "checkpoints",
    _METADATA,
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("previous", sa.String(64), primary_key=True),  # so that no two follow the same one
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("signed", sa.Text, nullable=False),
    sa.Column("frontier", sa.Text, nullable=False),  # of the tree, so that the next hashes the new events only
)


def read_checkpoints(ledger: Ledger) -> list[SignedCheckpoint]:
    """All of them, in order."""
    _make_table(ledger)
    query = sa.select(_CHECKPOINTS.c.signed).where(_CHECKPOINTS.c.environment == ledger.environment)
    with ledger.engine.connect().execution_options(reads=True) as connection:
        return [read_checkpoint(signed.encode()) for signed in connection.scalars(query.order_by(_CHECKPOINTS.c.size))]


def make_checkpoint(settings: Settings, ledger: Ledger) -> SignedCheckpoint:
    """Sign what there is; the latest checkpoint when nothing came after it.

    Raises BadInput when the key is not here, or when the new events do not hang together: nothing is signed then.
    """
    _make_table(ledger)
    for _ in range(20):
        key = signing_key(settings, ledger)  # the first time it appends an event, which this checkpoint covers
        last, frontier = _last(ledger)
        events = ledger.events(since=frontier.size, erased=True)
        if last is not None and not events:
            return last
        head = _extend(frontier, events, last.head if last else GENESIS)
        current = read_keys(ledger).at(frontier.size)
        if current is None or current.public_key != key.public_key:
            continue  # the key was rotated meanwhile
        checkpoint = Checkpoint(
            environment=ledger.environment,
            size=frontier.size,
            root=frontier.root().hex(),
            head=head,
            at=datetime.now(UTC).isoformat(),
            key_id=key.key_id,
            previous=last.digest if last else GENESIS,
        ).sign(key.sign)
        if _insert(ledger, checkpoint, frontier):
            return checkpoint
    raise LedgerConflict(f"{ledger.environment}: others made checkpoints 20 times meanwhile")


def _extend(frontier: Frontier, events: Sequence[LedgerEvent], head: str) -> str:
    """Add the leaves of these events; returns the digest of the last."""
    for event in events:
        if event.previous != head or event.sequence != frontier.size + 1:
            raise BadInput(
                f"ledger event {event.sequence} of {event.environment} does not follow the one before it: somebody "
                "changed the database. Nothing was signed; compare with the last export"
            )
        frontier.add(event.encoded())
        head = event.digest
    return head


def _last(ledger: Ledger) -> tuple[SignedCheckpoint | None, Frontier]:
    query = sa.select(_CHECKPOINTS).where(_CHECKPOINTS.c.environment == ledger.environment)
    with ledger.engine.connect().execution_options(reads=True) as connection:
        row = connection.execute(query.order_by(_CHECKPOINTS.c.size.desc()).limit(1)).first()
    if row is None:
        return None, Frontier()
    frontier = Frontier(row.size, [bytes.fromhex(root) for root in json.loads(row.frontier)])
    return read_checkpoint(row.signed.encode()), frontier


def _insert(ledger: Ledger, checkpoint: SignedCheckpoint, frontier: Frontier) -> bool:
    """False when another one follows the same checkpoint by now."""
    row = {
        "environment": checkpoint.environment,
        "previous": checkpoint.previous,
        "size": checkpoint.size,
        "signed": checkpoint.encoded().decode(),
        "frontier": json.dumps([root.hex() for root in frontier.roots]),
    }
    try:
        with ledger.engine.begin() as connection:
            connection.execute(_CHECKPOINTS.insert().values(row))
    except sa_exc.IntegrityError:
        return False
    return True


def _make_table(ledger: Ledger) -> None:
    try:
        _METADATA.create_all(ledger.engine)
    except sa_exc.IntegrityError:  # PostgreSQL, when two make it at once
        _METADATA.create_all(ledger.engine)
