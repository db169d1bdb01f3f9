"""The evidence of one run against the frozen baseline, stream by stream (metric x segment x direction)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from touchstone.detectors import DetectorDirection, GradedDetector, PassFailDetector, pack, unpack
from touchstone.drift_records import (
    WHOLE,
    Baseline,
    Direction,
    DriftPolicy,
    MetricSpec,
    RunScores,
    StreamState,
)
from touchstone.evalues import (
    Floats,
    Side,
    bounded_exp,
    log_paired_sign_e_value,
    log_sum_exp,
    minimum_detectable_effect,
    paired_interval,
    smallest_sign_alarm,
)

FEWEST_CASES = 8  # of a segment that is watched on its own: fewer say nothing within a year
MOVED_BACK = 20.0  # sign e-value against the run that triggered
_KEPT_KEYS = 31
_CHANGE_POINT_RUNS = 10  # after a detection the change point is refined this long, then kept


@dataclass(frozen=True)
class MetricRun:
    """One metric of one run beside its calibration. NaN: not measured, or not comparable (other content)."""

    spec: MetricSpec
    segments: tuple[str, ...]  # of each case that the baseline scored
    now: Floats  # [repeats, cases]
    calibration: Floats  # [runs, repeats, cases]
    planned: np.ndarray  # [cases] in this run, with the baseline's content

    @property
    def paired(self) -> np.ndarray:
        return self.planned & ~np.isnan(self.now).all(axis=0)

    def part(self, segment: str) -> MetricRun:
        """Only the cases of a segment."""
        if segment == WHOLE:
            return self
        keep = np.array([name == segment for name in self.segments])
        return MetricRun(
            self.spec, (segment,) * int(keep.sum()), self.now[:, keep], self.calibration[:, :, keep], self.planned[keep]
        )

    def watched_segments(self) -> Iterator[str]:
        """Every case, then each segment with enough cases in the baseline (but for one that holds them all)."""
        yield WHOLE
        counts = Counter(self.segments)
        for segment in sorted(counts):
            if segment and FEWEST_CASES <= counts[segment] < len(self.segments):
                yield segment


def align(run: RunScores, baseline: Baseline, spec: MetricSpec) -> MetricRun:
    """A metric of a run, laid out over the cases that the baseline scored."""
    calibrated = baseline.calibration[spec.name]
    cases = sorted({case_id for scores in calibrated for case_id in scores})
    now = run.metrics[spec.name].by_case() if spec.name in run.metrics else {}
    same = {c: run.case_digests.get(c) == baseline.case_digests.get(c) for c in cases}
    planned = [same[c] and (c in run.case_digests or c in now) for c in cases]
    runs = [scores for scores in calibrated if scores]
    depth = max(len(repeats) for scores in runs for repeats in scores.values())
    return MetricRun(
        spec=spec,
        segments=tuple(baseline.segments.get(c, "") for c in cases),
        now=_grid({c: now[c] for c in cases if c in now and same[c]}, cases),
        calibration=np.stack([_grid(scores, cases, depth) for scores in runs]),
        planned=np.array(planned, bool),
    )


def _grid(scores: dict[str, tuple[float, ...]], cases: list[str], depth: int | None = None) -> Floats:
    """Scores as [repeats, cases], NaN where there is none."""
    depth = depth or max(map(len, scores.values()), default=1)
    padding = (np.nan,) * depth
    return np.array([(scores.get(case, ()) + padding)[:depth] for case in cases], float).T


@dataclass(frozen=True)
class Numbers:
    """What a stream's run looks like, whatever the evidence says of it."""

    mean_now: float
    mean_baseline: float
    difference: float  # mean over the paired cases
    interval: tuple[float, float]  # 95 %, of the mean paired difference
    n: int
    n_planned: int
    detectable: float | None


@dataclass(frozen=True)
class Evidence:
    """Evidence of one stream: `e_value` is a share of A (1 acts), `single` the E of this run alone."""

    e_value: float
    single: float
    detectors: dict[str, dict[str, Any]]
    runs: tuple[str, ...]
    change_point: str | None
    change_set: int | None


def directions(spec: MetricSpec) -> tuple[Direction, ...]:
    """The families that a metric has a stream in."""
    if spec.higher_is_better is None:
        return (Direction.CHANGED,)
    return (Direction.WORSE, Direction.BETTER)


def sides(spec: MetricSpec, direction: Direction) -> Sequence[DetectorDirection]:
    """Which way the *scores* move in a stream ("worse": down): for a distance, worse means up."""
    if direction is Direction.CHANGED:
        return ("worse", "better")
    falls = (direction is Direction.WORSE) == bool(spec.higher_is_better)
    return ("worse",) if falls else ("better",)


