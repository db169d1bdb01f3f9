"""Does the judge agree with people? Agreement, its rates on passes and fails, and kappa, each with its lower bound.

Bounds are one-sided and exact (Clopper & Pearson 1934). Labels of a stratified sample have weights; then the shares
are weighted, and the bound is that of as many labels as the weighted ones are worth, n' = (sum w)^2 / sum w^2 (Kish),
put into Clopper and Pearson's formula as Korn & Graubard 1998 do. Weights are used when every labelled answer has one.
Kappa's bound is from its large-sample error (Fleiss, Cohen & Everitt 1969): it is reported, not decided on. A judge
that passes everything agrees with people as often as answers are good, and has kappa 0 and no true fails.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import beta, norm

from touchstone.label_policy import CalibrationPolicy
from touchstone.labels import Label

Verdict = Literal["calibrated", "provisional", "not calibrated", "unmeasurable"]


@dataclass(frozen=True)
class Rated:
    """One answer: what people made of it, and what the judge did. `weight` None: not of a weighted sample."""

    human: bool
    judge: bool
    weight: float | None = None


@dataclass(frozen=True)
class Share:
    """A share with its one-sided bounds; value and bounds are None without anything to count."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    effective_n: float  # what the labels are worth after weighting; n without weights


@dataclass(frozen=True)
class Calibration:
    """One metric: what the judge is worth. `n` of `n_labelled` answers have a score of the judge."""

    metric: str
    judge_metric: str
    verdict: Verdict
    reason: str
    n_labelled: int
    n: int
    ties: int
    weighted: bool
    agreement: Share
    true_pass_rate: Share
    true_fail_rate: Share
    kappa: float | None
    kappa_low: float | None


@dataclass(frozen=True)
class Settled:
    """An answer with what most of its people said."""

    label: Label  # the latest of those of the majority
    passes: bool


def settle(labels: Iterable[Label], pass_at: float) -> tuple[list[Settled], int]:
    """What the majority said of each answer, and how many answers were dropped because people tied.

    Labels of one metric. Another answer to the same case is another answer.
    """
    by_answer: dict[tuple[str, str, str], list[Label]] = defaultdict(list)
    for label in labels:
        by_answer[label.source, label.id, label.answer].append(label)
    settled, ties = [], 0
    for said in by_answer.values():
        passes = sum(label.passes(pass_at) for label in said)
        if 2 * passes == len(said):
            ties += 1
            continue
        verdict = 2 * passes > len(said)
        agreeing = [label for label in said if label.passes(pass_at) == verdict]
        settled.append(Settled(max(agreeing, key=lambda label: label.at), verdict))
    return settled, ties


def calibrate(
    metric: str,
    judge_metric: str,
    rated: Sequence[Rated],
    policy: CalibrationPolicy,
    *,
    n_labelled: int | None = None,
    ties: int = 0,
    maximum_unjudged: float = 0.1,
) -> Calibration:
    """Compare the judge with people, and say whether its floors are reached.

    `n_labelled` is how many answers have a settled label. Those without a score of the judge are not in `rated`; where
    they are more than the share `maximum_unjudged`, nothing can be told: they may be those that it judges badly.
    """
    weighted = bool(rated) and all(one.weight is not None for one in rated)
    weights = np.array([one.weight if weighted else 1.0 for one in rated], dtype=float)
    human = np.array([one.human for one in rated], dtype=bool)
    judge = np.array([one.judge for one in rated], dtype=bool)
    agreement = _share(human == judge, weights, policy.confidence)
    passes = _share(judge[human], weights[human], policy.confidence)
    fails = _share(~judge[~human], weights[~human], policy.confidence)
    kappa, low = cohens_kappa(human, judge, weights, policy.confidence)
    verdict, reason = _decide(agreement, passes, fails, len(rated), policy)
    n_labelled = len(rated) if n_labelled is None else n_labelled
    if n_labelled - len(rated) > maximum_unjudged * n_labelled or not rated:
        verdict, reason = "unmeasurable", f"the judge scored {len(rated)} of {n_labelled} labelled answers"
    return Calibration(
        metric=metric,
        judge_metric=judge_metric,
        verdict=verdict,
        reason=reason,
        n_labelled=n_labelled,
        n=len(rated),
        ties=ties,
        weighted=weighted,
        agreement=agreement,
        true_pass_rate=passes,
        true_fail_rate=fails,
        kappa=kappa,
        kappa_low=low,
    )


