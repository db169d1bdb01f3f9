"""Candidate against champion, case by case: non-inferiority per metric and segment, at levels fixed beforehand.

Who may be told what, and how often that may be wrong:

- PASS although some metric is worse by its margin: at most `alpha`. Every comparison must be not inferior, so nothing
  is split over metrics (intersection-union); each of the stages at which a comparison may be settled has alpha/stages.
- FAIL although nothing is worse at all: at most `alpha`, over everything that could be called inferior: a quarter for
  the looks within the first pass (when there are any), the rest in equal parts for the stages; of each part, half for
  the metrics over all cases and half for their segments, divided by how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from touchstone.cases import GoldenCase
from touchstone.errors import BadInput
from touchstone.gate_records import WHOLE, Comparison
from touchstone.noninferiority import certainly_lower, decide, fewest_cases, lower_bound
from touchstone.policy import Policy
from touchstone.release_policy import MetricGate
from touchstone.report import case_scores
from touchstone.results import CaseResult

Floats = NDArray[np.float64]
Trials = Mapping[str, tuple[float, ...]]  # case id -> scores, trial by trial

_LOOKS_SHARE = 0.25
_BETS = (0.1, 0.3, 0.6, 0.9)
_MOST_REPEATS = 20


@dataclass(frozen=True)
class Stage:
    """The how manieth trial of all cases this is, and of how many; `looks`: the first pass may end early."""

    number: int = 1
    of: int = 1
    looks: bool = False


@dataclass(frozen=True)
class Levels:
    """How the chance of an error is divided, fixed before the first call."""

    alpha: float
    stage: Stage
    metrics: int
    segments: int

    @property
    def passing(self) -> float:
        return self.alpha / self.stage.of

    @property
    def look(self) -> float:
        """Of one metric within the first pass, however often it is looked at."""
        return self.alpha * _LOOKS_SHARE / max(1, self.metrics)

    @property
    def _harm(self) -> float:
        return self.alpha * (1 - _LOOKS_SHARE if self.stage.looks else 1.0) / self.stage.of

    def failing(self, segment: str) -> float:
        if not self.segments:
            return self._harm / max(1, self.metrics)
        return self._harm / 2 / max(1, self.metrics * (1 if segment == WHOLE else self.segments))


@dataclass(frozen=True)
class Pairs:
    """One metric of the cases that both sides scored, mapped to 0..1; `of` cases were asked."""

    candidate: Floats
    champion: Floats
    of: int
    trials: int
    noise: float  # variance of one trial's difference around its case's mean; NaN with one trial

    @property
    def differences(self) -> Floats:
        return self.candidate - self.champion

    @classmethod
    def of_cases(cls, ids: Iterable[str], both: tuple[Trials, Trials], asked: set[str], scale: tuple[float, float]):
        low, high = scale
        candidate, champion = both
        paired = [case for case in ids if case in candidate and case in champion]

        def means(side: Trials) -> Floats:
            return np.clip([(math.fsum(side[c]) / len(side[c]) - low) / (high - low) for c in paired], 0.0, 1.0)

        spread = [
            np.var(side[case], ddof=1) / (high - low) ** 2 for side in both for case in paired if len(side[case]) > 1
        ]
        trials = min((len(side[case]) for side in both for case in paired), default=0)
        noise = 2 * float(np.mean(spread)) if spread else math.nan
        return cls(means(candidate), means(champion), sum(case in asked for case in ids), trials, noise)


def levels_for(policy: Policy, gates: Mapping[str, MetricGate], cases: Sequence[GoldenCase], stage: Stage) -> Levels:
    return Levels(policy.release.alpha, stage, len(gates), len(segments_of(cases)))


def segments_of(cases: Iterable[GoldenCase]) -> list[str]:
    """Segments besides the whole; a golden set with a single one has none."""
    found = sorted({case.segment for case in cases})
    return found if len(found) > 1 else []


def compare_metrics(
    cases: Sequence[GoldenCase],
    candidate: Sequence[CaseResult],
    champion: Sequence[CaseResult],
    policy: Policy,
    gates: Mapping[str, MetricGate],
    stage: Stage,
    settled: Sequence[Comparison] = (),
    harmed: Collection[str] = (),
) -> tuple[Comparison, ...]:
    """Every gated metric over all cases and per segment. What an earlier stage has settled stays as it was.

    `harmed` are metrics that a look within the first pass found certainly lower.
    """
    levels, known = levels_for(policy, gates, cases, stage), {(row.metric, row.segment): row for row in settled}
    is_partial = len({result.case_id for result in candidate}) < len(cases)
    rows = []
    for metric, gate in gates.items():
        both = case_scores(candidate, metric), case_scores(champion, metric)
        asked = _asked(metric, both, candidate, champion)
        scale = policy.scale_of(metric)
        for segment in (WHOLE, *segments_of(cases)):
            if found := known.get((metric, segment)):
                rows.append(found)
                continue
            ids = [case.id for case in cases if segment in (WHOLE, case.segment)]
            pairs = Pairs.of_cases(ids, both, asked, scale)
            if segment == WHOLE or pairs.of:  # a segment that the metric is not asked of is none of its
                row = _compare(metric, segment, pairs, gate, scale, policy.minimum_cases, levels)
                # A pass that ended because of harm stopped at a chosen moment: only the look's own level holds there.
                by_look = metric in harmed and segment == WHOLE and (is_partial or row.verdict != "inferior")
                rows.append(_early(row, levels) if by_look else row)
    return tuple(rows)


def _early(row: Comparison, levels: Levels) -> Comparison:
    reason = (
        f"{row.candidate:.3f} against {row.champion:.3f}: lower with {100 * (1 - levels.look):.4g}% confidence, "
        f"seen already after {row.n} cases"
    )
    return row.model_copy(update={"verdict": "inferior", "reason": reason, "needed_cases": None})


def _asked(metric: str, both: tuple[Trials, Trials], *sides: Sequence[CaseResult]) -> set[str]:
    """Cases with a score, or with a failure in its place: a whole case's, or this metric's own."""
    failed = {
        result.case_id
        for results in sides
        for result in results
        if result.failure or (metric in result.scores and result.scores[metric].failure)
    }
    return failed.union(*both)


def _compare(
    metric: str,
    segment: str,
    pairs: Pairs,
    gate: MetricGate,
    scale: tuple[float, float],
    minimum_cases: int,
    levels: Levels,
) -> Comparison:
    low, high = scale
    width = high - low
    margin = gate.margin if segment == WHOLE else gate.segment_margin
    if segment != WHOLE and margin is None:
        return _certain_loss_only(metric, segment, pairs, gate, scale, levels)
    assert margin is not None
    level = levels.failing(segment)
    found = decide(
        pairs.candidate,
        pairs.champion,
        _scaled(metric, margin, width),
        levels.passing,
        minimum_cases if segment == WHOLE else 1,
        alpha_inferior=level,
    )
    open_ = found.verdict == "undecided"
    return Comparison(
        metric=metric,
        segment=segment,
        **_means(pairs, scale),
        bound=found.lower_bound * width,
        margin=margin,
        n=found.n,
        of=pairs.of,
        trials=pairs.trials,
        verdict=found.verdict,
        reason=found.reason if width == 1 else f"{found.reason} (scores mapped from {low:g}..{high:g} to 0..1)",
        needed_cases=found.needed_cases,
        needed_repeats=_needed_repeats(pairs, margin / width, levels) if open_ else None,
    )


def _certain_loss_only(
    metric: str, segment: str, pairs: Pairs, gate: MetricGate, scale: tuple[float, float], levels: Levels
) -> Comparison:
    width, level, n = scale[1] - scale[0], levels.failing(segment), pairs.candidate.size
    margin = _scaled(metric, gate.margin, width)
    is_lower = n > 0 and pairs.differences.mean() <= -margin and certainly_lower(pairs.differences, level)
    reason = (
        f"lower with {100 * (1 - level):.4g}% confidence, by {-pairs.differences.mean() * width:.3f}"
        if is_lower
        else f"no certain loss in {n} cases"
    )
    return Comparison(
        metric=metric,
        segment=segment,
        **_means(pairs, scale),
        bound=lower_bound(pairs.differences, levels.passing) * width,
        margin=None,
        n=n,
        of=pairs.of,
        trials=pairs.trials,
        verdict="inferior" if is_lower else "no_certain_loss",
        reason=reason,
    )


def _means(pairs: Pairs, scale: tuple[float, float]) -> dict[str, Any]:
    if not pairs.candidate.size:
        return {"champion": None, "candidate": None, "difference": None}
    low, high = scale
    champion, candidate = (low + float(side.mean()) * (high - low) for side in (pairs.champion, pairs.candidate))
    return {"champion": champion, "candidate": candidate, "difference": candidate - champion}


def _scaled(metric: str, margin: float, width: float) -> float:
    if not 0 < margin < width:
        raise BadInput(
            f"policy: the margin {margin:g} of {metric} must lie between 0 and {width:g}, the width of its scale: "
            "0 asks for a proof that the candidate is better, more than the width for nothing"
        )
    return margin / width


def repeats_can_help(row: Comparison, levels: Levels, width: float) -> bool:
    """Whether more trials of the same cases could settle it: too few cases stay too few. Looks at no outcome."""
    if row.verdict != "undecided" or row.margin is None:
        return False
    return row.n >= fewest_cases(row.margin / width, levels.passing)


def _needed_repeats(pairs: Pairs, margin: float, levels: Levels) -> int | None:
    """Trials per case at which differences of the same mean would do: an estimate, from how trials disagree."""
    if math.isnan(pairs.noise) or not pairs.noise:
        return None
    d = pairs.differences
    mean, variance = float(d.mean()), float(d.var())
    between = max(0.0, variance - pairs.noise / pairs.trials)
    for trials in (2**step for step in range(1, _MOST_REPEATS.bit_length() + 1)):
        if trials <= pairs.trials:
            continue
        shrunk = mean + (d - mean) * math.sqrt((between + pairs.noise / trials) / variance)
        if lower_bound(np.clip(shrunk, -1, 1), levels.alpha / max(levels.stage.of, trials)) >= -margin:
            return trials
    return None


def harm_so_far(pairs: Pairs, margin: float, level: float) -> bool:
    """Within the first pass, after any block: is it lower by the margin or more, and certainly lower at all?

    A fair bet against "not lower": the mean over some stakes s of the products of 1 - s x difference, an e-process.
    It may be looked at after every block (Ville) because the order of the cases was drawn before any was answered.
    Blocks that hold every segment in its share keep it fair where segments differ: a block's expected factor, the
    product of 1 - s mu_i over its cases, is at most (1 - s mean mu)^n (the geometric mean is below the arithmetic).
    """
    d = pairs.differences
    if not d.size or d.mean() > -margin:
        return False
    wealth = np.mean([np.exp(np.log1p(-stake * d).sum()) for stake in _BETS])
    return bool(wealth >= 1 / level)
