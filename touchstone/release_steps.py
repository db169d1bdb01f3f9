"""The steps of a release: what each asks of the state, and the payload of the event that takes it.

Every function returns a payload, or raises BadInput that says what is missing and how to get it; nothing is written
here. The caller appends the event by compare-and-swap on the state that was asked (`tasks.releases`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from touchstone.errors import BadInput
from touchstone.release import (
    ApprovalRequest,
    Canary,
    CanaryStatus,
    Candidate,
    Deployment,
    Promotion,
    ReleaseState,
)

Payload = dict[str, Any]

_AGAIN = "nothing was recorded; `touchstone promote` asks again"


def candidate(state: ReleaseState, deployment: Deployment, by: str, reason: str) -> Payload:
    """A gate has passed it: it waits for its canary. It replaces a candidate that no canary serves yet."""
    champion = state.champion
    if champion and champion.deployment.fingerprint == deployment.fingerprint:
        raise BadInput(f"{deployment.name} is the champion of {state.environment} already: nothing would change")
    running = state.candidate
    if running and running.canary:  # also of the same: it would leave its traffic, and its evidence, unseen
        raise BadInput(
            f"{running.deployment.name} is on canary traffic in {state.environment}; "
            "`touchstone canary stop` ends it, then a new candidate can come"
        )
    return {"deployment": deployment.model_dump(mode="json"), "by": by, "reason": reason}


def start_canary(state: ReleaseState, canary_id: str, salt: str, by: str) -> Payload:
    """The first share of traffic for the candidate."""
    waiting = _candidate(state)
    if state.champion is None:
        raise BadInput(
            f"{state.environment} has no champion to compare a canary with; `touchstone promote` makes "
            f"{waiting.deployment.name} the first one"
        )
    if waiting.canary is not None:
        raise BadInput(f"{waiting.deployment.name} is on a canary already ({waiting.canary.canary_id})")
    share = waiting.deployment.policy.canary.shares[0]
    return {
        "canary_id": canary_id,
        "fingerprint": waiting.deployment.fingerprint,
        "share": share,
        "salt": salt,
        "by": by,
    }


def widen_canary(state: ReleaseState, reason: str) -> Payload:
    """The next share of the ladder. Raises BadInput at its end."""
    waiting, canary = _undecided(state)
    wider = [share for share in waiting.deployment.policy.canary.shares if share > canary.share]
    if not wider:
        raise BadInput(f"{canary.canary_id} serves its largest share already: {canary.share:.0%}")
    return {"canary_id": canary.canary_id, "share": wider[0], "reason": reason}


def hold_canary(state: ReleaseState, reason: str) -> Payload:
    """Its time is over without a decision: somebody has to look."""
    canary = _undecided(state)[1]
    if canary.status is CanaryStatus.HELD:
        raise BadInput(f"the canary {canary.canary_id} is held already: {canary.reason}")
    return {"canary_id": canary.canary_id, "reason": reason}


def graduate_canary(state: ReleaseState, reason: str) -> Payload:
    """Not worse by the margin, with confidence."""
    return {"canary_id": _undecided(state)[1].canary_id, "reason": reason}


def stop_canary(state: ReleaseState, by: str, reason: str) -> Payload:
    """Somebody takes the candidate off all traffic."""
    _, canary = _canary(state)
    return {"canary_id": canary.canary_id, "by": by, "reason": reason}


def roll_back_canary(state: ReleaseState, by: str, reason: str) -> Payload:
    """Live traffic, or somebody, says that the candidate does harm: all traffic is the champion's again."""
    waiting, canary = _canary(state)
    return {
        "what": "canary",
        "canary_id": canary.canary_id,
        "from": waiting.deployment.fingerprint,
        "by": by,
        "reason": reason,
    }


def roll_back(state: ReleaseState, by: str, reason: str, to: int | None = None) -> Payload:
    """The champion before, or the one that event `to` promoted, serves again. A candidate is dropped with it."""
    if state.champion is None:
        raise BadInput(f"{state.environment} has no champion, so there is nothing to roll back")
    target = _way_back(state, to)
    return {
        "what": "champion",
        "from": state.champion.deployment.fingerprint,
        "to": target.deployment.fingerprint,
        "to_sequence": target.sequence,
        "by": by,
        "reason": reason,
    }


def ask_approval(state: ReleaseState, approval_id: str, now: datetime) -> Payload:
    """The question for a human, once the canary has graduated (where the policy asks for one)."""
    waiting = _candidate(state)
    _check_canary(state, waiting)
    asked = waiting.approval
    if asked is not None and not asked.is_expired(now):
        raise BadInput(f"{asked.approval_id} is open for {waiting.deployment.name} until {asked.expires_at}")
    rules = waiting.deployment.policy.approval
    if not rules.required:
        raise BadInput(f"the policy of {waiting.deployment.name} asks for no approval: `touchstone promote`")
    return {
        "approval_id": approval_id,
        "fingerprint": waiting.deployment.fingerprint,
        "expires_at": (now + timedelta(hours=rules.expires_hours)).isoformat(),
        "owner": rules.owner,
        "required": rules.required,
        "approvers": [approver.model_dump(mode="json") for approver in rules.approvers],
    }


