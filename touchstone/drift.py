"""Did the vendor move? The decision over one eval run, and the public surface of the decision engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from touchstone.detectors import GradedDetector, PassFailDetector
from touchstone.drift_evidence import (
    FEWEST_CASES,
    Evidence,
    MetricRun,
    Numbers,
    align,
    directions,
    is_full,
    moved_back,
    numbers,
    refined_change_point,
    trigger_of,
    weigh,
)
from touchstone.drift_metadata import metadata_signals, signal_transitions
from touchstone.drift_reasons import (
    detectable_reason,
    drift_reason,
    failure_reason,
    few_cases_reason,
    signal_reason,
    stable_reason,
    unmeasured_but_standing,
)
from touchstone.drift_records import (
    WHOLE,
    Baseline,
    Direction,
    DriftDecision,
    DriftPolicy,
    DriftState,
    MetadataSignal,
    MetricScores,
    MetricSpec,
    RunScores,
    StreamEvidence,
    StreamState,
    Transition,
    Verdict,
    freeze_baseline,
)
from touchstone.evalues import e_bh_adjusted

__all__ = [
    "Baseline",
    "Direction",
    "DriftDecision",
    "DriftPolicy",
    "DriftState",
    "GradedDetector",
    "MetadataSignal",
    "MetricScores",
    "MetricSpec",
    "PassFailDetector",
    "RunScores",
    "StreamEvidence",
    "StreamState",
    "Transition",
    "Verdict",
    "decide_drift",
    "freeze_baseline",
]

_NEARLY = 1 - 1e-12  # a level that is met but for rounding is met


def decide_drift(
    run: RunScores,
    baseline: Baseline,
    state: DriftState | None,
    policy: DriftPolicy,
    *,
    minimum_cases: int,
    maximum_failure_share: float,
) -> tuple[DriftDecision, DriftState]:
    """The verdict on a run against a frozen baseline, and what to remember until the next one.

    `state` is what the run before returned (None, or that of another baseline: start anew). `minimum_cases`: scored
    cases that the run must share with the baseline; `maximum_failure_share`: of its planned cases. A run that misses
    either is unmeasurable: it moves no evidence, no level, and raises nothing.
    """
    if state is None or state.baseline_id != baseline.id:
        state = DriftState(baseline_id=baseline.id)
    signals = metadata_signals(run, baseline)
    compared, obstacle = _comparable(run, baseline, minimum_cases, maximum_failure_share)
    if obstacle:
        decision = DriftDecision(
            verdict=Verdict.UNMEASURABLE,
            direction=None,
            reason="; ".join(filter(None, (obstacle, signal_reason(signals), unmeasured_but_standing(state)))),
            provisional=baseline.provisional,
            metadata_signals=signals,
        )
        return decision, state.model_copy(update={"runs": state.runs + 1, "verdict": Verdict.UNMEASURABLE})
    streams = list(_streams(run, baseline, state, policy, compared))
    _judge(streams, policy)
    for stream in streams:
        _advance(stream, run, policy)
    return _conclude(run, baseline, state, policy, streams, signals)


@dataclass
class _Stream:
    """One stream while it is being judged."""

    state: StreamState
    part: MetricRun
    numbers: Numbers
    evidence: Evidence
    full: bool
    was_drifted: bool
    adjusted: float = 0.0
    acts: bool = False
    flags: bool = False
    transitions: list[Transition] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, str]:
        return self.state.metric, self.state.segment


def _comparable(
    run: RunScores, baseline: Baseline, minimum_cases: int, maximum_failure_share: float
) -> tuple[list[MetricRun], str]:
    """(the metrics that can be compared, why none can)."""
    if run.n_failed > maximum_failure_share * run.n_cases or not run.n_cases:
        return [], failure_reason(run, maximum_failure_share)
    aligned = [align(run, baseline, spec) for spec in baseline.specs]
    most = max(int(metric.paired.sum()) for metric in aligned)
    if most < minimum_cases:
        shared = run.case_digests.keys() & baseline.case_digests.keys()
        changed = sum(run.case_digests[case] != baseline.case_digests[case] for case in shared)
        new = len(run.case_digests) - len(shared)
        return [], few_cases_reason(most, minimum_cases, changed, new, len(run.case_digests))
    found, obstacles = [], []
    for metric in aligned:
        obstacle = _metric_obstacle(metric, run, min(FEWEST_CASES, minimum_cases), maximum_failure_share)
        if obstacle:
            obstacles.append(f"{metric.spec.name} ({obstacle})")
        else:
            found.append(metric)
    return found, "" if found else f"unmeasurable: no metric can be compared: {', '.join(obstacles)}"


def _metric_obstacle(metric: MetricRun, run: RunScores, fewest: int, maximum_failure_share: float) -> str:
    n, planned = int(metric.paired.sum()), int(metric.planned.sum())
    scores = run.metrics.get(metric.spec.name)
    theirs = scores.scorer_fingerprint if scores else ""
    if theirs and metric.spec.scorer_fingerprint and theirs != metric.spec.scorer_fingerprint:
        return "its scorer changed since the baseline"
    if n < fewest:
        return f"only {n} cases scored"
    if planned - n > maximum_failure_share * planned:
        return f"{planned - n} of {planned} cases have no score"
    if metric.spec.kind == "pass_fail" and not np.isin(metric.now[~np.isnan(metric.now)], (0.0, 1.0)).all():
        return "a pass/fail metric with scores other than 0 and 1"
    return ""


def _streams(
    run: RunScores, baseline: Baseline, state: DriftState, policy: DriftPolicy, compared: Sequence[MetricRun]
) -> Iterator[_Stream]:
    """Every stream that this run says something about, with its evidence."""
    for metric in compared:
        for segment in metric.watched_segments():
            part = metric.part(segment)
            if segment != WHOLE and part.paired.sum() < FEWEST_CASES:
                continue
            full = is_full(part, baseline, policy)
            found = numbers(part, policy, full)
            for direction in directions(metric.spec):
                empty = StreamState(metric=metric.spec.name, segment=segment, direction=direction)
                before = state.streams.get(empty.key, empty)
                evidence = weigh(part, before, run.run_key, direction, policy, full)
                yield _Stream(before, part, found, evidence, full, before.level is Verdict.DRIFTED)


def _judge(streams: Sequence[_Stream], policy: DriftPolicy) -> None:
    """e-BH within each direction's family; then one side of a metric and segment gives way to the other.

    Many cases that change in both directions are evidence of "worse" and of "better". Where the mean clearly moved
    one way, only that side stands; otherwise both do, and the overall direction is `changed`.
    """
    for direction in Direction:
        family = [stream for stream in streams if stream.state.direction is direction]
        for stream, adjusted in zip(family, e_bh_adjusted([s.evidence.e_value for s in family]), strict=True):
            stream.adjusted = float(adjusted)
            stream.acts = stream.adjusted >= _NEARLY
            stream.flags = stream.adjusted >= policy.flag_at * _NEARLY
    for stream in streams:
        if _moved_the_other_way(stream):
            stream.acts = stream.flags = False


def _moved_the_other_way(stream: _Stream) -> bool:
    low, high = stream.numbers.interval
    if stream.state.direction is Direction.CHANGED:
        return False
    falls = (stream.state.direction is Direction.WORSE) == bool(stream.part.spec.higher_is_better)
    return low > 0 if falls else high < 0


def _advance(stream: _Stream, run: RunScores, policy: DriftPolicy) -> None:
    """The stream's next level: up when the evidence has stood long enough, down on recovery."""
    before, evidence = stream.state, stream.evidence
    quiet = before.quiet_streak + 1 if evidence.single <= 1.0 else 0
    if before.level is Verdict.DRIFTED:
        returned = moved_back(stream.part, before, before.direction)
        if quiet and (returned or quiet >= policy.recovery_runs):
            stream.state = _anew(before)
            stream.transitions.append(Transition(kind="recovered", stream=before.key))
            return
    act = before.act_streak + 1 if stream.acts else 0
    level = _level(before.level, act >= policy.persistence, stream.flags)
    change, size = refined_change_point(before, evidence)
    stream.state = before.model_copy(
        update={
            "detectors": evidence.detectors,
            "runs": evidence.runs,
            "act_streak": act,
            "quiet_streak": quiet,
            "level": level,
            "since": before.since if level is before.level else run.run_key,
            "drifted_runs": before.drifted_runs + 1 if level is Verdict.DRIFTED else 0,
            "change_point": change,
            "change_set": size,
        }
    )
    if level is Verdict.DRIFTED and before.level is not Verdict.DRIFTED:
        stream.state = stream.state.model_copy(update={"trigger": trigger_of(stream.part)})
        stream.transitions.append(Transition(kind="detected", stream=before.key))
    elif level is Verdict.FLAGGED and before.level is Verdict.STABLE:
        stream.transitions.append(Transition(kind="flagged", stream=before.key))