def clopper_pearson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound of a share, each with `confidence`; `n` above 0, not necessarily whole."""
    alpha = 1 - confidence
    low = 0.0 if successes <= 0 else float(beta.ppf(alpha, successes, n - successes + 1))
    high = 1.0 if successes >= n else float(beta.ppf(confidence, successes + 1, n - successes))
    return low, high


def cohens_kappa(
    human: Sequence[bool] | np.ndarray, judge: Sequence[bool] | np.ndarray, weights: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """Kappa and its lower bound; None where both always say the same one thing, or nothing was said."""
    total = float(weights.sum())
    if not total:
        return None, None
    rows, columns = np.asarray(human, int), np.asarray(judge, int)
    p = np.zeros((2, 2))
    np.add.at(p, (rows, columns), weights / total)
    of_human, of_judge = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(of_human @ of_judge)
    if math.isclose(expected, 1.0):
        return None, None
    kappa = (observed - expected) / (1 - expected)
    diagonal = sum(p[i, i] * ((1 - expected) - (of_human[i] + of_judge[i]) * (1 - observed)) ** 2 for i in range(2))
    off = (1 - observed) ** 2 * sum(p[i, 1 - i] * (of_judge[i] + of_human[1 - i]) ** 2 for i in range(2))
    spread = diagonal + off - (observed * expected - 2 * expected + observed) ** 2
    effective_n = total**2 / float((weights**2).sum())
    error = math.sqrt(max(0.0, spread) / effective_n) / (1 - expected) ** 2
    return kappa, kappa - float(norm.ppf(confidence)) * error


def _share(hits: np.ndarray, weights: np.ndarray, confidence: float) -> Share:
    if not len(hits):
        return Share(None, None, None, 0, 0.0)
    value = min(1.0, float(weights[hits].sum() / weights.sum()))
    n = float(weights.sum()) ** 2 / float((weights**2).sum())
    low, high = clopper_pearson(value * n, n, confidence)
    return Share(value, low, high, len(hits), n)


def _decide(agreement: Share, passes: Share, fails: Share, n: int, policy: CalibrationPolicy) -> tuple[Verdict, str]:
    floors = (
        ("agreement", agreement, policy.agreement),
        ("passes what people pass", passes, policy.true_pass_rate),
        ("fails what people fail", fails, policy.true_fail_rate),
    )
    below = [_in_words(*one) for one in floors if one[1].high is not None and one[1].high < one[2]]
    if below:
        return "not calibrated", f"surely below its floor: {'; '.join(below)}"
    short = [_in_words(*one) for one in floors if one[1].low is None or one[1].low < one[2]]
    if n < policy.minimum_labels:
        state = f"; not shown yet: {'; '.join(short)}" if short else "; all floors are reached so far"
        return "provisional", f"{n} labelled answers of the {policy.minimum_labels} that are asked for{state}"
    missing = [name for name, share, _ in floors if share.value is None]
    if missing:
        return "unmeasurable", f"{n} labelled answers, but people gave nothing to see whether the judge {missing[0]}"
    if short:
        return "not calibrated", f"its floor is not shown: {'; '.join(short)}"
    return "calibrated", f"{n} labelled answers; all floors are reached: {'; '.join(_in_words(*one) for one in floors)}"


def _in_words(name: str, share: Share, floor: float) -> str:
    if share.value is None or share.low is None:
        return f"{name}: no such answer, floor {floor:.2f}"
    return f"{name} {share.value:.3f}, at least {share.low:.3f}, floor {floor:.2f}, n {share.n}"
