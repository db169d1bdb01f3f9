"""What people and flows do to a release: promote, roll back, approve, deny, stop. Each is one event, and one outcome.

Every act reads the state, asks the pure step, and appends by compare-and-swap; the live index follows afterwards
(`tasks.release_index`). An act that was overtaken by something that does not concern it (a look at the canary, a
second approver) is tried again; otherwise whoever comes second is told so, and nothing was done.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from tasks.ledger import Ledger
from tasks.releases import append_release, read_release
from touchstone import release_steps as steps
from touchstone.errors import LedgerConflict, TouchstoneError
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.release import ApprovalRequest, Candidate, ReleaseState
from touchstone.release_policy import Approver
from touchstone.release_words import clean_name, clean_reason, needed_reason
from touchstone.settings import Settings

Step = Callable[[ReleaseState], tuple[EventKind, dict[str, Any]]]

_ATTEMPTS = 10


@dataclass(frozen=True)
class Done:
    """An act that was recorded, and what is served since."""

    event: LedgerEvent
    state: ReleaseState
    index_version: str | None = None  # label that the live pointer was moved to
    index_error: str | None = None  # why it could not be: the event stands all the same


@dataclass(frozen=True)
class Decided:
    """A human's word that was recorded (None: it was before), and the promotion that it completed."""

    event: LedgerEvent | None
    state: ReleaseState
    approval_id: str = ""
    promoted: Done | None = None
    open: str | None = None  # why nothing was promoted yet
    is_promoted: bool = False  # by this word, or by who was faster with the same approvals

    @property
    def is_over(self) -> bool:
        """Nothing is left to answer."""
        return self.open is None


def promote(settings: Settings, ledger: Ledger, by: str, reason: str) -> Done:
    """The candidate takes all traffic. Raises BadInput while something lacks, LedgerConflict when one was first."""
    state = read_release(ledger)
    payload = steps.promote(state, clean_name(by), clean_reason(reason), datetime.now(UTC))
    candidate = state.candidate
    if candidate is not None and candidate.deployment.definition.retrieval is not None:
        from tasks.release_index import check_index

        check_index(settings, ledger, candidate.deployment.definition)
    return _done(settings, ledger, append_release(ledger, state, EventKind.RELEASE_PROMOTED, payload))


def roll_back(
    settings: Settings, ledger: Ledger, by: str, reason: str, *, to: int | None = None, champion: bool = False
) -> Done:
    """Take the canary off its traffic; without one, with `champion` or with `to`, an earlier champion serves again."""
    by, reason = clean_name(by), needed_reason(reason)

    def canary_back(state: ReleaseState) -> tuple[EventKind, dict[str, Any]]:
        return EventKind.RELEASE_ROLLED_BACK, steps.roll_back_canary(state, by, reason)

    def champion_back(state: ReleaseState) -> tuple[EventKind, dict[str, Any]]:
        return EventKind.RELEASE_ROLLED_BACK, steps.roll_back(state, by, reason, to)

    state = read_release(ledger)
    if state.canary is not None and not champion and to is None:
        return _done(settings, ledger, _take(ledger, state, canary_back, _canary_id))
    return _done(settings, ledger, _take(ledger, state, champion_back, lambda now: now.served_since))


def stop(settings: Settings, ledger: Ledger, by: str, reason: str) -> Done:
    """Somebody takes the candidate off all traffic, without saying that it did harm."""
    by, reason = clean_name(by), needed_reason(reason)
    state = read_release(ledger)
    event = _take(ledger, state, lambda now: (EventKind.CANARY_STOPPED, steps.stop_canary(now, by, reason)), _canary_id)
    return _done(settings, ledger, event)


def ask(ledger: Ledger, *, again: bool = False) -> ApprovalRequest:
    """The open question for a human; asked now when there is none. `again`: also when it has expired."""
    for _ in range(_ATTEMPTS):
        state = read_release(ledger)
        request = _request(state)
        if request is not None and not (again and request.is_expired(datetime.now(UTC))):
            return request
        try:
            return _ask(ledger, state, _draft(state))
        except LedgerConflict:
            continue  # somebody asks at the same time: theirs is as good
    raise LedgerConflict(f"{ledger.environment}: the release moved on while its approval was asked for; look again")