def is_full(part: MetricRun, baseline: Baseline, policy: DriftPolicy) -> bool:
    """Whether the calibration is long enough for the detectors; else the sign test stands in."""
    measured = (~np.isnan(part.calibration)).any(axis=(1, 2)).sum()
    return not baseline.provisional and bool(measured >= policy.minimum_calibration_runs)


def numbers(part: MetricRun, policy: DriftPolicy, full: bool) -> Numbers:
    paired = part.paired
    now = _case_means(part.now)[paired]
    before = _mean(part.calibration.reshape(-1, part.calibration.shape[-1])[:, paired], axis=0)
    return Numbers(
        mean_now=float(now.mean()),
        mean_baseline=float(before.mean()),
        difference=float((now - before).mean()),
        interval=paired_interval(now - before),
        n=int(paired.sum()),
        n_planned=int(part.planned.sum()),
        detectable=_detectable_full(part, policy) if full else _detectable_sign(part, policy),
    )


def weigh(
    part: MetricRun, state: StreamState, run_key: str, direction: Direction, policy: DriftPolicy, full: bool
) -> Evidence:
    """The evidence of one stream after this run."""
    ways = sides(part.spec, direction)
    if not full:
        return _sign_evidence(part, state, run_key, ways, policy)
    found: dict[str, PassFailDetector | GradedDetector] = {}
    for way in ways:
        found[way] = _updated_detector(part, state.detectors.get(way), way, policy)
    strongest = max(found.values(), key=lambda detector: detector.log_e_value)
    runs = (*state.runs, run_key)[-_KEPT_KEYS:]
    change, size = strongest.change_point()
    position = change - (strongest.runs - len(runs))
    shares = [detector.log_e_value for detector in found.values()]
    singles = [detector.single_run_e_value for detector in found.values()]
    return Evidence(
        e_value=bounded_exp(float(log_sum_exp(shares)) - np.log(len(shares))),
        single=float(np.mean(singles)),
        detectors={way: detector.state() for way, detector in found.items()},
        runs=runs,
        change_point=runs[max(position, 0)],
        change_set=size,
    )


def _updated_detector(
    part: MetricRun, state: dict[str, Any] | None, way: DetectorDirection, policy: DriftPolicy
) -> PassFailDetector | GradedDetector:
    a, b = policy.runs_per_year, policy.alpha
    known = state | {"runs_per_year": a, "alpha": b} if state else None  # a changed policy keeps the evidence
    if part.spec.kind == "pass_fail":
        fresh = partial(PassFailDetector, part.calibration, a, b, direction=way)
        passes = PassFailDetector.from_state(known) if known else fresh()
        passes.update(np.where(part.planned, part.now, np.nan))
        return passes
    calibration, mean = _standardised(part)
    fresh = partial(GradedDetector, calibration, a, b, direction=way, sigma_floor=1.0)
    graded = GradedDetector.from_state(known) if known else fresh()
    graded.update(mean)
    return graded


def _standardised(part: MetricRun) -> tuple[Floats, float]:
    """(calibration run means, this run's mean): differences to each case's own mean, in units of a run's sd.

    The sd is taken over the cases that this run shares with the baseline, so that a run over some of the cases weighs
    exactly what a detector calibrated on those cases would give it, and failed cases neither shift nor scale it.
    """
    calibration = _case_means(part.calibration)
    center = _mean(calibration, axis=0)
    residual = calibration - center
    whole, shared = _mean(residual, axis=1), _mean(residual[:, part.paired], axis=1)
    mean = float((_case_means(part.now) - center)[part.paired].mean())
    fewer = np.sqrt(min(1.0, _depth(part.now[:, part.paired]) / _depth(part.calibration)))
    return whole[~np.isnan(whole)] / _sd(whole, center, len(center)), mean * fewer / _sd(
        shared, center, int(part.paired.sum())
    )


def _sd(run_means: Floats, center: Floats, n: int) -> float:
    """sd of run means, at least half of what one case crossing the whole range of the metric would do to them.

    Without the floor a replayed (noiseless) calibration would make any single odd answer an alarm.
    """
    found = run_means[~np.isnan(run_means)]
    spread = float(found.std(ddof=1)) if found.size > 1 else 0.0
    scale = float(center.max() - center.min())
    floor = 0.5 * scale / n if scale > 0 else 0.01 * abs(float(center.mean())) or 0.01
    return max(spread, floor)


