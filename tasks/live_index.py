"""Which index version serves a retrieval config: a pointer in the ledger that is moved by compare-and-swap.

Every move is an event, so that the history of a config is all there is to know of it. In Lance a tag keeps what the
pointer can go back to; everything else is removed by `clean_up` once it is old.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tasks.index_table import open_latest, open_table, writer_lock
from tasks.ledger import Ledger
from touchstone.errors import BadInput, LedgerConflict, Unmeasurable
from touchstone.index import IndexVersion
from touchstone.ledger import EventKind, LedgerEvent, index_subject

if TYPE_CHECKING:
    from lancedb.table import Table

_KEPT = 3
_NEVER = timedelta(days=36_500)
_LANCE_ERRORS = (RuntimeError, OSError, ValueError)
_log = logging.getLogger("touchstone")


@dataclass(frozen=True)
class LivePointer:
    """One move of the pointer; the latest of a config says what is live."""

    index: IndexVersion
    sequence: int
    promoted_at: str
    reason: str
    build_key: str | None = None  # None: moved by hand


@dataclass(frozen=True)
class CleanUp:
    """What a clean-up did to one table."""

    table: str
    removed: tuple[int, ...] = ()
    versions: int = 0  # that are left
    oldest_tag: str | None = None  # nothing newer than the version it names could be removed
    skipped: str | None = None  # why nothing was done


def live_pointer(ledger: Ledger, config_name: str) -> LivePointer | None:
    """What is live now; None: nothing was ever promoted."""
    event = ledger.latest(EventKind.INDEX_PROMOTED, index_subject(config_name))
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
    _tag(ledger, lance_uri, index)  # first: a clean-up must not take what is about to be live
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
            rows = _tag(ledger, lance_uri, target)
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
    return [_clean_table(ledger, lance_uri, config_name, table, retained, older_than) for table in tables]


def _clean_table(
    ledger: Ledger,
    lance_uri: str,
    config_name: str,
    name: str,
    retained: Iterable[IndexVersion],
    older_than: timedelta,
) -> CleanUp:
    try:
        with writer_lock(lance_uri, name, wait=False):
            table = open_latest(lance_uri, name)
            if table is None:
                return CleanUp(name, skipped="there is no such table any more")
            _retag(table, ledger.environment, config_name, retained)
            return _remove_old(table, older_than)
    except LedgerConflict:
        return CleanUp(name, skipped="a build of this index is running")
    except _LANCE_ERRORS as error:
        _log.warning("index %s could not be cleaned up: %s", name, error)
        return CleanUp(name, skipped=str(error))


def _remove_old(table: Table, older_than: timedelta) -> CleanUp:
    """Two calls of optimize: the first may compact for minutes, the second has only to remove.

    The cut-off is just above the newest version that goes, as far as possible below the oldest tagged one: Lance
    refuses to remove anything when a tagged version is older than the cut-off, and counts from its own clock.
    """
    before = _versions(table)
    tags = {name: tag["version"] for name, tag in table.tags.list().items()}
    oldest_tag = min(tags, key=lambda name: tags[name], default=None)
    reach = max(before) if oldest_tag is None else tags[oldest_tag]  # the latest version is never removed
    limit = datetime.now(UTC) - older_than
    old = [version for version, made in before.items() if version < reach and made < limit]
    if old:
        table.optimize(cleanup_older_than=_NEVER)
        table.optimize(cleanup_older_than=datetime.now(UTC) - max(before[version] for version in old))
        table.checkout_latest()
    after = _versions(table)
    return CleanUp(table.name, tuple(sorted(before.keys() - after.keys())), len(after), oldest_tag)


def _versions(table: Table) -> dict[int, datetime]:
    """When each version was made. Lance gives local times without a zone."""
    return {entry["version"]: entry["timestamp"].astimezone(UTC) for entry in table.list_versions()}


def _move(ledger: Ledger, index: IndexVersion, after: int, reason: str, build_key: str | None = None) -> LivePointer:
    payload = {"index": index.model_dump(mode="json"), "reason": reason, "build_key": build_key}
    return _pointer(ledger.append(EventKind.INDEX_PROMOTED, index_subject(index.config_name), payload, after=after))


def _pointer(event: LedgerEvent) -> LivePointer:
    try:
        index = IndexVersion.model_validate(event.payload["index"])
        return LivePointer(index, event.sequence, event.at, event.payload["reason"], event.payload.get("build_key"))
    except (KeyError, ValidationError) as error:
        raise Unmeasurable(
            f"ledger event {event.sequence} ({event.kind}) cannot be understood: {error}; was it written by another "
            "version of touchstone?"
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


def _tag(ledger: Ledger, lance_uri: str, index: IndexVersion) -> int:
    """Keep a version from clean-ups; returns its rows. Raises Unmeasurable when it cannot be read."""
    table = open_table(lance_uri, index.table, index.version)
    name = _tag_prefix(ledger.environment, index.config_name) + str(index.version)
    try:
        if name not in table.tags.list():
            table.tags.create(name, index.version)
        return table.count_rows()
    except _LANCE_ERRORS as error:
        raise Unmeasurable(f"index {index.label} cannot be tagged: {error}") from None


def _retag_all(ledger: Ledger, lance_uri: str, config_name: str) -> None:
    """Tags of what may go. A clean-up does it again, so a failure costs some disk and no promotion."""
    try:
        history = pointer_history(ledger, config_name)
        for name in {pointer.index.table for pointer in history}:
            table = open_latest(lance_uri, name)
            if table is not None:
                _retag(table, ledger.environment, config_name, retained_versions(history, _KEPT))
    except Exception as error:  # whatever it is: the pointer has moved, or an error that matters more is on its way
        _log.warning("tags of %s could not be brought up to date: %s", config_name, error)


def _retag(table: Table, environment: str, config_name: str, retained: Iterable[IndexVersion]) -> None:
    """Tags of this config and environment: those of retained versions that still exist, and no others."""
    prefix = _tag_prefix(environment, config_name)
    found = {name for name in table.tags.list() if name.startswith(prefix)}
    wanted = {prefix + str(index.version): index.version for index in retained if index.table == table.name}
    exist = {entry["version"] for entry in table.list_versions()}
    for name in wanted.keys() - found:
        if wanted[name] in exist:
            table.tags.create(name, wanted[name])
    for name in found - wanted.keys():
        table.tags.delete(name)


def _tag_prefix(environment: str, config_name: str) -> str:
    """Names that Lance takes. One letter outside ASCII in a tag, and `tags.list()` of the whole table fails."""
    digest = hashlib.sha256(f"{environment}/{config_name}".encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{environment}-{config_name}").strip("-")[:80]
    return f"live-{words}-{digest}-"
