"""What calibration runs say about each pass/fail item, and how likely its later results are under it.

Each item passes with its own unknown probability. An empirical-Bayes prior over that probability, on a logit
grid, is fitted to the calibration counts by EM; a Beta prior would be wrong for sets of easy and hopeless items.

One fit is not enough: an EM run to the end is too sure for items spread smoothly, a smoothed one too vague for
identical items, and either misfit looks like drift after a few hundred runs. So three fits stand side by side and
"nothing changed" is their mixture: a shift must beat whichever of them explains the new results best. (Alone,
the sharp fit alarmed in 54 % and the smooth one in 46 % of simulated quiet years on some items; see docs/drift.md.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, expit

from touchstone.evalues import Floats, Ints, log_sum_exp

GRID_LOGIT = np.linspace(-9.0, 5.8, 60)
"""Up to 0.997: an item that never failed may still fail now and then. Down to 0.0001: an item that never passed
must not look as if it had got worse."""
GRID = expit(GRID_LOGIT)
_LOG_PASS, _LOG_FAIL = np.log(GRID), np.log1p(-GRID)

SMOOTHING = 2.0  # pseudo-items spread evenly over the grid
FITS = ((0.5, 50), (0.0, 5), (0.0, 200))
"""(kernel width in logits after each EM step, EM steps): smooth, half-way, and sharp."""

DENSE_SHIFTS = ((0.03, 30.0), (0.08, 30.0), (0.2, 30.0))
"""(relative loss r, concentration c): every item loses a little, c says how evenly."""
SPARSE_SHIFT = (0.5, 2.0, 0.08)
"""(r, c, share): a few items change beyond recognition, but never for the better: c = 2 alone would let an item that
always failed and now always passes speak for "worse"."""


def fit_priors(passes: Ints, fails: Ints) -> Floats:
    """Grid weights of the three fits, shape [3, 60], from calibration counts per item, both of shape [n]."""
    pairs, copies = np.unique(np.stack([passes, fails], axis=1), axis=0, return_counts=True)
    log_likelihood = pairs[:, :1] * _LOG_PASS + pairs[:, 1:] * _LOG_FAIL
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    return np.stack([_expectation_maximisation(likelihood, copies, *fit) for fit in FITS])


def _expectation_maximisation(likelihood: Floats, copies: Ints, width: float, steps: int) -> Floats:
    """EM for the grid weights; a kernel after each step (Silverman et al. 1990, "EMS") keeps them smooth."""
    kernel = None
    if width:
        kernel = np.exp(-0.5 * ((GRID_LOGIT[:, None] - GRID_LOGIT) / width) ** 2)
        kernel /= kernel.sum(axis=0)
    weights = np.full(len(GRID), 1 / len(GRID))
    for _ in range(steps):
        posterior = likelihood * weights
        posterior /= posterior.sum(axis=1, keepdims=True)
        weights = copies @ posterior + SMOOTHING / len(GRID)
        weights /= weights.sum()
        if kernel is not None:
            weights = kernel @ weights
    return weights / weights.sum()


@dataclass(frozen=True)
class ItemModel:
    """The calibrated items, grouped by equal counts, ready to price later results."""

    group: Ints  # [n] -> group of equal calibration counts
    log_posterior: Floats  # [fits, groups, grid]
    log_changed: Floats  # [groups, grid] where the sparse shift puts an item
    expected: Floats  # [groups] posterior mean pass probability, averaged over the fits
    variance: Floats  # [groups] posterior mean of x (1 - x): the variance of one call of such an item

    @classmethod
    def from_counts(cls, passes: Ints, fails: Ints, priors: Floats) -> ItemModel:
        """Posteriors of every item given its calibration counts (shape [n]) and priors (shape [fits, grid])."""
        pairs, group = np.unique(np.stack([passes, fails], axis=1), axis=0, return_inverse=True)
        log_posterior = np.log(priors)[:, None, :] + pairs[:, :1] * _LOG_PASS + pairs[:, 1:] * _LOG_FAIL
        log_posterior -= log_sum_exp(log_posterior)[..., None]
        posterior = np.exp(log_posterior).mean(axis=0)
        expected = posterior @ GRID
        variance = posterior @ (GRID * (1 - GRID))
        return cls(group.reshape(-1), log_posterior, _changed_items(expected), expected, variance)

    def log_e(self, passes: Floats, fails: Floats) -> Floats:
        """log E_j of every start j: evidence that the items pass less often than calibrated; shape [starts].

        `passes`, `fails`: effective counts per start and item since that start, shape [starts, n]. E is the mean
        over shifts of the shifted likelihood, over the mean over fits of the null likelihood; the sparse shift
        mixes "this item changed" into each item's null, so it is taken once per fit. Equal results are priced once.
        """
        y_values, y_code = np.unique(passes, return_inverse=True)
        f_values, f_code = np.unique(fails, return_inverse=True)
        code = (self.group * y_values.size + y_code.reshape(passes.shape)) * f_values.size
        unique, inverse = np.unique(code + f_code.reshape(fails.shape), return_inverse=True)
        group, rest = np.divmod(unique, y_values.size * f_values.size)
        y, f = np.divmod(rest, f_values.size)
        terms = self.log_terms(group, y_values[y], f_values[f])
        inverse = inverse.reshape(passes.shape)
        totals = np.stack([row[inverse].sum(axis=1) for row in terms], axis=1)
        return combine(totals)

    def log_terms(self, group: Ints, passes: Floats, fails: Floats) -> Floats:
        """log likelihoods of (group, passes, fails) triples; rows: dense shifts, null fits, sparse per fit."""
        path = passes[:, None] * _LOG_PASS + fails[:, None] * _LOG_FAIL
        null = [log_sum_exp(fit[group] + path) for fit in self.log_posterior]
        expected = self.expected[group]
        dense = [_log_beta_binomial(passes, fails, expected * (1 - r), c) for r, c in DENSE_SHIFTS]
        share = SPARSE_SHIFT[-1]
        changed = np.log(share) + log_sum_exp(self.log_changed[group] + path)
        sparse = [np.logaddexp(np.log1p(-share) + fit, changed) for fit in null]
        return np.stack(dense + null + sparse)


def _changed_items(expected: Floats) -> Floats:
    """log weights of Beta(c mu, c (1 - mu)), mu = (1 - r) b, on the grid up to b itself; shape [groups, grid]."""
    r, c, _ = SPARSE_SHIFT
    mean = expected[:, None] * (1 - r)
    density = c * mean * _LOG_PASS + c * (1 - mean) * _LOG_FAIL  # per logit, as the grid is even in logits
    weights = np.where(expected[:, None] >= GRID, density, -np.inf)
    return weights - log_sum_exp(weights)[:, None]


def combine(totals: Floats) -> Floats:
    """log E from log likelihood sums over items, shape [..., rows of `log_terms`] -> [...]."""
    dense, fits = len(DENSE_SHIFTS), len(FITS)
    share = 1 / (dense + 1)
    weights = np.array([share] * dense + [share / fits] * fits)
    shifted = np.concatenate([totals[..., :dense], totals[..., dense + fits :]], axis=-1)
    null = log_sum_exp(totals[..., dense : dense + fits]) - np.log(fits)
    return log_sum_exp(shifted, weights=weights) - null


def _log_beta_binomial(passes: Floats, fails: Floats, mean: Floats, concentration: float) -> Floats:
    """log marginal of one *sequence* of passes and fails whose probability is Beta(c mean, c (1 - mean))."""
    a, b = concentration * mean, concentration * (1 - mean)
    return betaln(a + passes, b + fails) - betaln(a, b)


def overdispersion(rows: Floats, group: Ints, model: ItemModel) -> float:
    """phi >= 1: how much more whole runs vary than independent items would; rows of shape [passes over the set, n].

    phi = max(1, (20 + sum z^2) / (19 + m)), z the standardised totals of the m calibration passes: shrunk to 1,
    because 20 totals say little. Evidence is divided by it.
    """
    measured = ~np.isnan(rows)
    expected, variance = model.expected[group], model.variance[group]
    used = measured.any(axis=1)
    residual = np.where(measured, rows - expected, 0.0).sum(axis=1)[used]
    z2 = residual**2 / (measured @ variance)[used]
    return float(max(1.0, (20 + z2.sum()) / (19 + used.sum())))
