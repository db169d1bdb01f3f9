"""What may be erased from a ledger, and the event that says it was.

Erasing takes what an event is about, payload and content, and leaves its leaf: place, time, kind, subject, digests. A
verifier accepts a missing payload or content only where an Erasure in the chain says that it was erased.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from touchstone.ledger import RELEASE_KINDS, EventKind, LedgerEvent

ERASURE_SUBJECT = "erasure"
_PROOF_KINDS = (EventKind.KEY_CREATED, EventKind.KEY_ROTATED, EventKind.ENTRY_ERASED)
# Of these the latest per subject is the state that the next run goes on from.
_STATE_KINDS = (
    EventKind.BASELINE_FROZEN,
    EventKind.EVAL_DECIDED,
    EventKind.INDEX_BUILT,
    EventKind.INDEX_PROMOTED,
    EventKind.FRESHNESS_CHECKED,
    EventKind.QUERIES_CHECKED,
    EventKind.CANARY_LOOKED,
    EventKind.PROBE_CHECKED,
    EventKind.ALARM_RAISED,
    EventKind.ALARM_CLEARED,
)


class Erasure(BaseModel):
    """Payload of ENTRY_ERASED. `content_digest`: of the content that went with it, unless something else names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(ge=1)
    content_digest: str | None
    reason: str
    by: str


def why_kept(event: LedgerEvent, *, is_latest: bool) -> str | None:
    """Why an event must not be erased; None when it may be. `is_latest`: of its kind and subject."""
    if event.is_erased:
        return "it was erased already"
    if event.kind in RELEASE_KINDS:
        return "what is served is worked out from the events of releases, so none of them can be erased"
    if event.kind in _PROOF_KINDS:
        return "the proof needs the events of keys and of erasures"
    if event.kind in _STATE_KINDS and is_latest:
        return f"it is the newest of {event.subject}, from which the next run goes on; erase it after that run"
    return None
