"""The one currency of every decision: e-values, their yearly envelope, and what follows from them.

An e-value is a number whose mean is at most 1 while nothing has changed, so that it reaches 1/alpha with
probability at most alpha (Markov), and a product over runs may be looked at after every run (Ville).

Sources: Shin, Ramdas & Rinaldo, "E-detectors" (the envelope); Wang & Ramdas, "False discovery rate control with
e-values" (e-BH); Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (mixture
bets); Miller 2024, "Adding error bars to evals" (paired differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaln, gammaln

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Side = Literal["worse", "better", "both"]

LARGEST = 1e300  # e-values are reported as plain JSON numbers, so never as infinity
_Z_POWER = 0.84  # normal quantile of 80 % power


def bounded_exp(log_value: float) -> float:
    """exp(log_value), cut at 1e300 so that the result is always a finite JSON number."""
    return float(np.exp(min(log_value, np.log(LARGEST))))


def log_sum_exp(log_values: ArrayLike, axis: int = -1, weights: ArrayLike | None = None) -> Floats:
    """log of the (weighted) sum of exponentials along an axis, without overflow; scipy's takes five times as long."""
    values = np.asarray(log_values, float)
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    terms = np.exp(values - top)
    total = (terms if weights is None else terms * np.asarray(weights, float)).sum(axis=axis)
    with np.errstate(divide="ignore"):  # a sum of nothing but zeros is -inf, rightly
        return np.log(total) + top.squeeze(axis=axis)


def alarm_threshold(runs_per_year: float, alpha: float) -> float:
    """A = (weight spent in a year) / alpha: an envelope that reaches A raises at most alpha false alarms a year.

    P(alarm within runs of total weight T) <= T / A and the mean weight to a false alarm is >= A.
    Raises ValueError unless runs_per_year > 0 and 0 < alpha < 1.
    """
    if not (np.isfinite(runs_per_year) and runs_per_year > 0):
        raise ValueError(f"runs_per_year is {runs_per_year}; it must be a positive number")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1 (false alarms per year)")
    return runs_per_year / alpha


@dataclass(frozen=True)
class YearlyBudget:
    """Divides one year's weight between scheduled runs and the rarer runs that an event triggers.

    An event (a vendor's announcement, a metadata change) makes a change right now more likely, so its run may
    start with more weight; all weights of a year still sum to `runs_per_year`, so the threshold A is unchanged.
    """

    runs_per_year: float
    events_per_year: float = 0.0
    event_share: float = 0.2

    def __post_init__(self) -> None:
        if self.runs_per_year <= 0 or self.events_per_year < 0 or not 0 <= self.event_share < 1:
            raise ValueError(f"{self} is no budget: runs > 0, events >= 0, share in [0, 1)")

    @property
    def scheduled(self) -> float:
        """Weight of a scheduled run: 1 when no events are planned."""
        return 1.0 - self.event_share if self.events_per_year else 1.0

    @property
    def event(self) -> float:
        """Weight of an event-triggered run; 0 when none are planned (plan them, or they are not paid for)."""
        if not self.events_per_year:
            return 0.0
        return self.event_share * self.runs_per_year / self.events_per_year


def log_envelope(log_e: ArrayLike, weights: ArrayLike) -> float:
    """log R_t, R_t = sum_j w_j E_{j,t}, over start runs j (both of shape [starts]); -inf without starts."""
    evidence, w = np.asarray(log_e, float), np.asarray(weights, float)
    return float(log_sum_exp(evidence, weights=w)) if evidence.size else -np.inf


def change_point_posterior(log_e: ArrayLike, weights: ArrayLike) -> Floats:
    """P(the change came with start run j | it came), proportional to w_j E_{j,t}; shape [starts]."""
    log_mass = np.asarray(log_e, float) + np.log(np.asarray(weights, float))
    return np.exp(log_mass - log_sum_exp(log_mass))


def change_point_set(posterior: ArrayLike, mass: float = 0.95) -> tuple[int, int]:
    """The likeliest start (its position) and how many of the likeliest starts together hold `mass`."""
    p = np.asarray(posterior, float)
    order = np.argsort(-p, kind="stable")
    size = int(np.searchsorted(np.cumsum(p[order]), mass - 1e-12) + 1)
    return int(order[0]), min(size, len(p))


def e_bh_adjusted(e_values: ArrayLike) -> Floats:
    """Each e-value after e-BH over the K of them: max over ranks k >= its own of k e_(k) / K; shape [K].

    An adjusted value of 1 or more means "rejected": e-BH at K streams rejects the k largest when
    e_(k) >= K / k. The inputs are scaled (R/A), so 1 is a stream's own alarm; no assumption on how the
    streams depend on each other.
    """
    e = np.asarray(e_values, float)
    order = np.argsort(-e, kind="stable")
    shared = e[order] * (np.arange(1, e.size + 1) / max(e.size, 1))
    adjusted = np.empty_like(e)
    adjusted[order] = np.maximum.accumulate(shared[::-1])[::-1]
    return adjusted


