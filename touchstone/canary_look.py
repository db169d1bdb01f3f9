"""One look at a canary: from the evidence so far to widen, graduate, hold, roll back, go on, or "cannot tell".

    harm shown                    rollback      at any time, also of a canary that is held or has graduated
    its time is over              hold          never promoted by lapse of time
    no traffic, judge broken ...  unmeasurable  never a success
    every guardrail far enough    widen, and at the largest share graduate
    else                          continue

The ladder shares out the way to the limit: of K shares the step after the k-th asks every guardrail for an e-value of
(1/alpha)^(k/K), so that what is worse by the margin gets there with probability alpha^(k/K) at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from touchstone.canary import CanaryEvidence
from touchstone.release import Canary, CanaryStatus
from touchstone.release_policy import CanaryPolicy


class CanaryVerdict(StrEnum):
    """What a look comes to."""

    WIDEN = "widen"
    GRADUATE = "graduate"
    HOLD = "hold"
    ROLLBACK = "rollback"
    CONTINUE = "continue"
    UNMEASURABLE = "unmeasurable"


@dataclass(frozen=True)
class LookFacts:
    """What a look found besides the evidence."""

    now: datetime
    n_at_share: int  # judged canary requests since the share is what it is
    last_canary_at: datetime | None = None  # the last usable request of each arm
    last_champion_at: datetime | None = None
    trouble: str = ""  # why this look cannot be trusted: judge broken, spend cap, MLflow away
    left_out: str = ""  # what traffic could not be used, in words


@dataclass(frozen=True)
class LookDecision:
    """The verdict of a look, and why."""

    verdict: CanaryVerdict
    reason: str
    progress: float  # of the slowest guardrail, 1: it has shown "not worse by the margin"
    harm: float  # e-value of "some guardrail is worse", as a share of its limit


def decide_look(evidence: CanaryEvidence, facts: LookFacts, canary: Canary, policy: CanaryPolicy) -> LookDecision:
    """Judge a canary by what is known now. Pure, and total."""
    verdict, reason = _decide(evidence, facts, canary, policy)
    progress, _ = evidence.progress()
    return LookDecision(verdict, reason, progress=progress, harm=evidence.worst_harm * evidence.alpha)


def _decide(
    evidence: CanaryEvidence, facts: LookFacts, canary: Canary, policy: CanaryPolicy
) -> tuple[CanaryVerdict, str]:
    if evidence.is_harmful:
        return CanaryVerdict.ROLLBACK, _harm(evidence)
    if canary.status is CanaryStatus.HELD:
        return CanaryVerdict.HOLD, f"held: {canary.reason}"
    trouble = facts.trouble or _silence(facts, canary, policy)
    if canary.status is CanaryStatus.GRADUATED:  # it waits for people: only harm counts, and silence is no news
        return CanaryVerdict.CONTINUE, f"graduated; {trouble or 'no harm since'}"
    hours = (facts.now - datetime.fromisoformat(canary.started_at)).total_seconds() / 3600
    if hours >= policy.max_hours:
        why = trouble or _state_of(evidence)
        return CanaryVerdict.HOLD, f"no decision after {hours:.1f} h of at most {policy.max_hours:g}: {why}"
    if trouble:
        return CanaryVerdict.UNMEASURABLE, trouble
    return _step(evidence, facts, canary, policy)


def _step(
    evidence: CanaryEvidence, facts: LookFacts, canary: Canary, policy: CanaryPolicy
) -> tuple[CanaryVerdict, str]:
    """Up the ladder, where evidence, requests and time are enough."""
    step = sum(share <= canary.share for share in policy.shares)
    needed, (progress, slowest) = step / len(policy.shares), evidence.progress()
    minutes = (facts.now - datetime.fromisoformat(canary.share_since)).total_seconds() / 60
    lacking = []
    if progress < needed:
        lacking.append(
            f"{slowest} is at {max(progress, 0):.0%} of the way to its limit, this step asks for {needed:.0%}"
        )
    if facts.n_at_share < policy.minimum_requests:
        lacking.append(f"{facts.n_at_share} of {policy.minimum_requests} judged requests at {canary.share:.0%}")
    if minutes < policy.minimum_minutes:
        lacking.append(f"{minutes:.0f} of {policy.minimum_minutes:g} minutes at {canary.share:.0%}")
    if lacking:
        return CanaryVerdict.CONTINUE, "; ".join(lacking)
    if step < len(policy.shares):
        return (
            CanaryVerdict.WIDEN,
            f"{slowest}, the slowest of {len(evidence.gates)} guardrails, is at {progress:.0%} of the way to its limit "
            f"({needed:.0%} needed), {facts.n_at_share} judged requests at {canary.share:.0%}",
        )
    margin = f"no guardrail is worse by {policy.margin:g} or more (alpha {policy.alpha:g})"
    return CanaryVerdict.GRADUATE, f"{margin}: {_numbers(evidence)}"


def _silence(facts: LookFacts, canary: Canary, policy: CanaryPolicy) -> str:
    """Why there is nothing to compare; empty: both arms answer."""
    longest = timedelta(minutes=policy.silence_minutes)
    since = datetime.fromisoformat(canary.share_since)
    for arm, last in (("canary", facts.last_canary_at), ("champion", facts.last_champion_at)):
        if facts.now - max(last or since, since) >= longest:
            seen = f"the last one was at {last.isoformat(timespec='seconds')}" if last else "none came at all"
            left_out = f"; left out: {facts.left_out}" if facts.left_out else ""
            return f"no usable {arm} request for {policy.silence_minutes:g} minutes, {seen}{left_out}"
    return ""


def _harm(evidence: CanaryEvidence) -> str:
    worst = "; ".join(
        f"{name} {evidence.gates[name].mean_difference or 0:+.3f} over {evidence.gates[name].n} requests "
        f"(e = {evidence.gates[name].rollback_e_value:.3g})"
        for name in evidence.harmed
    )
    return f"worse than the champion: {worst}; combined e reached {evidence.worst_harm:.3g} of {1 / evidence.alpha:g}"


def _state_of(evidence: CanaryEvidence) -> str:
    progress, slowest = evidence.progress()
    return f"{slowest} is at {max(progress, 0):.0%} of the way to its limit; {_numbers(evidence)}"


def _numbers(evidence: CanaryEvidence) -> str:
    return "; ".join(
        f"{name} {gate.mean_difference or 0:+.3f}, n = {gate.n}, e = {gate.promote_e_value:.3g}"
        for name, gate in evidence.gates.items()
    )
