"""Release state in the ledger: read as the fold of its events, moved by compare-and-swap."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import Ledger
from touchstone.definition import Definition
from touchstone.errors import LedgerConflict, Unmeasurable
from touchstone.ledger import RELEASE_KINDS, RELEASE_SUBJECT, EventKind, LedgerEvent, gate_subject
from touchstone.release import ReleaseState, fold
from touchstone.routing import Parity, PublishedFallback, Served, fallback_names


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


def fallback_parity(ledger: Ledger, state: ReleaseState) -> tuple[PublishedFallback, ...]:
    """The fall-backs of what is served, each with whether the gate passed it against the champion of now."""
    return tuple(_fallback(ledger, state, name) for name in fallback_names(state))


def _fallback(ledger: Ledger, state: ReleaseState, name: str) -> PublishedFallback:
    """By its latest parity check. What the gate measured is what may serve, whatever its files say by now."""
    decided = [e for e in ledger.events(EventKind.GATE_DECIDED, gate_subject(name)) if _is_parity_check(e)]
    how = f"`touchstone gate` checks {name} as a fall-back"
    if not decided:
        return PublishedFallback(bundle=name, parity=Parity.MISSING, reason=f"no gate decision; {how}")
    latest = decided[-1].payload
    key, verdict, against = latest.get("gate_key"), latest.get("verdict"), latest.get("against")
    definition = Definition.model_validate(latest["definition"])
    served = Served(bundle=name, fingerprint=definition.fingerprint, definition=definition)
    champion = state.champion.deployment.fingerprint if state.champion else None
    if verdict != "pass" or latest.get("fingerprint") != definition.fingerprint:
        parity, reason = Parity.MISSING, f"{key}: {verdict}; {how}"
    elif against != champion:
        parity, reason = Parity.STALE, f"{key}: passed against {against}, the champion is {champion}; {how} again"
    else:
        parity, reason = Parity.PASSED, f"{key}: passed against the champion"
    return PublishedFallback(bundle=name, parity=parity, reason=reason, served=served)


def _is_parity_check(event: LedgerEvent) -> bool:
    return event.payload.get("role") == "fallback" and isinstance(event.payload.get("definition"), dict)