def _level(before: Verdict, acts: bool, flags: bool) -> Verdict:
    """A flag is only a look, so it is up at once; to act, the evidence must have persisted."""
    if before is Verdict.DRIFTED or acts:
        return Verdict.DRIFTED
    return Verdict.FLAGGED if flags else Verdict.STABLE


def _conclude(
    run: RunScores,
    baseline: Baseline,
    state: DriftState,
    policy: DriftPolicy,
    streams: Sequence[_Stream],
    signals: tuple[MetadataSignal, ...],
) -> tuple[DriftDecision, DriftState]:
    _end_excursions(streams, policy)
    remembered = state.streams | {stream.state.key: stream.state for stream in streams}
    standing, announced = signal_transitions(run, state, signals)
    verdict, direction = _overall(remembered.values(), standing)
    transitions = tuple(transition for stream in streams for transition in stream.transitions)
    evidence = tuple(_shown(stream) for stream in streams)
    worst = _worst(evidence, direction)
    decision = DriftDecision(
        verdict=verdict,
        direction=direction,
        reason="",
        provisional=baseline.provisional,
        streams=evidence,
        transitions=transitions + announced,
        metadata_signals=signals,
        minimum_detectable_effect=evidence[0].minimum_detectable_effect,
        change_point=worst.change_point if worst else None,
        n_paired=evidence[0].n,
    )
    reason = _reason(decision, worst, policy, baseline, streams[0].full)
    after = {"runs": state.runs + 1, "verdict": verdict, "streams": remembered, "signals": standing}
    return decision.model_copy(update={"reason": reason}), state.model_copy(update=after)