def e_bh(e_values: ArrayLike) -> NDArray[np.bool_]:
    """Which of the scaled e-values e-BH rejects (see `e_bh_adjusted`); shape [K]."""
    return e_bh_adjusted(e_values) >= 1.0 - 1e-12


def log_sign_e_value(worse: int, better: int, side: Side = "worse") -> float:
    """log of the exact paired sign e-value of `worse` against `better` discordant pairs.

    While nothing has changed each discordant pair is a fair coin, whatever the cases are like. The bet is
    the uniform mixture over every coin theta in (1/2, 1) that favours `side`, in closed form:
    E = 2^(d+1) B(u+1, d-u+1) (1 - I_{1/2}(u+1, d-u+1)), u of d pairs on that side. "both" averages the two.
    Raises ValueError on negative counts.
    """
    if worse < 0 or better < 0:
        raise ValueError(f"{worse} worse and {better} better pairs: counts cannot be negative")
    if side == "both":
        one, other = log_sign_e_value(worse, better, "worse"), log_sign_e_value(worse, better, "better")
        return float(np.logaddexp(one, other) - np.log(2))
    hits, misses = (worse, better) if side == "worse" else (better, worse)
    tail = betaincc(hits + 1, misses + 1, 0.5)
    if tail <= 0:  # all evidence is on the other side, beyond double precision
        return -np.inf
    return float((hits + misses + 1) * np.log(2) + betaln(hits + 1, misses + 1) + np.log(tail))


def log_paired_sign_e_value(now: ArrayLike, before: ArrayLike, side: Side = "worse") -> float:
    """log paired sign e-value of two runs over the same cases, both of shape [cases]; "worse" is lower now.

    Cases with a NaN on either side are left out; differences up to 1e-12 are ties and carry nothing.
    """
    difference = np.asarray(now, float) - np.asarray(before, float)
    return log_sign_e_value(int((difference < -1e-12).sum()), int((difference > 1e-12).sum()), side)


def smallest_sign_alarm(threshold: float) -> int:
    """The fewest discordant pairs, all on one side, whose sign e-value reaches `threshold`."""
    pairs = 1
    while log_sign_e_value(pairs, 0) < np.log(threshold):
        pairs += 1
    return pairs


def minimum_detectable_effect(sigma: float, n: int, repeats: float, runs: float, threshold: float) -> float:
    """The shift of the mean found within `runs` runs with 80 % power, in score units.

    MDE = sigma (sqrt(2 ln A) + 0.84) / sqrt(n k D): sigma is the sd of one call around its own case's mean, n
    cases, k repeats, D runs, A the threshold (normal approximation of the envelope's crossing).
    """
    return float(sigma * (np.sqrt(2 * np.log(threshold)) + _Z_POWER) / np.sqrt(n * repeats * runs))


def paired_interval(differences: Sequence[float] | Floats, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of the mean paired difference over cases (Miller 2024); descriptive, it decides nothing."""
    d = np.asarray(differences, float)
    if d.size < 2:
        return float(d.mean() - 1.0), float(d.mean() + 1.0)
    half = z * float(d.std(ddof=1)) / np.sqrt(d.size)
    return float(d.mean() - half), float(d.mean() + half)


def log_shift_ratio(m: int, new: Ints, sums: Floats, squares: Floats, shifts: Floats) -> Floats:
    """log E of "the last `new` run means lie `shift` sigma off", averaged over shifts; shape [starts].

    m calibration means with mean 0 and sd 1 (standardised), then `new` means with these sums and sums of squares.
    Mean and sigma have the right-Haar prior dmu dsigma / sigma under both hypotheses; integrating them out leaves
    E = exp(-d^2 c / 2) E[exp(d t V)], V ~ chi with N - 1 degrees of freedom, N = m + new, c = m new / N,
    t = b / sqrt(a), b the centred sum of the new means and a the total sum of squares. The last integral is taken
    over log V by the trapezoid rule, which is exact to rounding for so smooth an integrand.
    """
    total = m + new
    b = sums * m / total
    a = (m - 1) + squares - sums**2 / total
    k = (total - 1).astype(float)[:, None, None]
    slope = (b / np.sqrt(a))[:, None, None] * shifts[None, :, None]
    mode = (slope + np.sqrt(slope**2 + 4 * k)) / 2
    width = 1 / np.sqrt(mode**2 + k)
    steps = np.linspace(-1.0, 1.0, 401)
    offset = np.where(steps < 0, steps * (38 / k + 10 * width), steps * 10 * width)
    spacing = np.where(steps < 0, 38 / k + 10 * width, 10 * width) / 200
    spacing = np.where(steps == 0, (38 / k + 20 * width) / 400, spacing)
    log_v = np.log(mode) + offset
    v = np.exp(log_v)
    log_integral = log_sum_exp(k * log_v - v**2 / 2 + slope * v + np.log(spacing))
    log_chi = (k / 2 - 1) * np.log(2) + gammaln(k / 2)
    c = (m * new / total)[:, None]
    return log_sum_exp(log_integral - log_chi[:, :, 0] - shifts**2 * c / 2) - np.log(len(shifts))
