"""Release state: which bundle serves, which one wants to, and how far it has come. The fold of the ledger's events.

    gate passed -> candidate -> canary -> graduated -> approved -> champion
                      |           |                       |
                      +-----------+-- dropped ------------+        roll-back: the champion before

Every step is one event, appended by compare-and-swap on the last one, so that two people or a crash leave exactly
one outcome. What is asked of a candidate is fixed when the gate passed it: a policy edited later changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from touchstone.definition import Definition
from touchstone.errors import Unmeasurable
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.release_policy import Approver, Factor, ReleasePolicy


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Deployment(_Record):
    """One bundle as the gate passed it, with what was measured: what is served, and what an auditor asks for."""

    definition: Definition
    fingerprint: str = Field(description="Of the definition: model, prompt, retrieval, parameters")
    changed: tuple[Factor, ...] = Field(default=(), description="Against the champion at the gate")
    gate_key: str
    dataset: str
    scores: dict[str, float] = Field(default_factory=dict, description="Means at the gate")
    run_keys: tuple[str, ...] = Field(default=(), description="Evals that are the evidence, the candidate's first")
    policy: ReleasePolicy = ReleasePolicy()

    @property
    def name(self) -> str:
        return self.definition.bundle.name


class Promotion(_Record):
    """A deployment that was let out to all traffic."""

    deployment: Deployment
    sequence: int = Field(description="Of the event that promoted it")
    promoted_at: str
    promoted_by: str
    reason: str = ""


class CanaryStatus(StrEnum):
    """How far a canary has come."""

    RUNNING = "running"
    HELD = "held"  # its time is over without a decision; it serves its share on until somebody decides
    GRADUATED = "graduated"  # not worse by the margin, with confidence


class Canary(_Record):
    """The candidate on a share of live traffic."""

    canary_id: str
    share: float
    salt: str = Field(description="Decides, with the request key, who sees it; the same at every share")
    status: CanaryStatus = CanaryStatus.RUNNING
    started_at: str
    share_since: str
    reason: str = ""


class Approval(_Record):
    """One person's word."""

    decision: Literal["approve", "deny"]
    by: str
    reason: str
    at: str
    via: str = Field(description="`prefect` or `command`")
    signature: str | None = Field(default=None, description="Ed25519, where the policy names the approver's key")


