"""From live traffic to evidence: pairs, their scores, and the state that the next look goes on from.

Three kinds of guardrail, each with pairs of its own: what is judged (a sample, within the spend cap), whether the
bundle itself answered (all traffic), and each of the app's assessments (all requests that have one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tasks.canary_judging import Judged, judge_requests
from tasks.canary_ready import ANSWERED, WEIGHTS
from tasks.spool import Spool
from tasks.tracking_address import TrackingUnavailable
from tasks.traffic import Arms, Traffic, read_answers, read_traffic
from touchstone.canary import CanaryEvidence
from touchstone.canary_look import CanaryVerdict, LookFacts
from touchstone.canary_sampling import Pairing, ServedRequest, pair_up
from touchstone.errors import BadInput
from touchstone.release import Canary, ReleaseState
from touchstone.release_policy import CanaryPolicy
from touchstone.settings import Settings

OVERLAP = timedelta(minutes=30)  # how late a trace, or the app's assessment of it, may come
_ROUNDED = timedelta(seconds=1)  # traces are found by the millisecond: what is remembered reaches further back
MOST_FAILED = 0.2  # of a look's judged scores; with more, what is left may be a biased rest
_ALL = 100_000
_JUDGED = "judged"

Scores = dict[str, tuple[float, list[float]]]


@dataclass
class LookState:
    """The content of a look's event: evidence, and which requests are used up."""

    evidence: CanaryEvidence
    until: datetime | None = None
    used: dict[str, dict[str, str]] = field(default_factory=dict)  # group -> digest of request id -> when
    share: float = 0.0
    n_at_share: int = 0
    n_canary: int = 0
    n_champion: int = 0
    last_at: dict[str, str] = field(default_factory=dict)  # arm -> its last usable request
    release_sequence: int = 0
    verdict: str = ""

    @classmethod
    def fresh(cls, metrics: Sequence[str], policy: CanaryPolicy) -> LookState:
        return cls(CanaryEvidence(metrics, policy.margin, policy.alpha, WEIGHTS))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LookState:
        until = datetime.fromisoformat(data["until"]) if data["until"] else None
        return cls(**{**data, "evidence": CanaryEvidence.from_state(data["evidence"]), "until": until})

    def as_json(self) -> dict[str, Any]:
        until = self.until.isoformat() if self.until else None
        return {**vars(self), "evidence": self.evidence.state(), "until": until}


@dataclass
class Seen:
    """What one look found; `state` is already what the next one goes on from."""

    state: LookState
    facts: LookFacts
    scores: dict[str, dict[str, float]]  # by trace id, newly judged
    left_out: dict[str, int]
    unanswered: dict[str, int]
    judge_failures: dict[str, int]
    spent_usd: float
    warnings: list[str]

    @property
    def evidence(self) -> CanaryEvidence:
        return self.state.evidence

    @property
    def n_canary(self) -> int:
        return self.state.n_canary

    @property
    def n_champion(self) -> int:
        return self.state.n_champion

    def next_state(self, verdict: CanaryVerdict, release_sequence: int) -> dict[str, Any]:
        self.state.verdict, self.state.release_sequence = verdict.value, release_sequence
        return self.state.as_json()


def gather(settings: Settings, spool: Spool, release: ReleaseState, state: LookState, now: datetime) -> Seen:
    """Read, judge and count what came since the last look. What MLflow or the judge lack is said in the facts."""
    candidate, champion, canary = release.candidate, release.champion, release.canary
    if candidate is None or champion is None or canary is None:
        raise BadInput(f"no canary is running in {release.environment}; `touchstone canary start` starts one")
    policy = candidate.deployment.policy.canary
    if state.share != canary.share:
        state.share, state.n_at_share = canary.share, 0
    arms = Arms(
        environment=release.environment,
        canary_id=canary.canary_id,
        canary=candidate.deployment.fingerprint,
        champion=champion.deployment.fingerprint,
    )
    started = datetime.fromisoformat(canary.started_at)
    since = max(started, state.until - OVERLAP) if state.until else started
    try:
        traffic = read_traffic(settings, arms, since, now, policy.feedback)
    except TrackingUnavailable as error:
        return _nothing(state, now, f"no traffic could be read: {error}", spool.spent_usd())
    judged_pairs = pair_up(
        (request for request in traffic.requests if request.answered),
        state.used.get(_JUDGED, {}),
        most=policy.judged_per_look,
        block=policy.baseline_block,
    )
    judged, trouble = _judge(settings, spool, release, policy, judged_pairs)
    counted = {} if trouble else {_JUDGED: judged_pairs}
    counted |= _free_pairs(traffic, state, policy)
    _count(state, canary, policy, counted, judged)
    _forget(state, traffic, now)
    facts = _facts(state, now, trouble, traffic.in_words())
    scores = {} if trouble else judged.scores  # otherwise they are judged again, and would be written twice
    return Seen(state, facts, scores, traffic.left_out, traffic.unanswered, dict(judged.failures), judged.spent_usd, [])


