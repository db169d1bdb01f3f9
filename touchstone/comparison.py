"""Two runs side by side, paired by case: what moved, by how much, and which cases flipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from touchstone.drift import MetricSpec
from touchstone.report import case_scores, interval
from touchstone.results import CaseResult


@dataclass(frozen=True)
class MetricChange:
    """One metric over the `n` cases that both runs scored; `difference` is B minus A with its 95 % interval."""

    metric: str
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    n: int
    better: tuple[str, ...]  # case ids that B scores higher
    worse: tuple[str, ...]


def compare(a: Sequence[CaseResult], b: Sequence[CaseResult], specs: Sequence[MetricSpec]) -> list[MetricChange]:
    """Changes of all metrics that both runs have, in the order of `specs`."""
    return [change for spec in specs if (change := _change(a, b, spec)) is not None]


def _change(a: Sequence[CaseResult], b: Sequence[CaseResult], spec: MetricSpec) -> MetricChange | None:
    scores_a, scores_b = (
        {case: math.fsum(values) / len(values) for case, values in case_scores(results, spec.name).items()}
        for results in (a, b)
    )
    paired = [case for case in scores_a if case in scores_b]
    if not paired:
        return None
    differences = {case: scores_b[case] - scores_a[case] for case in paired}
    low, high = interval(list(differences.values()), is_share=False)
    by_size = sorted(paired, key=lambda case: -abs(differences[case]))
    return MetricChange(
        metric=spec.name,
        mean_a=math.fsum(scores_a[case] for case in paired) / len(paired),
        mean_b=math.fsum(scores_b[case] for case in paired) / len(paired),
        difference=math.fsum(differences.values()) / len(paired),
        ci_low=low,
        ci_high=high,
        n=len(paired),
        better=tuple(case for case in by_size if differences[case] > 0),
        worse=tuple(case for case in by_size if differences[case] < 0),
    )