class ApprovalRequest(_Record):
    """The question that is open for a human."""

    approval_id: str
    fingerprint: str
    asked_at: str
    expires_at: str
    owner: str = ""
    required: int
    approvers: tuple[Approver, ...] = ()
    given: tuple[Approval, ...] = ()

    @property
    def is_complete(self) -> bool:
        """So many different people as are required have approved."""
        return len(self.approved_by) >= self.required

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Each person once: `Ada` and `ada` are one."""
        people = {approval.by.casefold(): approval.by for approval in self.given if approval.decision == "approve"}
        return tuple(people.values())

    def is_expired(self, now: datetime) -> bool:
        return now >= datetime.fromisoformat(self.expires_at)


class Candidate(_Record):
    """A deployment on its way."""

    deployment: Deployment
    sequence: int
    passed_at: str
    canary: Canary | None = None
    approval: ApprovalRequest | None = None


class ReleaseState(_Record):
    """What an environment serves. `sequence` is of the last release event: compare-and-swap is on it."""

    environment: str
    sequence: int = 0
    champion: Promotion | None = None
    served_since: int = Field(default=0, description="Event that made it serve: its promotion, or a roll-back to it")
    previous: tuple[Promotion, ...] = Field(
        default=(), description="Champions that a roll-back can return to, in order"
    )
    candidate: Candidate | None = None

    @property
    def canary(self) -> Canary | None:
        return self.candidate.canary if self.candidate else None


def fold(environment: str, events: Iterable[LedgerEvent]) -> ReleaseState:
    """The state after the release events of an environment, in order; other kinds are passed over.

    Raises Unmeasurable at an event that cannot be read: to serve what is guessed would be worse.
    """
    state = ReleaseState(environment=environment)
    for event in events:
        apply = _APPLY.get(event.kind)
        if apply is None:
            continue
        try:
            state = apply(state, event).model_copy(update={"sequence": event.sequence})
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            why = (
                "its payload was erased" if event.is_erased else f"{error}; did another version of touchstone write it?"
            )
            raise Unmeasurable(f"ledger event {event.sequence} ({event.kind}) cannot be read: {why}") from None
    return state


def _candidate(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    deployment = Deployment.model_validate(event.payload["deployment"])
    candidate = Candidate(deployment=deployment, sequence=event.sequence, passed_at=event.at)
    return state.model_copy(update={"candidate": candidate})


def _canary_started(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    payload = event.payload
    canary = Canary(
        canary_id=payload["canary_id"],
        share=payload["share"],
        salt=payload["salt"],
        started_at=event.at,
        share_since=event.at,
    )
    return _with_candidate(state, canary=canary)


def _canary_widened(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    return _with_canary(state, share=event.payload["share"], share_since=event.at, status=CanaryStatus.RUNNING)


def _canary_held(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    return _with_canary(state, status=CanaryStatus.HELD, reason=event.payload["reason"])


def _canary_graduated(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    return _with_canary(state, status=CanaryStatus.GRADUATED, reason=event.payload["reason"])


def _dropped(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    return state.model_copy(update={"candidate": None})


def _approval_asked(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    known = {name: value for name, value in event.payload.items() if name in ApprovalRequest.model_fields}
    request = ApprovalRequest.model_validate(known | {"asked_at": event.at})
    return _with_candidate(state, approval=request)


def _approval_given(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    request = state.candidate.approval if state.candidate else None
    if request is None or request.approval_id != event.payload["approval_id"]:
        return state
    known = {name: event.payload.get(name) for name in ("decision", "by", "reason", "via", "signature")}
    approval = Approval.model_validate(known | {"at": event.at})
    if approval.decision == "deny":
        return _dropped(state, event)
    return _with_candidate(state, approval=request.model_copy(update={"given": (*request.given, approval)}))


def _promoted(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    payload = event.payload
    promotion = Promotion(
        deployment=Deployment.model_validate(payload["deployment"]),
        sequence=event.sequence,
        promoted_at=event.at,
        promoted_by=payload["by"],
        reason=payload["reason"],
    )
    before = (state.champion,) if state.champion else ()
    return ReleaseState(
        environment=state.environment,
        champion=promotion,
        served_since=event.sequence,
        previous=(*state.previous, *before),
    )


def _rolled_back(state: ReleaseState, event: LedgerEvent) -> ReleaseState:
    """A canary's roll-back drops the candidate; a champion's returns to the one before, and forgets what was after."""
    if event.payload["what"] == "canary":
        return _dropped(state, event)
    place = [promotion.sequence for promotion in state.previous].index(event.payload["to_sequence"])
    return ReleaseState(
        environment=state.environment,
        champion=state.previous[place],
        served_since=event.sequence,
        previous=state.previous[:place],
    )


def _with_candidate(state: ReleaseState, **changes: Any) -> ReleaseState:
    if state.candidate is None:
        return state
    return state.model_copy(update={"candidate": state.candidate.model_copy(update=changes)})


def _with_canary(state: ReleaseState, **changes: Any) -> ReleaseState:
    if state.canary is None:
        return state
    return _with_candidate(state, canary=state.canary.model_copy(update=changes))


_APPLY = {
    EventKind.RELEASE_CANDIDATE: _candidate,
    EventKind.CANARY_STARTED: _canary_started,
    EventKind.CANARY_WIDENED: _canary_widened,
    EventKind.CANARY_HELD: _canary_held,
    EventKind.CANARY_GRADUATED: _canary_graduated,
    EventKind.CANARY_STOPPED: _dropped,
    EventKind.APPROVAL_ASKED: _approval_asked,
    EventKind.APPROVAL_GIVEN: _approval_given,
    EventKind.RELEASE_PROMOTED: _promoted,
    EventKind.RELEASE_ROLLED_BACK: _rolled_back,
}
