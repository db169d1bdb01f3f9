"""Which index version serves a retrieval config: a pointer in the ledger that is moved by compare-and-swap.

Every move is an event, so that the history of a config is all there is to know of it. In Lance a tag keeps what the
pointer can go back to; everything else is removed by `clean_up` once it is old.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from tasks.index_retention import CleanUp, TagOwner, clean_table, retag, tag_version
from tasks.index_table import open_latest, writer_lock
from tasks.ledger import Ledger
from touchstone.errors import BadInput, LedgerConflict, Unmeasurable
from touchstone.index import IndexVersion
from touchstone.ledger import EventKind, LedgerEvent, index_subject

_KEPT = 3
_log = logging.getLogger("touchstone")


@dataclass(frozen=True)
class LivePointer:
    """One move of the pointer; the latest of a config says what is live."""

    index: IndexVersion
    sequence: int
    promoted_at: str
    reason: str
    build_key: str | None = None  # None: moved by hand


def live_pointer(ledger: Ledger, config_name: str) -> LivePointer | None:
    """What is live now; None: nothing was ever promoted. Raises Unmeasurable when the ledger cannot be read."""
    try:
        event = ledger.latest(EventKind.INDEX_PROMOTED, index_subject(config_name))
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise Unmeasurable(f"the ledger cannot say which index of {config_name} is live: {reason}") from None
    return None if event is None else _pointer(event)


def pointer_history(ledger: Ledger, config_name: str) -> list[LivePointer]:
    """Every move of the pointer, roll-backs too, oldest first."""
    return [_pointer(event) for event in ledger.events(EventKind.INDEX_PROMOTED, index_subject(config_name))]


def promote(
    ledger: Ledger, lance_uri: str, index: IndexVersion, *, after: int, reason: str, build_key: str | None = None
) -> LivePointer:
    """Make a version live for its config. `after` is the sequence of the pointer as the caller knows it (0: none).

    Raises LedgerConflict when the pointer was moved since, Unmeasurable when the version cannot be read; the pointer
    is then as it was. Needs no lock: a version that was just built is too young for any clean-up.
    """
    # The tag comes first: a clean-up must not take what is about to be live.
    tag_version(lance_uri, TagOwner(ledger.environment, index.config_name), index)
    try:
        pointer = _move(ledger, index, after, reason, build_key)
    except LedgerConflict:
        moved = live_pointer(ledger, index.config_name)
        to = f"moved to {moved.index.label} ({moved.reason})" if moved else "moved"
        raise LedgerConflict(
            f"{index.config_name}: the live index was {to} meanwhile, so {index.label} stays unpromoted; "
            f"run `touchstone reindex --config {index.config_name}` again"
        ) from None
    finally:
        _retag_all(ledger, lance_uri, index.config_name)
    return pointer


def roll_back(ledger: Ledger, lance_uri: str, config_name: str, to: str | None = None) -> LivePointer:
    """Move the pointer to the version that was live before, or to the one that `to` labels.

    Before means: not counting what was rolled back from (`way_back`), so that a second roll-back goes further back.
    Raises BadInput when there is no such version, Unmeasurable when it is gone; the pointer is then as it was.
    """
    history = pointer_history(ledger, config_name)
    target = _target(history, config_name, to)
    live = history[-1]
    with contextlib.ExitStack() as stack:
        if target.label not in {index.label for index in retained_versions(history, _KEPT)}:
            stack.enter_context(writer_lock(lance_uri, target.table, wait=True))  # it has no tag: keep clean-ups away
        try:
            rows = tag_version(lance_uri, TagOwner(ledger.environment, config_name), target)
        except Unmeasurable as error:
            raise Unmeasurable(f"{config_name}: {error}. {live.index.label} stays live") from None
        if rows != target.chunks:
            raise Unmeasurable(
                f"{config_name}: {target.label} has {rows} chunks, not the {target.chunks} that were promoted: the "
                f"table was made anew since. {live.index.label} stays live; run `touchstone reindex`"
            )
        try:
            return _move(ledger, target, live.sequence, f"rolled back from {live.index.label}")
        except LedgerConflict:
            raise LedgerConflict(
                f"{config_name}: the live index was moved meanwhile and is no longer {live.index.label}; see "
                f"`touchstone index list --config {config_name}`, and roll back again"
            ) from None
        finally:
            _retag_all(ledger, lance_uri, config_name)


def way_back(history: Sequence[LivePointer]) -> list[IndexVersion]:
    """Versions that the live one (the last) was reached by, oldest first.

    Going back to a version forgets those after it: they were rolled back from, and are not where a later roll-back
    should end. After A, B, C, back to A, D the way is A, D.
    """
    way: list[IndexVersion] = []
    for pointer in history:
        labels = [index.label for index in way]
        if pointer.index.label in labels:
            del way[labels.index(pointer.index.label) :]
        way.append(pointer.index)
    return way


def rejected_versions(history: Sequence[LivePointer]) -> list[IndexVersion]:
    """Versions that somebody went back from and nobody returned to: no build should bring them back by itself."""
    rejected: dict[str, IndexVersion] = {}
    seen: list[str] = []
    for left, pointer in zip([None, *history], history, strict=False):
        label = pointer.index.label
        rejected.pop(label, None)
        if pointer.build_key is not None:
            rejected.clear()  # a build came after it: what it was rejected for is history
        if left is not None and pointer.build_key is None and label in seen[: seen.index(left.index.label)]:
            rejected[left.index.label] = left.index
        if label not in seen:
            seen.append(label)
    return list(rejected.values())


def retained_versions(history: Sequence[LivePointer], keep: int) -> list[IndexVersion]:
    """The `keep` versions that were live last, newest first, and in any case the one that a roll-back goes to."""
    newest = {pointer.index.label: pointer.index for pointer in reversed(history)}
    previous = way_back(history)[-2:-1]
    kept = [*list(newest.values())[:keep], *previous]
    return list({index.label: index for index in kept}.values())


def clean_up(
    ledger: Ledger,
    lance_uri: str,
    config_name: str,
    keep: int = _KEPT,
    older_than: timedelta = timedelta(days=1),
) -> list[CleanUp]:
    """Remove old versions from the tables that the config was ever live in, and compact those tables.

    Nothing is removed that is younger than `older_than` (an eval may be reading it), or that is as new as the oldest
    tagged version: Lance removes all up to a moment, and other configs and environments have tags in the table, too.
    A table that somebody else writes to, or that Lance cannot clean, is skipped and says why: it never raises for
    that, because a promotion that is done must not fail by it.
    """
    if keep < 1:
        raise BadInput("keep must be at least 1: the live version itself")
    history = pointer_history(ledger, config_name)
    retained = retained_versions(history, keep)
    tables = dict.fromkeys(pointer.index.table for pointer in history)
    owner = TagOwner(ledger.environment, config_name)
    return [clean_table(lance_uri, owner, table, retained, older_than) for table in tables]


def _move(ledger: Ledger, index: IndexVersion, after: int, reason: str, build_key: str | None = None) -> LivePointer:
    payload = {"index": index.model_dump(mode="json"), "reason": reason, "build_key": build_key}
    return _pointer(ledger.append(EventKind.INDEX_PROMOTED, index_subject(index.config_name), payload, after=after))


def _pointer(event: LedgerEvent) -> LivePointer:
    """Fields that a later touchstone added are passed over: readers and builders are not upgraded at one moment."""
    payload = event.payload
    try:
        known = {name: value for name, value in payload["index"].items() if name in IndexVersion.model_fields}
        index = IndexVersion.model_validate(known)
        return LivePointer(index, event.sequence, event.at, payload["reason"], payload.get("build_key"))
    except (KeyError, ValidationError) as error:
        fields = error.errors() if isinstance(error, ValidationError) else [{"loc": error.args}]
        names = ", ".join(str(field["loc"][0]) for field in fields)
        raise Unmeasurable(
            f"ledger event {event.sequence} ({event.kind}) names no index that can be read: {names}; another "
            "version of touchstone wrote it"
        ) from None


def _target(history: Sequence[LivePointer], config_name: str, to: str | None) -> IndexVersion:
    if not history:
        raise BadInput(f"{config_name} has no live index; `touchstone reindex --config {config_name}` makes one")
    live = history[-1].index
    if to is None:
        way = way_back(history)
        if len(way) < 2:
            raise BadInput(f"{config_name}: no version was live before {live.label}; `--to LABEL` names another")
        return way[-2]
    known = {pointer.index.label: pointer.index for pointer in history}
    if to not in known:
        last = ", ".join(list(known)[-5:])
        raise BadInput(f"{config_name}: {to} was never live, so it cannot be rolled back to; these were: {last}")
    if to == live.label:
        raise BadInput(f"{config_name}: {to} is live already")
    return known[to]


def _retag_all(ledger: Ledger, lance_uri: str, config_name: str) -> None:
    """Tags of what may go. A clean-up does it again, so a failure costs some disk and no promotion."""
    owner = TagOwner(ledger.environment, config_name)
    try:
        history = pointer_history(ledger, config_name)
        for name in {pointer.index.table for pointer in history}:
            table = open_latest(lance_uri, name)
            if table is not None:
                retag(table, owner, retained_versions(history, _KEPT))
    except Exception as error:  # whatever it is: the pointer has moved, or an error that matters more is on its way
        _log.warning("tags of %s could not be brought up to date: %s", config_name, error)