def _judge(
    settings: Settings, spool: Spool, release: ReleaseState, policy: CanaryPolicy, pairs: Sequence[Pairing]
) -> tuple[Judged, str]:
    """Scores of all requests in the pairs, and why they cannot be used; empty: they can."""
    champion = release.champion
    if not policy.scorers or not pairs or champion is None:
        return Judged(spent_usd=spool.spent_usd()), ""
    requests = [request for pair in pairs for request in (pair.canary, *pair.champions)]
    try:
        answers = read_answers(settings, [request.trace_id for request in requests])
    except TrackingUnavailable as error:
        return Judged(spent_usd=spool.spent_usd()), f"the answers could not be read: {error}"
    judged = judge_requests(settings, spool, champion.deployment.definition, policy, requests, answers)
    if judged.failed_share > MOST_FAILED:
        failed, asked = judged.failures.total(), judged.failures.total() + judged.n_scores
        return judged, f"{failed} of {asked} scores could not be had (most: {judged.common_failure})"
    return judged, ""


def _free_pairs(traffic: Traffic, state: LookState, policy: CanaryPolicy) -> dict[str, list[Pairing]]:
    """Pairs whose scores cost nothing, by group: whether the bundle answered, and the app's assessments."""

    def pairs(name: str, requests: Sequence[ServedRequest]) -> list[Pairing]:
        return pair_up(requests, state.used.get(name, {}), most=_ALL, block=policy.baseline_block)

    found = {ANSWERED: pairs(ANSWERED, traffic.requests)}
    for name in policy.feedback:
        found[name] = pairs(name, [request for request in traffic.requests if name in request.feedback])
    return found


def _count(
    state: LookState, canary: Canary, policy: CanaryPolicy, counted: Mapping[str, Sequence[Pairing]], judged: Judged
) -> None:
    """Update the gates in an order that time and request ids fix, and use the requests up."""
    main, since = _JUDGED if policy.scorers else ANSWERED, datetime.fromisoformat(canary.share_since)
    in_order = sorted(
        ((pair.canary.order, group, pair) for group, pairs in counted.items() for pair in pairs),
        key=lambda entry: entry[:2],
    )
    for _, group, pair in in_order:
        used = state.used.setdefault(group, {})
        used |= {request.digest: request.at.isoformat() for request in (pair.canary, *pair.champions)}
        scores = _judged_scores(pair, judged) if group == _JUDGED else _free_scores(pair, group)
        if not scores:
            continue
        state.evidence.update(scores)
        if group == main:
            state.n_canary += 1
            state.n_champion += len(pair.champions)
            state.n_at_share += pair.canary.at >= since


def _judged_scores(pair: Pairing, judged: Judged) -> Scores:
    """What has no score on one side is left out: a failure is no score."""
    found: Scores = {}
    for name, score in judged.scores.get(pair.canary.trace_id, {}).items():
        champions = [judged.scores.get(champion.trace_id, {}).get(name) for champion in pair.champions]
        known = [value for value in champions if value is not None]
        if known:
            found[name] = (score, known)
    return found


def _free_scores(pair: Pairing, group: str) -> Scores:
    if group == ANSWERED:
        return {ANSWERED: (float(pair.canary.answered), [float(request.answered) for request in pair.champions])}
    return {group: (pair.canary.feedback[group], [request.feedback[group] for request in pair.champions])}


def _forget(state: LookState, traffic: Traffic, now: datetime) -> None:
    """Move the watermark; a request that no later look reads again need not be remembered."""
    state.until = max(now, state.until or now)  # a watcher whose clock is behind reads nothing that is forgotten
    oldest = state.until - OVERLAP - _ROUNDED
    for group, used in state.used.items():
        state.used[group] = {digest: at for digest, at in used.items() if datetime.fromisoformat(at) >= oldest}
    for request in traffic.requests:
        arm = "canary" if request.is_canary else "champion"
        state.last_at[arm] = max(state.last_at.get(arm, ""), request.at.isoformat())


def _facts(state: LookState, now: datetime, trouble: str, left_out: str) -> LookFacts:
    last = {arm: datetime.fromisoformat(at) for arm, at in state.last_at.items()}
    return LookFacts(
        now=now,
        n_at_share=state.n_at_share,
        last_canary_at=last.get("canary"),
        last_champion_at=last.get("champion"),
        trouble=trouble,
        left_out=left_out,
    )


def _nothing(state: LookState, now: datetime, trouble: str, spent_usd: float) -> Seen:
    return Seen(state, _facts(state, now, trouble, ""), {}, {}, {}, {}, spent_usd, [])
