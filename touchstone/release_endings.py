"""How a candidate's way ended, for those who come late: a second flow run, a form that was filled in afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from touchstone.ledger import EventKind, LedgerEvent


@dataclass(frozen=True)
class Ending:
    """`name` is the state that a flow run ends in."""

    name: str
    message: str

    @property
    def is_fine(self) -> bool:
        """Somebody decided; else nobody did, and somebody has to look."""
        return self.name not in {"Expired", "Not promoted"}


def ending(events: Iterable[LedgerEvent], since: int) -> Ending | None:
    """What the first event after `since` that ends a candidate's way says; None: it is still on its way."""
    for event in events:
        found = _ending(event) if event.sequence > since else None
        if found:
            return found
    return None


def asked_at(events: Iterable[LedgerEvent], approval_ids: Iterable[str]) -> int | None:
    """Sequence of the last of these questions; None: none of them was asked here."""
    ids = set(approval_ids)
    asked = [event for event in events if event.kind is EventKind.APPROVAL_ASKED]
    return max((event.sequence for event in asked if event.payload["approval_id"] in ids), default=None)


def _ending(event: LedgerEvent) -> Ending | None:
    payload = event.payload
    told = f"event {event.sequence}, by {payload.get('by', 'nobody')}: {payload.get('reason', '')}"
    if event.kind is EventKind.RELEASE_PROMOTED:
        name = payload["deployment"]["definition"]["bundle"]["name"]
        return Ending("Promoted", f"{name} takes all traffic ({told})")
    if event.kind is EventKind.APPROVAL_GIVEN and payload["decision"] == "deny":
        return Ending("Denied", f"the candidate was denied ({told})")
    if event.kind is EventKind.RELEASE_ROLLED_BACK:
        return Ending("Rolled back", f"the {payload['what']} was rolled back, and the candidate dropped ({told})")
    if event.kind is EventKind.CANARY_STOPPED:
        return Ending("Stopped", f"the canary was stopped ({told})")
    if event.kind is EventKind.RELEASE_CANDIDATE:
        return Ending("Superseded", f"a later gate made another candidate, whose approval is asked for anew ({told})")
    return None