def give_approval(
    state: ReleaseState,
    decision: str,
    by: str,
    reason: str,
    *,
    approval_id: str,
    via: str,
    now: datetime,
    signature: str | None = None,
    is_signed: bool = False,
) -> Payload:
    """One person's word. `is_signed`: the signature was checked against the key that the policy names for `by`."""
    request, by = _open_request(state, approval_id, now), " ".join(by.split())
    if decision not in {"approve", "deny"}:
        raise BadInput(f"decision {decision!r}: write approve or deny")
    if not by or not reason.strip():
        raise BadInput("an approval needs your name and a reason, for those who read it later")
    known = {approver.name: approver for approver in request.approvers}
    if known and by not in known:
        raise BadInput(f"{by} may not approve {request.approval_id}; the policy names {', '.join(known)}")
    if known and known[by].public_key and not is_signed:
        raise BadInput(f"the approval of {by} is not signed by the key that the policy names; nothing was recorded")
    if decision == "approve" and by.casefold() in {name.casefold() for name in request.approved_by}:
        raise BadInput(f"{by} has approved {request.approval_id} already; {request.required} people have to")
    return {
        "approval_id": request.approval_id,
        "fingerprint": request.fingerprint,
        "decision": decision,
        "by": by,
        "reason": reason,
        "via": via,
        "signature": signature,
    }


def promote(state: ReleaseState, by: str, reason: str, now: datetime) -> Payload:
    """The candidate takes all traffic. Raises BadInput while a canary or an approval that its policy asks for lacks."""
    waiting = _candidate(state)
    _check_canary(state, waiting)
    rules, request = waiting.deployment.policy.approval, waiting.approval
    if rules.required:
        if request is None or not request.is_complete:
            given = len(request.approved_by) if request else 0
            raise BadInput(
                f"{waiting.deployment.name} needs {rules.required} approvals and has {given}: "
                "`touchstone approve --by NAME --reason WHY`"
            )
        if request.is_expired(now):
            raise BadInput(f"the approval {request.approval_id} expired at {request.expires_at}: {_AGAIN}")
        if request.fingerprint != waiting.deployment.fingerprint:
            raise BadInput(
                f"{request.approval_id} approves {request.fingerprint}, not {waiting.deployment.fingerprint}"
            )
    return {
        "deployment": waiting.deployment.model_dump(mode="json"),
        "fingerprint": waiting.deployment.fingerprint,
        "canary_id": waiting.canary.canary_id if waiting.canary else None,
        "approval_id": request.approval_id if request else None,
        "by": by,
        "reason": reason,
    }


def _candidate(state: ReleaseState) -> Candidate:
    if state.candidate is not None:
        return state.candidate
    champion, was = state.champion, ""
    if champion and champion.sequence == state.sequence:  # the last step: who comes second wants to know it
        was = f" (event {champion.sequence}: {champion.promoted_by} promoted {champion.deployment.name})"
    raise BadInput(f"{state.environment} has no candidate{was}; `touchstone gate --bundle B` makes one when it passes")


def _canary(state: ReleaseState) -> tuple[Candidate, Canary]:
    waiting = state.candidate
    if waiting is None or waiting.canary is None:
        raise BadInput(f"no canary is running in {state.environment}; `touchstone canary start` starts one")
    return waiting, waiting.canary


def _undecided(state: ReleaseState) -> tuple[Candidate, Canary]:
    waiting, canary = _canary(state)
    if canary.status is CanaryStatus.GRADUATED:
        raise BadInput(f"the canary {canary.canary_id} has graduated already: {canary.reason}")
    return waiting, canary


def _check_canary(state: ReleaseState, waiting: Candidate) -> None:
    """A first release has nobody to be compared with; every other one graduates first, where the policy says so."""
    if state.champion is None or not waiting.deployment.policy.canary.required:
        return
    canary = waiting.canary
    if canary is None:
        raise BadInput(f"{waiting.deployment.name} was never on live traffic: `touchstone canary start`")
    if canary.status is not CanaryStatus.GRADUATED:
        why = f": {canary.reason}" if canary.reason else ""
        raise BadInput(
            f"the canary {canary.canary_id} has not graduated, it is {canary.status}{why}; "
            "`touchstone canary look` judges it, `touchstone canary stop --reason WHY` ends it"
        )


def _open_request(state: ReleaseState, approval_id: str, now: datetime) -> ApprovalRequest:
    request = state.candidate.approval if state.candidate else None
    if request is None or request.approval_id != approval_id:
        other = f"{request.approval_id} is" if request else "none is"
        raise BadInput(f"approval {approval_id} is not open in {state.environment}: {other}")
    if request.is_expired(now):
        raise BadInput(f"approval {approval_id} expired at {request.expires_at}: {_AGAIN}")
    return request


def _way_back(state: ReleaseState, to: int | None) -> Promotion:
    if not state.previous:
        raise BadInput(f"{state.environment} had no champion before: there is nothing to go back to")
    if to is None:
        return state.previous[-1]
    for promotion in state.previous:
        if promotion.sequence == to:
            return promotion
    known = ", ".join(f"{promotion.sequence} ({promotion.deployment.name})" for promotion in state.previous)
    raise BadInput(f"event {to} promoted no earlier champion of {state.environment}; these did: {known}")