def decide(
    settings: Settings,
    ledger: Ledger,
    decision: Literal["approve", "deny"],
    by: str,
    reason: str,
    *,
    via: str,
    approval_id: str | None = None,
    signature: str | None = None,
    sign: Callable[[ApprovalRequest], str] | None = None,
) -> Decided:
    """Record one person's word, and promote when it was the last one that lacked.

    `approval_id`: the question that was answered; an answer to another one counts for nothing. Without it the open
    one, which is asked when there is none; `sign` then makes the signature. Raises BadInput when the word does not
    count: nothing is recorded then, not even the question.
    """
    by, reason = clean_name(by), clean_reason(reason)
    state = read_release(ledger)
    if approval_id is None:
        request = _request(state) or ApprovalRequest(asked_at=datetime.now(UTC).isoformat(), **_draft(state))
        approval_id, signature = request.approval_id, sign(request) if sign else signature
        if _request(state) is None:
            asked = _with_request(state, request)
            _give(decision, by, reason, approval_id, via, signature)(asked)  # would it count?
            _ask(ledger, state, request.model_dump(mode="json", exclude={"asked_at", "given"}))
            state = read_release(ledger)
    event = None
    if not (decision == "approve" and _stands_already(state, approval_id, by)):
        event = _take(ledger, state, _give(decision, by, reason, approval_id, via, signature), _approval_id)
    if decision == "deny":
        return Decided(event, read_release(ledger), approval_id)
    decided = replace(finish(settings, ledger, event), approval_id=approval_id)
    if state.candidate and _is_released(decided.state, state.candidate):
        return replace(decided, open=None, is_promoted=True)
    return decided


def finish(settings: Settings, ledger: Ledger, event: LedgerEvent | None = None) -> Decided:
    """Promote the candidate when its approvals are complete; whoever completes them may have died before it did."""
    state = read_release(ledger)
    candidate, request = state.candidate, _request(state)
    if candidate is None or request is None:
        return Decided(event, state, open="there is no question any more; see `touchstone release history`")
    if not request.is_complete:
        given = f"{len(request.approved_by)} of {request.required} approvals"
        return Decided(event, state, open=f"{given}; the others have until {request.expires_at}")
    reason = "; ".join(approval.reason for approval in request.given)
    try:
        done = promote(settings, ledger, ", ".join(request.approved_by), reason)
    except TouchstoneError as error:
        now = read_release(ledger)
        if _is_released(now, candidate):
            return Decided(event, now, is_promoted=True)
        raise type(error)(f"approved, but not promoted: {error}. `touchstone promote` tries it again") from None
    return Decided(event, done.state, promoted=done, is_promoted=True)


def ask_where_needed(ledger: Ledger) -> ApprovalRequest | None:
    """Ask for the approvals that the candidate lacks; None: it needs none, or the question is open."""
    state = read_release(ledger)
    candidate, request = state.candidate, _request(state)
    if candidate is None or not candidate.deployment.policy.approval.required:
        return None
    if request is not None and not request.is_expired(datetime.now(UTC)):
        return None
    return ask(ledger, again=True)


def index_behind(ledger: Ledger, state: ReleaseState) -> str | None:
    """What to do about a live index that a crash left behind its release; None: it is as the release asks."""
    if state.champion is None or state.champion.deployment.definition.retrieval is None:
        return None
    from tasks.release_index import is_behind

    what = "the live index has not followed the release; `touchstone rollback --repair`"
    return what if is_behind(ledger, state) else None


def repair(settings: Settings, ledger: Ledger) -> tuple[ReleaseState, str | None]:
    """Complete what a crash left: the champion's index becomes live. Returns its label when it was moved."""
    from tasks.release_index import follow_release

    state = read_release(ledger)
    return state, follow_release(settings, ledger, state)