def _sign_evidence(
    part: MetricRun, state: StreamState, run_key: str, ways: Sequence[DetectorDirection], policy: DriftPolicy
) -> Evidence:
    """Provisional baseline: the paired sign e-value of this run, averaged over the frozen runs; alpha per run."""
    bet: Side = ways[0] if len(ways) == 1 else "both"
    logs = [log_paired_sign_e_value(*_pair(part.now, frozen), bet) for frozen in part.calibration]
    log_e = float(log_sum_exp(logs)) - np.log(len(logs))
    suspects = (*state.runs, run_key)[-_KEPT_KEYS:] if log_e > 0 else ()
    return Evidence(
        e_value=bounded_exp(log_e - np.log(policy.threshold)),
        single=bounded_exp(log_e),
        detectors={},
        runs=suspects,
        change_point=suspects[0] if suspects else None,
        change_set=len(suspects) or None,
    )


def _pair(now: Floats, frozen: Floats) -> tuple[Floats, Floats]:
    """Case means over the first min(K) repeats of both: a mean of three repeats ties less often than one answer."""
    depth = np.minimum((~np.isnan(now)).sum(axis=0), (~np.isnan(frozen)).sum(axis=0))
    return _first_mean(now, depth), _first_mean(frozen, depth)


def _first_mean(scores: Floats, depth: np.ndarray) -> Floats:
    used = np.arange(len(scores))[:, None] < depth
    total = np.where(used, scores, 0.0).sum(axis=0)
    return np.where(depth > 0, total / np.maximum(depth, 1), np.nan)


def moved_back(part: MetricRun, state: StreamState, direction: Direction) -> bool:
    """Whether this run, case by case, left where the triggering run stood."""
    if state.trigger is None:
        return False
    ways = sides(part.spec, direction)
    back: Side = "both" if len(ways) > 1 else "better" if "worse" in ways else "worse"
    return log_paired_sign_e_value(_case_means(part.now), unpack(state.trigger), back) >= np.log(MOVED_BACK)


def trigger_of(part: MetricRun) -> dict[str, Any]:
    """This run's case means, to be told later whether the vendor moved back."""
    return pack(np.where(part.planned, _case_means(part.now), np.nan))


def refined_change_point(state: StreamState, evidence: Evidence) -> tuple[str | None, int | None]:
    """The change point: refined for some runs after a detection, then kept, as the window moves on."""
    if state.drifted_runs >= _CHANGE_POINT_RUNS:
        return state.change_point, state.change_set
    return evidence.change_point or state.change_point, evidence.change_set or state.change_set


def _detectable_full(part: MetricRun, policy: DriftPolicy) -> float:
    """Minimum detectable effect over the policy's horizon."""
    n = int(part.paired.sum())
    if part.spec.kind == "pass_fail":
        sigma = PassFailDetector(part.calibration[:, :, part.paired]).sigma
        repeats = _depth(part.now[:, part.paired])
        return minimum_detectable_effect(sigma, n, repeats, policy.horizon_runs, policy.threshold)
    calibration = _case_means(part.calibration)
    center = _mean(calibration, axis=0)
    sd = _sd(_mean((calibration - center)[:, part.paired], axis=1), center, n)
    return minimum_detectable_effect(sd, 1, 1, policy.horizon_runs, policy.threshold)


def _detectable_sign(part: MetricRun, policy: DriftPolicy) -> float | None:
    """Minimum detectable effect of one run: enough one-sided pairs, and more than the pairs' usual disagreement."""
    differences = [now - before for now, before in (_pair(part.now, frozen) for frozen in part.calibration)]
    known = np.concatenate([d[~np.isnan(d)] for d in differences])
    changed = np.abs(known[np.abs(known) > 1e-12])
    if not changed.size and part.spec.kind == "graded":
        return None
    n = int(part.paired.sum())
    step = float(changed.mean()) if changed.size else 1.0
    fewest = smallest_sign_alarm(policy.threshold) * step / n
    return max(fewest, minimum_detectable_effect(float(known.std()), n, 1, 1, policy.threshold))


def _case_means(scores: Floats) -> Floats:
    """Mean over repeats, the last axis but one."""
    return _mean(scores, axis=-2)


def _mean(values: Floats, axis: int) -> Floats:
    """nanmean, NaN (without a warning) where nothing was measured."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _depth(scores: Floats) -> float:
    """Mean number of repeats of the measured cases."""
    counts = (~np.isnan(scores)).sum(axis=-2)
    return float(counts[counts > 0].mean())
