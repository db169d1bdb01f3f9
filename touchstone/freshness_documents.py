"""Each indexed document against its source as it is now, and when the two were last seen equal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from touchstone.freshness_records import DocumentStatus
from touchstone.index import IndexedDocument, UnreadableDocument, compare_source

Verified = Mapping[str, tuple[str, datetime]]  # by document id: start of its content hash, when it was last equal

_HASH = 16  # hexadecimal digits of a content hash that are kept for the next check: 64 bits
_DAY = 86_400.0


@dataclass(frozen=True)
class SourceNow:
    """What a source holds; `lengths` are in characters."""

    hashes: Mapping[str, tuple[str, str]]  # (content hash, record hash) by id
    lengths: Mapping[str, int]
    unreadable: tuple[UnreadableDocument, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentFreshness:
    """One indexed document."""

    id: str
    status: DocumentStatus
    content_hash: str
    verified_at: datetime
    embedded_at: datetime
    chunks: int
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """The live index against its source at one moment."""

    at: datetime
    documents: tuple[DocumentFreshness, ...]
    never_embedded: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()  # of the source, left out by policy
    source_documents: int = 0  # that could be embedded
    source_error: str = ""  # why the source could not be read: then nothing above is known of it
    warnings: tuple[str, ...] = ()

    @cached_property
    def ages(self) -> NDArray[np.float64]:
        """Days since each document was last seen equal to its source."""
        return np.array([(self.at - document.verified_at).total_seconds() / _DAY for document in self.documents])

    @cached_property
    def embedded_ages(self) -> NDArray[np.float64]:
        return np.array([(self.at - document.embedded_at).total_seconds() / _DAY for document in self.documents])

    def marks(self, max_age_days: float) -> NDArray[np.bool_]:
        """(3, documents): stale, lagging, ghost; the order of the first three measures."""
        statuses = [document.status for document in self.documents]
        rows = [[status is wanted for status in statuses] for wanted in (DocumentStatus.LAGGING, DocumentStatus.GHOST)]
        return np.array([self.ages > max_age_days, *(np.array(row, bool) for row in rows)])

    @property
    def verified(self) -> dict[str, tuple[str, datetime | None]]:
        """What the next check has to know; None: at this check."""
        return {
            document.id: (
                document.content_hash[:_HASH],
                None if document.status is DocumentStatus.FRESH else document.verified_at,
            )
            for document in self.documents
        }


def inspect(
    indexed: Sequence[IndexedDocument],
    source: SourceNow | str,
    verified: Verified,
    now: datetime,
    quarantined: Collection[str] = (),
) -> Inspection:
    """Tell the status of every indexed document. `source` is text when it cannot be read at all: why.

    An unchanged document is verified now, so it is never old. Another one keeps the time at which this content was
    last equal to its source: the check that saw it, else its embedding. A time later than now is a wrong clock.
    """
    ahead = sum(_time(document.embedded_at) > now for document in indexed)
    message = (
        f"{ahead} documents were embedded later than now ({now:%Y-%m-%d %H:%M} UTC), and count as now: check clocks"
    )
    warnings = (message,) if ahead else ()
    if isinstance(source, str):
        statuses = dict.fromkeys((document.id for document in indexed), (DocumentStatus.UNVERIFIABLE, ""))
        documents = _documents(indexed, statuses, verified, now)
        return Inspection(now, documents, source_error=source, warnings=warnings)
    changes = compare_source(indexed, source.hashes, source.unreadable)
    reasons = {broken.id: f"{broken.where}: {broken.reason}" for broken in source.unreadable}
    statuses = {
        **dict.fromkeys(changes.changed, (DocumentStatus.LAGGING, "")),
        **dict.fromkeys(changes.deleted, (DocumentStatus.GHOST, "")),
        **{old: (DocumentStatus.GHOST, f"renamed to {new}") for old, new in changes.renamed},
        **{id: (DocumentStatus.UNVERIFIABLE, reasons.get(id, "may be one that cannot be read")) for id in changes.kept},
    }
    left_out = set(changes.added) & set(quarantined)
    return Inspection(
        at=now,
        documents=_documents(indexed, statuses, verified, now),
        never_embedded=tuple(id for id in changes.added if id not in left_out),
        quarantined=tuple(sorted(left_out)),
        source_documents=len(source.hashes) - len(left_out),
        warnings=warnings + _unreadable_warning(source.unreadable),
    )


def _clock_warning(indexed: Sequence[IndexedDocument], now: datetime) -> tuple[str, ...]:
    ahead = sum(_time(document.embedded_at) > now for document in indexed)
    when = f"{now:%Y-%m-%d %H:%M} UTC"
    message = f"{ahead} documents were embedded later than now ({when}), and count as now: check clocks"
    return (message,) if ahead else ()


def _unreadable_warning(unreadable: Sequence[UnreadableDocument]) -> tuple[str, ...]:
    """Those that were never embedded are listed nowhere else."""
    if not unreadable:
        return ()
    first = f"{unreadable[0].where}: {unreadable[0].reason}"
    return (f"documents of the source that cannot be read: {len(unreadable)}, the first: {first}",)


def _documents(
    indexed: Sequence[IndexedDocument],
    statuses: Mapping[str, tuple[DocumentStatus, str]],
    verified: Verified,
    now: datetime,
) -> tuple[DocumentFreshness, ...]:
    found = []
    for document in indexed:
        status, note = statuses.get(document.id, (DocumentStatus.FRESH, ""))
        embedded_at = min(_time(document.embedded_at), now)
        seen = embedded_at
        if document.id in verified and verified[document.id][0] == document.content_hash[:_HASH]:
            seen = max(embedded_at, min(verified[document.id][1], now))
        at = now if status is DocumentStatus.FRESH else seen
        found.append(
            DocumentFreshness(document.id, status, document.content_hash, at, embedded_at, document.chunks, note)
        )
    return tuple(found)


def _time(text: str) -> datetime:
    """Without a zone it is UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
