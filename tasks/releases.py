"""Release state in the ledger: read as the fold of its events, moved by compare-and-swap."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import Ledger
from touchstone.errors import LedgerConflict, Unmeasurable
from touchstone.ledger import RELEASE_KINDS, RELEASE_SUBJECT, EventKind, LedgerEvent
from touchstone.release import ReleaseState, fold


def read_release(ledger: Ledger) -> ReleaseState:
    """What the environment serves now. Raises Unmeasurable when the ledger cannot be read."""
    try:
        return fold(ledger.environment, ledger.events(subject=RELEASE_SUBJECT))
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise Unmeasurable(f"the ledger cannot say what {ledger.environment} serves: {reason}") from None


def append_release(
    ledger: Ledger, state: ReleaseState, kind: EventKind, payload: dict[str, Any], *, content: bytes | None = None
) -> LedgerEvent:
    """One step from `state`, as the caller has read it.

    Raises LedgerConflict when somebody was first, Unmeasurable when the ledger cannot be written.
    """
    try:
        return ledger.append(
            kind, RELEASE_SUBJECT, payload, content=content, after=state.sequence, watched=RELEASE_KINDS
        )
    except LedgerConflict:
        now = ledger.events(subject=RELEASE_SUBJECT, newest=1)
        if not now or now[0].sequence == state.sequence:  # the ledger is that busy
            raise
        raise LedgerConflict(
            f"{ledger.environment}: event {now[0].sequence} ({now[0].kind}) came first, so {kind} was not done; "
            "look at `touchstone release show` and decide again"
        ) from None
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise Unmeasurable(
            f"{kind} could not be recorded for {ledger.environment}: {reason}; see `touchstone release show`"
        ) from None
