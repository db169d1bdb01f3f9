"""Is the new one not worse than the old one by more than a margin? Paired scores of the same cases decide.

Differences of golden cases are mostly exactly 0, with a few large ones. A t interval then calls 100 cases without
any difference certain, though one case in fifty that breaks has a fair chance of not being among them. So the bound
here holds for every law on [-1, 1] and every n, and no honest bound can do with fewer cases than `fewest_cases`.

To deny "the mean difference is at most m" we bet on the contrary, case by case, with stakes that no such law can beat
on average: the wealth is an e-value, and reaches 1/alpha with probability at most alpha (Ville). The stake aims to be
there after the last case: it is the hedge of an option that pays when a z-test would deny m,

    stake = phi(d) / (p sqrt(cases left x variance)),   p = wealth / (wealth aimed at),   d = Phi^-1(p),

with the variance as seen so far. E-values of fixed random orders of the cases are averaged, which is an e-value again.

Sources: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting"; Voráček & Orabona 2025,
"STaR-Bets" (stakes that aim at a last round); Piaggio et al. 2012, CONSORT for non-inferiority (the margin). How it
was chosen and what it reaches: docs/retrieval-gate.md, benchmarks/noninferiority.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]
Verdict = Literal["not_inferior", "inferior", "undecided", "unmeasurable"]

_ORDERS = 20  # random orders of the cases that are averaged
_AIM = 2.0  # times 1/alpha, in each order: so that some orders may miss and the average is still there
_PRIOR_CASES, _PRIOR_VARIANCE = 30, 0.05  # so many cases count as seen; rare large drops are not learnt in time
_MOST_STAKE = 0.999  # of what the worst case would take
_MOST_ROUNDS = 2000  # beyond, means of neighbouring cases are bet on: bounded alike, with the same mean
_MOST_NEEDED = 10_000  # golden cases that anybody would still write
_SPLITS, _PASSES = 16, 4  # the bound is found to 2 / 16^4


@dataclass(frozen=True)
class NonInferiority:
    """One metric of two candidates on the same cases; means are None without any case."""

    mean_new: float | None
    mean_old: float | None
    difference: float | None  # new minus old
    lower_bound: float  # of the mean difference, one-sided with confidence 1 - alpha
    n: int
    verdict: Verdict
    reason: str
    needed_cases: int | None  # cases of the same pattern that would decide; None: decided, or 10,000 would not do


def decide(
    new: ArrayLike,
    old: ArrayLike,
    margin: float,
    alpha: float = 0.05,
    minimum_cases: int = 20,
    *,
    alpha_inferior: float | None = None,
) -> NonInferiority:
    """Compare scores in [0, 1], both of shape [cases] in the same order.

    - not_inferior: the lower bound of the mean difference is above -margin. If the mean is truly lower by the margin
      or more, this comes out with probability at most alpha.
    - inferior: the mean is lower by the margin or more, and certainly (1 - alpha) lower at all. With equal true means
      this comes out with probability at most alpha.
    - undecided: neither; `needed_cases` says how many would do. Never take it for not_inferior.
    - unmeasurable: fewer than `minimum_cases`.

    Several metrics: ask for not_inferior on every one. No alpha is split, because a release that is worse on any
    metric passes only if that metric's own decision errs (intersection-union test: Berger 1982). Calling it inferior
    when any metric is errs more often, but such a release did not pass before either; whoever must not err there
    gives each of K metrics `alpha_inferior` = alpha / K (None: alpha).
    Raises ValueError for scores outside [0, 1], shapes that differ, or a margin or alpha outside (0, 1).
    """
    if not (0 < margin < 1 and 0 < alpha < 1):
        raise ValueError(f"margin {margin} and alpha {alpha} must lie between 0 and 1")
    harm = alpha if alpha_inferior is None else alpha_inferior
    if not 0 < harm < 1:
        raise ValueError(f"alpha_inferior {harm} must lie between 0 and 1")
    x, y = _scores(new, "new"), _scores(old, "old")
    if x.shape != y.shape:
        raise ValueError(f"{x.size} new and {y.size} old scores: they must be of the same cases")
    differences, within = x - y, _denies(x - y, -margin, alpha)
    bound = (max if within else min)(lower_bound(differences, alpha), -margin)
    if x.size < minimum_cases:
        needed = max(minimum_cases, _needed(differences, margin, alpha, harm) or 0)
        verdict, reason = "unmeasurable", f"{_cases(x.size)} cannot tell: at least {needed} are needed"
        return _result(x, y, bound, verdict, reason, needed)
    means = f"{x.mean():.3f} against {y.mean():.3f} over {_cases(x.size)}"
    confidence = f"{_percent(1 - alpha)} confidence"
    if within:
        reason = f"{means}: at worst {bound:+.3f} with {confidence}, within the margin of {margin:g}"
        return _result(x, y, bound, "not_inferior", reason, None)
    if differences.mean() <= -margin and certainly_lower(differences, harm):
        lost = f"by {-differences.mean():.3f} where the margin is {margin:g}"
        reason = f"{means}: lower with {_percent(1 - harm)} confidence, {lost}"
        return _result(x, y, bound, "inferior", reason, None)
    needed = _needed(differences, margin, alpha, harm)
    reason = f"{means}: {bound:+.3f} cannot be ruled out with {confidence}, the margin is {margin:g}"
    return _result(x, y, bound, "undecided", f"{reason}; {_way_out(needed, x.size, bound)}", needed)


def lower_bound(differences: ArrayLike, alpha: float = 0.05) -> float:
    """Largest m in [-1, 1] such that a mean difference below m is denied; shape [cases], -1 without any.

    The true mean lies below it with probability at most alpha, whatever the law of the differences.
    """
    d = np.asarray(differences, float)
    low, high = -1.0, 1.0
    for _ in range(_PASSES):
        means = np.linspace(low, high, _SPLITS + 1)[1:]
        held = np.flatnonzero(e_values(d, means, alpha) < 1 / alpha)  # never empty: nobody gains against a mean of 1
        low, high = (low if held[0] == 0 else float(means[held[0] - 1])), float(means[held[0]])
    return low


def certainly_lower(differences: ArrayLike, alpha: float = 0.05) -> bool:
    """Whether "the mean difference is 0 or more" is denied: comes out with probability at most alpha if it is true."""
    return _denies(-np.asarray(differences, float), 0.0, alpha)


def e_values(differences: ArrayLike, means: ArrayLike, alpha: float = 0.05) -> Floats:
    """Evidence against "the mean difference is at most m", for each m in (-1, 1] of `means`; deny at 1/alpha.

    The expectation is at most 1 when m is at least the true mean; the bets, not their fairness, depend on alpha.
    `differences` of shape [..., cases] are so many sets of cases; the result is [..., means].
    """
    rounds, means = _rounds(np.asarray(differences, float)), np.asarray(means, float)
    n, aim = rounds.shape[-1], _AIM / alpha
    rng = np.random.default_rng(0)  # fixed before any case is seen
    orders = np.argsort(rng.random((_ORDERS, n)), axis=1)
    gains = np.moveaxis(rounds[..., orders], -1, 0)[..., None, :] - means[:, None]  # [round, ..., mean, order]
    most = _MOST_STAKE / (1 + means)[:, None]
    log_wealth = np.zeros(gains.shape[1:])
    squares = np.full(gains.shape[1:], _PRIOR_CASES * _PRIOR_VARIANCE)
    for done, gain in enumerate(gains):
        p = np.clip(np.exp(log_wealth) / aim, 1e-300, 1 - 1e-12)
        deviation = np.sqrt((n - done) * squares / (_PRIOR_CASES + done))
        stake = np.minimum(_reversed_hazard(p) / deviation, most)
        log_wealth += np.log1p(np.where(log_wealth < math.log(aim), stake, 0.0) * gain)
        squares += gain**2
    return np.exp(log_wealth).mean(axis=-1)


def fewest_cases(margin: float, alpha: float = 0.05) -> int:
    """Cases without any difference that a bound which holds for every law needs: (1 - margin)^n <= alpha.

    With fewer, cases that break one time in 1/margin would all be missed more often than alpha.
    """
    return math.ceil(math.log(alpha) / math.log1p(-margin))


def _result(
    new: Floats, old: Floats, bound: float, verdict: Verdict, reason: str, needed: int | None
) -> NonInferiority:
    means = (float(new.mean()), float(old.mean()), float((new - old).mean())) if new.size else (None, None, None)
    return NonInferiority(*means, bound, new.size, verdict, reason, needed)


def _scores(values: ArrayLike, name: str) -> Floats:
    scores = np.asarray(values, float)
    if scores.ndim != 1 or not ((scores >= 0) & (scores <= 1)).all():  # NaN is neither
        raise ValueError(f"{name} scores must be a list of numbers from 0 to 1; a failed case has no score")
    return scores


def _rounds(differences: Floats) -> Floats:
    if differences.shape[-1] <= _MOST_ROUNDS:
        return differences
    blocks = np.array_split(differences, _MOST_ROUNDS, axis=-1)
    return np.stack([block.mean(axis=-1) for block in blocks], axis=-1)


def _reversed_hazard(p: Floats) -> Floats:
    """phi(d) / Phi(d) at Phi(d) = p: what one standard deviation more would add to the log of p."""
    return np.exp(-(ndtri(p) ** 2) / 2) / math.sqrt(2 * math.pi) / p


def _denies(differences: Floats, mean: float, alpha: float) -> bool:
    return bool(e_values(differences, [mean], alpha)[0] >= 1 / alpha)


def _needed(differences: Floats, margin: float, alpha: float, harm: float) -> int | None:
    """Cases at which the same differences, over and over, would decide, to 1 %; none known: as if all were 0."""
    pattern = differences if differences.size else np.zeros(1)
    sign, mean, level = (1, -margin, alpha) if pattern.mean() > -margin else (-1, 0.0, harm)

    def decides(n: int) -> bool:
        return _denies(np.resize(sign * pattern, n), mean, level)

    high = max(differences.size, 1)
    while not decides(high):
        high *= 2
        if high > _MOST_NEEDED:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _percent(share: float) -> str:
    """95 %, 98.3 %: as many places as it needs to be no other level."""
    return f"{100 * share:.4g}%"


def _way_out(needed: int | None, n: int, bound: float) -> str:
    wider = f"a margin of {math.ceil(-bound * 100 + 1e-9) / 100:g}" if bound > -0.5 else "a wider margin"
    if needed is None or needed <= n:
        return f"only {wider} would decide"
    return f"{_cases(needed - n, 'more ')} like these would decide, or {wider}"


def _cases(n: int, kind: str = "") -> str:
    return f"{n} {kind}{'case' if n == 1 else 'cases'}"