def _take(ledger: Ledger, state: ReleaseState, step: Step, about: Callable[[ReleaseState], object]) -> LedgerEvent:
    """Append the step; again on the new state while what it is `about` is still as it was."""
    meant = about(state)
    for attempt in range(1, _ATTEMPTS + 1):
        kind, payload = step(state)
        try:
            return append_release(ledger, state, kind, payload)
        except LedgerConflict:
            state = read_release(ledger)
            if attempt == _ATTEMPTS or about(state) != meant:
                raise
    raise AssertionError("the last attempt returns or raises")


def _draft(state: ReleaseState) -> dict[str, Any]:
    place = state.candidate.sequence if state.candidate else 0
    return steps.ask_approval(state, f"approval-{place}-{secrets.token_hex(3)}", datetime.now(UTC))


def _ask(ledger: Ledger, state: ReleaseState, payload: dict[str, Any]) -> ApprovalRequest:
    event = append_release(ledger, state, EventKind.APPROVAL_ASKED, payload)
    return ApprovalRequest(asked_at=event.at, **payload)


def _with_request(state: ReleaseState, request: ApprovalRequest) -> ReleaseState:
    """The state as it will be when the question is asked."""
    assert state.candidate is not None  # its draft was made
    candidate = state.candidate.model_copy(update={"approval": request})
    return state.model_copy(update={"candidate": candidate})


def _give(decision: str, by: str, reason: str, approval_id: str, via: str, signature: str | None) -> Step:
    def give(state: ReleaseState) -> tuple[EventKind, dict[str, Any]]:
        payload = steps.give_approval(
            state,
            decision,
            by,
            reason,
            approval_id=approval_id,
            via=via,
            now=datetime.now(UTC),
            signature=signature,
            is_signed=_is_signed(state, decision, by, approval_id, signature),
        )
        return EventKind.APPROVAL_GIVEN, payload

    return give


def _is_signed(state: ReleaseState, decision: str, by: str, approval_id: str, signature: str | None) -> bool:
    request = _request(state)
    approvers: tuple[Approver, ...] = request.approvers if request else ()
    key = next((approver.public_key for approver in approvers if approver.name == by), None)
    if request is None or key is None or not signature:
        return False
    from tasks.signing import verify_approval

    return verify_approval(key, signature, approval_id, request.fingerprint, decision)


def _done(settings: Settings, ledger: Ledger, event: LedgerEvent) -> Done:
    """The release event stands; the index follows it, where there is one."""
    state = read_release(ledger)
    if state.champion is None or state.champion.deployment.definition.retrieval is None:
        return Done(event, state)
    from tasks.release_index import follow_release

    try:
        return Done(event, state, index_version=follow_release(settings, ledger, state))
    except TouchstoneError as error:
        return Done(event, state, index_error=str(error))
    except Exception as error:  # Lance raises what it likes; the release event stands, and must not look undone
        why = f"{type(error).__name__}: {error}"
        return Done(event, state, index_error=f"{why}; the release stands, `touchstone rollback --repair` repeats this")


def _stands_already(state: ReleaseState, approval_id: str, by: str) -> bool:
    """The approval is complete and `by` gave one: it was recorded, and what came after it was not done."""
    request = _request(state)
    if request is None or request.approval_id != approval_id or not request.is_complete:
        return False
    return by.casefold() in {name.casefold() for name in request.approved_by}


def _request(state: ReleaseState) -> ApprovalRequest | None:
    return state.candidate.approval if state.candidate else None


def _is_released(state: ReleaseState, candidate: Candidate) -> bool:
    """It became champion after it was seen as the candidate: the flow, or another approver, was faster."""
    champion = state.champion
    if champion is None or champion.sequence < candidate.sequence:
        return False
    return champion.deployment.fingerprint == candidate.deployment.fingerprint


def _approval_id(state: ReleaseState) -> str | None:
    request = _request(state)
    return request.approval_id if request else None


def _canary_id(state: ReleaseState) -> str | None:
    return state.canary.canary_id if state.canary else None