def _end_excursions(streams: Sequence[_Stream], policy: DriftPolicy) -> None:
    """Where a drift is over, what the metric's other streams made of it is over too: they start anew.

    What is then shown of them is the evidence of this run alone.
    """
    recovered = {stream.place for stream in streams if any(t.kind == "recovered" for t in stream.transitions)}
    for stream in streams:
        own, whole = stream.state, (stream.state.metric, WHOLE)
        if not stream.was_drifted and (stream.place in recovered or whole in recovered):
            stream.state, stream.transitions = _anew(own), []
        if stream.state == _anew(own):
            stream.evidence = replace(stream.evidence, e_value=stream.evidence.single / policy.threshold)
            stream.adjusted = stream.evidence.e_value


def _anew(state: StreamState) -> StreamState:
    return StreamState(metric=state.metric, segment=state.segment, direction=state.direction)


def _shown(stream: _Stream) -> StreamEvidence:
    own, seen = stream.state, stream.numbers
    away = own.level is not Verdict.STABLE
    return StreamEvidence(
        metric=own.metric,
        segment=own.segment,
        direction=own.direction,
        mean_now=seen.mean_now,
        mean_baseline=seen.mean_baseline,
        difference=seen.difference,
        ci_low=seen.interval[0],
        ci_high=seen.interval[1],
        n=seen.n,
        n_planned=seen.n_planned,
        e_value=stream.evidence.e_value,
        adjusted=stream.adjusted,
        level=own.level,
        since=own.since if away else None,
        minimum_detectable_effect=seen.detectable,
        change_point=own.change_point if away else None,
        change_set=own.change_set if away else None,
    )


def _overall(
    streams: Collection[StreamState], signals: Mapping[str, tuple[str, ...]]
) -> tuple[Verdict, Direction | None]:
    """The run's verdict and direction: the highest level of any stream or signal, and where those streams went."""
    for level, signal in ((Verdict.DRIFTED, "served_model"), (Verdict.FLAGGED, "fingerprint")):
        there = [stream for stream in streams if stream.level is level]
        if there or signal in signals:
            return level, _direction(there)
    return Verdict.STABLE, None


def _direction(streams: Sequence[StreamState]) -> Direction:
    """Worse if anything got worse, else better if anything got better; both at once in one place is `changed`."""
    places: dict[tuple[str, str], set[Direction]] = {}
    for stream in streams:
        places.setdefault((stream.metric, stream.segment), set()).add(stream.direction)
    found = {next(iter(went)) if len(went) == 1 else Direction.CHANGED for went in places.values()}
    return next((d for d in (Direction.WORSE, Direction.BETTER) if d in found), Direction.CHANGED)


def _worst(streams: Sequence[StreamEvidence], direction: Direction | None) -> StreamEvidence | None:
    """The stream that the reason is about: drifted before flagged, of the overall direction, over all cases."""
    away = [stream for stream in streams if stream.level is not Verdict.STABLE]

    def rank(stream: StreamEvidence) -> tuple[bool, bool, bool, float]:
        drifted = stream.level is Verdict.DRIFTED
        return drifted, stream.direction is direction, stream.segment == WHOLE, stream.adjusted

    return max(away, key=rank, default=None)


def _reason(
    decision: DriftDecision, worst: StreamEvidence | None, policy: DriftPolicy, baseline: Baseline, full: bool
) -> str:
    headline = decision.streams[0]
    if worst is not None:
        text = drift_reason(worst, policy, decision.streams)
    elif decision.verdict is Verdict.STABLE:
        recovered = any(transition.kind == "recovered" for transition in decision.transitions)
        text = stable_reason(decision.streams, policy, recovered)
        text += detectable_reason(headline, policy.horizon_runs if full else 1)
    elif decision.metadata_signals:
        text = stable_reason(decision.streams, policy, False)
    else:
        text = f"{decision.verdict} as before: what moved was not measured in this run"
    if decision.metadata_signals:
        text = f"{signal_reason(decision.metadata_signals)}; {text}"
    if not full:
        text += f"; provisional baseline ({len(baseline.run_keys)} of {policy.minimum_calibration_runs} runs)"
    return text
