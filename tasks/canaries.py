"""One look at the canary: read its traffic, judge a sample, count the evidence, decide, record, take the step.

A look is one event (CANARY_LOOKED) whose content is the whole state of the tests. It is appended by compare-and-swap
on the look before, so that of two watchers one is told that the other was first, and no request counts twice. The
step that it decided is a second event; a crash between the two leaves the verdict, and the next look takes the step.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tasks.canary_evidence import LookState, Seen, gather
from tasks.canary_judging import canary_folder
from tasks.canary_ready import check_judge, check_model, guardrails
from tasks.ledger import Ledger
from tasks.releases import append_release, read_release
from tasks.spool import Spool
from tasks.traffic import write_scores
from touchstone import release_steps as steps
from touchstone.canary_look import CanaryVerdict, LookDecision, decide_look
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import EventKind, LedgerEvent, canary_subject
from touchstone.release import Canary, CanaryStatus, ReleaseState
from touchstone.settings import Settings

WATCHER = "touchstone canary"  # who takes the steps that evidence takes


@dataclass(frozen=True)
class Looked:
    """What a look came to. `step` is the event that it led to; `taken_up`: the verdict is of an earlier look."""

    canary: Canary
    bundle: str
    verdict: CanaryVerdict
    reason: str
    payload: dict[str, Any]
    step: LedgerEvent | None = None
    taken_up: bool = False
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For `--json`, the flow's result and its artifact."""
        return {
            "canary_id": self.canary.canary_id,
            "bundle": self.bundle,
            "share": self.canary.share,
            "status": self.canary.status.value,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "step": self.step.kind.value if self.step else None,
            "taken_up": self.taken_up,
            "warnings": self.warnings,
        } | {name: value for name, value in self.payload.items() if name not in {"canary_id", "verdict", "reason"}}


def start_canary(settings: Settings, ledger: Ledger, by: str, now: datetime | None = None) -> ReleaseState:
    """Give the candidate its first share of traffic. Raises BadInput while something speaks against it."""
    from tasks.promotions import clean_name

    state, now = read_release(ledger), now or datetime.now(UTC)
    name = state.candidate.deployment.name if state.candidate else "canary"
    canary_id = f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    payload = steps.start_canary(state, canary_id, secrets.token_hex(8), clean_name(by))
    assert state.candidate is not None, "the step has asked for a candidate"
    assert state.champion is not None, "and for a champion"
    policy = state.candidate.deployment.policy.canary
    guardrails(policy)
    check_judge(state.champion.deployment.definition, policy)
    check_model(settings, state.candidate.deployment.definition)
    append_release(ledger, state, EventKind.CANARY_STARTED, payload)
    return read_release(ledger)


def look(settings: Settings, ledger: Ledger, now: datetime | None = None) -> Looked | None:
    """One look at the running canary; None when there is none.

    Raises LedgerConflict when somebody else looked, or moved the release, at the same time: nothing is lost by it.
    """
    state, now = read_release(ledger), now or datetime.now(UTC)
    canary, candidate, champion = state.canary, state.candidate, state.champion
    if canary is None or candidate is None or champion is None:
        return None
    event, last = last_look(ledger, canary.canary_id)
    if event is not None and last is not None and last.release_sequence == state.sequence:
        verdict = CanaryVerdict(event.payload["verdict"])
        if step := _step(state, canary, verdict, event.payload["reason"]):
            done = append_release(ledger, state, *step)
            return Looked(
                canary, candidate.deployment.name, verdict, event.payload["reason"], event.payload, done, True
            )
    policy = candidate.deployment.policy.canary
    with _spool_of(settings, canary.canary_id) as spool:
        seen = gather(settings, spool, state, last or LookState.fresh(guardrails(policy), policy), now)
    decision = decide_look(seen.evidence, seen.facts, canary, policy)
    payload = _payload(state, canary, event, seen, decision)
    content = seen.next_state(decision.verdict, state.sequence)
    ledger.append(
        EventKind.CANARY_LOOKED,
        canary_subject(canary.canary_id),
        payload,
        content=json.dumps(content).encode(),
        after=event.sequence if event else 0,
    )
    step = _step(state, canary, decision.verdict, decision.reason)
    done = append_release(ledger, state, *step) if step else None
    judge = champion.deployment.definition.bundle.judge
    warnings = seen.warnings + write_scores(settings, seen.scores, judge.model if judge else "")
    return Looked(
        canary, candidate.deployment.name, decision.verdict, decision.reason, payload, done, warnings=warnings
    )


def last_look(ledger: Ledger, canary_id: str) -> tuple[LedgerEvent | None, LookState | None]:
    """The latest look at a canary, and the state that it left."""
    event = ledger.latest(EventKind.CANARY_LOOKED, canary_subject(canary_id))
    if event is None:
        return None, None
    return event, LookState.from_json(json.loads(ledger.content(event)))


def looks(ledger: Ledger, canary_id: str, newest: int = 20) -> list[dict[str, Any]]:
    """The latest looks as recorded, oldest first."""
    events = ledger.events(EventKind.CANARY_LOOKED, canary_subject(canary_id), newest=newest)
    return [{"at": event.at, **event.payload} for event in reversed(events)]


def _payload(
    state: ReleaseState, canary: Canary, before: LedgerEvent | None, seen: Seen, decision: LookDecision
) -> dict[str, Any]:
    numbers = seen.evidence.numbers()
    return {
        "canary_id": canary.canary_id,
        "look": before.payload["look"] + 1 if before else 1,
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "share": canary.share,
        "n_canary": seen.n_canary,
        "n_champion": seen.n_champion,
        "e_values": {
            name: {
                "n": metric.n,
                "difference": metric.mean_difference,
                "promote": metric.promote_e_value,
                "rollback": metric.rollback_e_value,
            }
            for name, metric in numbers.items()
        },
        "limit": 1 / seen.evidence.alpha,
        "progress": decision.progress,
        "harm": decision.harm,
        "left_out": seen.left_out,
        "unanswered": seen.unanswered,
        "judge_failures": seen.judge_failures,
        "spent_usd": seen.spent_usd,
        "release_sequence": state.sequence,
    }


def _step(
    state: ReleaseState, canary: Canary, verdict: CanaryVerdict, reason: str
) -> tuple[EventKind, dict[str, Any]] | None:
    """The release event that a verdict asks for; None: it leaves the canary as it is."""
    if verdict is CanaryVerdict.ROLLBACK:
        return EventKind.RELEASE_ROLLED_BACK, steps.roll_back_canary(state, WATCHER, reason)
    if canary.status is not CanaryStatus.RUNNING:
        return None
    match verdict:
        case CanaryVerdict.WIDEN:
            return EventKind.CANARY_WIDENED, steps.widen_canary(state, reason)
        case CanaryVerdict.GRADUATE:
            return EventKind.CANARY_GRADUATED, steps.graduate_canary(state, reason)
        case CanaryVerdict.HOLD:
            return EventKind.CANARY_HELD, steps.hold_canary(state, reason)
    return None


@contextmanager
def _spool_of(settings: Settings, canary_id: str) -> Iterator[Spool]:
    """The canary's finished judge calls, for one look at a time: two would both pay for the same sample."""
    spool = Spool(canary_folder(settings, canary_id))
    try:
        lock = spool.locked()
        try:
            lock.__enter__()
        except BadInput:
            raise LedgerConflict(f"somebody else is looking at canary {canary_id}; nothing is lost by it") from None
        try:
            yield spool
        finally:
            lock.__exit__(None, None, None)
    finally:
        spool.close()
