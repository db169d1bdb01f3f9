"""How far the queries of one window lie from those of another: centroid, spread and PSI, without sampling bias.

Two samples of the same queries differ too, and small ones by a lot: of 100 real questions each, the cosine of the two
centroids was 0.85 and the largest PSI 0.6, although nothing changed (docs/query-drift.md). So every figure is given
without the part that sampling explains, and a permutation test says whether any difference is left: the queries of
both windows are dealt anew into two windows of the same sizes, and everything is computed again, the projections and
the bin edges included. The test is exact when queries are independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from touchstone.retrieval_config import QueryDriftPolicy

Floats = NDArray[np.float64]

SIGNIFICANCE = 0.001  # of each of the two tests: a false positive in 500 windows, whatever the sizes
BINS = 10
COMPONENTS = 5

_RANK = 32  # leading components that the direction between the centroids may use; with all 384 it would fit noise
_TESTED = 64  # leading components in which the distance of the centroids is tested
_FIRST, _ALL = 199, 999  # permutations: enough for the mean; enough for the test, when there is something to test
_BATCH = 100
_PSEUDO_COUNT = 0.5
_DECIMALS = 6  # of a projection: equal queries must stay equal, whatever the order of additions


class ProjectionShift(BaseModel):
    """PSI of one projection of the queries to a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    psi: float = Field(description="As computed")
    expected: float = Field(description="Its mean when nothing changed, at these sample sizes")

    @property
    def corrected(self) -> float:
        return self.psi - self.expected


class QueryShift(BaseModel):
    """The newest window against the reference window. p-values: of the permutation tests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    reference_n: int
    centroid_cosine: float | None = Field(description="Without sampling bias; None: a window has no direction at all")
    centroid_cosine_raw: float
    centroid_p: float = Field(description="Of the distance of the centroids, in units of the spread along components")
    spread: float = Field(description="Mean cosine distance to the window's own centroid, without sampling bias")
    reference_spread: float
    projections: tuple[ProjectionShift, ...]
    psi_p: float = Field(description="Of the largest corrected PSI among all projections")
    permutations: int

    @property
    def spread_ratio(self) -> float | None:
        return self.spread / self.reference_spread if self.reference_spread > 0 else None

    @property
    def largest(self) -> ProjectionShift:
        return max(self.projections, key=lambda projection: projection.corrected)

    @property
    def psi(self) -> float:
        """The largest corrected PSI."""
        return self.largest.corrected

    @property
    def p(self) -> float:
        """Of the test that sees more."""
        return min(self.centroid_p, self.psi_p)

    @property
    def is_significant(self) -> bool:
        """More than chance: one of the two tests rejects that both windows hold the same queries."""
        return self.p <= SIGNIFICANCE

    def exceeds(self, cosine_limit: float, psi_limit: float) -> bool:
        """Beyond a limit, be it by chance or not."""
        return self.psi > psi_limit or (self.centroid_cosine is not None and self.centroid_cosine < cosine_limit)


def measure_shift(
    reference: NDArray[np.floating], newest: NDArray[np.floating], policy: QueryDriftPolicy, *, seed: int = 0
) -> QueryShift:
    """Compare two windows of query embeddings, unit rows [m, d] and [n, d] with m, n >= 2.

    The same rows and seed give the same answer. Most permutations are spared when the figures are within the limits
    of `policy`, or when the first ones show that chance alone gives as much.
    """
    m, n = len(reference), len(newest)
    queries = np.vstack([reference, newest]).astype(np.float64)
    compared = _Comparison(queries, m)
    rng = np.random.default_rng(seed)
    found = compared.distances_and_psis(np.arange(m + n)[None] >= m)
    null = compared.under_no_change(rng, _FIRST)
    shift = _summary(compared, found, null)
    if shift.exceeds(policy.centroid_flag, policy.psi_flag) and shift.p <= 1 / (1 + _FIRST):
        null = np.vstack([null, compared.under_no_change(rng, _ALL - _FIRST)])
        shift = _summary(compared, found, null)
    return shift


def nearest_similarity(reference: NDArray[np.floating], newest: NDArray[np.floating]) -> Floats:
    """For each newest query the cosine to the most similar reference query; low: nothing like it was asked."""
    return np.asarray(newest @ reference.T, dtype=np.float64).max(axis=1)


def _summary(compared: _Comparison, found: Floats, null: Floats) -> QueryShift:
    """`found` [1, 1 + k] and `null` [permutations, 1 + k]: distance of the centroids, then k PSIs."""
    reference, newest = compared.queries[: compared.m], compared.queries[compared.m :]
    ours, theirs = reference.mean(axis=0), newest.mean(axis=0)
    expected = null[:, 1:].mean(axis=0)
    largest = (null[:, 1:] - expected).max(axis=1)
    own, own_theirs = _squared_length(reference), _squared_length(newest)
    cosine = float(ours @ theirs) / np.sqrt(own * own_theirs) if min(own, own_theirs) > 0 else None
    return QueryShift(
        n=len(newest),
        reference_n=len(reference),
        centroid_cosine=None if cosine is None else min(cosine, 1.0),
        centroid_cosine_raw=float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-12)),
        centroid_p=_p_value(found[0, 0], null[:, 0]),
        spread=1 - float(np.sqrt(max(own_theirs, 0))),
        reference_spread=1 - float(np.sqrt(max(own, 0))),
        projections=tuple(
            ProjectionShift(name=name, psi=float(psi), expected=float(mean))
            for name, psi, mean in zip(compared.names, found[0, 1:], expected, strict=True)
        ),
        psi_p=_p_value((found[0, 1:] - expected).max(), largest),
        permutations=len(null),
    )


def _squared_length(rows: Floats) -> float:
    """Of the centroid, without sampling bias: the mean similarity of two different queries.

    The mean of n unit vectors is longer than their true mean mu, since E|mean|^2 = |mu|^2 + (1 - |mu|^2) / n.
    """
    n = len(rows)
    mean = rows.mean(axis=0)
    return float((n * (mean @ mean) - 1) / (n - 1))


def _p_value(found: float, null: Floats) -> float:
    """Share of deals at least as extreme, the found one among them (Phipson & Smyth 2010: never zero)."""
    return (1 + int((null >= found - 1e-12).sum())) / (1 + len(null))


@dataclass
class _Comparison:
    """Both windows in one array, so that they can be dealt anew: the first `m` rows are the reference."""

    queries: Floats
    m: int

    def __post_init__(self) -> None:
        centred = self.queries - self.queries.mean(axis=0)
        variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
        variances, axes = variances[::-1][:_TESTED], axes[:, ::-1][:, :_TESTED]
        scores = centred @ axes  # components of both windows together: they favour neither
        floor = variances[min(_RANK, len(variances)) - 1]  # weak components are noise: they must not weigh the most
        self._standardised = scores / np.sqrt(np.maximum(variances + floor, 1e-9))
        self._scores = scores[:, :_RANK]
        components = self._scores[:, :COMPONENTS].T.round(_DECIMALS)
        self.names = [
            "similarity to the reference's centroid",
            *(f"principal component {k}" for k in range(1, len(components) + 1)),
            "direction between the two centroids",
        ]
        self._lines = np.empty((len(self.names), len(self.queries)))
        self._lines[1:-1] = components

    def under_no_change(self, rng: np.random.Generator, deals: int) -> Floats:
        """The same figures when the queries are dealt at random: [deals, 1 + projections]."""
        rows = len(self.queries)
        is_newest = np.zeros((deals, rows), dtype=bool)
        for deal in is_newest:
            deal[rng.choice(rows, rows - self.m, replace=False)] = True
        batches = (is_newest[start : start + _BATCH] for start in range(0, deals, _BATCH))
        return np.vstack([self.distances_and_psis(batch) for batch in batches])

    def distances_and_psis(self, is_newest: NDArray[np.bool_]) -> Floats:
        """For each deal [deals, rows]: the distance of the centroids (Hotelling's T^2, but for a factor), the PSIs."""
        weights = np.where(is_newest, 1 / (len(self.queries) - self.m), -1 / self.m)
        apart = weights @ self.queries
        centroids = self.queries.mean(axis=0) - apart * (1 - self.m / len(self.queries))
        similarities = (centroids @ self.queries.T).round(_DECIMALS)
        between = (weights @ self._scores @ self._scores.T).round(_DECIMALS)
        psis = np.empty((len(is_newest), len(self.names)))
        for number, deal in enumerate(is_newest):
            self._lines[0], self._lines[-1] = similarities[number], between[number]
            psis[number] = stability_index(self._lines[:, ~deal], self._lines[:, deal])
        distances = ((weights @ self._standardised) ** 2).sum(axis=1)
        return np.column_stack([distances, psis])


def stability_index(reference: Floats, newest: Floats) -> Floats:
    """Population stability index of each row, one projection each: sum over bins of (q - p) ln(q / p).

    Both windows are counted in the same bins, whose edges are the quantiles of the reference. Half a query is added to
    every bin, so that an empty one is no infinity; a bin that is empty in both (equal queries made it) counts nothing.
    """
    reference, newest = np.sort(reference, axis=1), np.sort(newest, axis=1)
    edges = reference[:, np.arange(1, BINS) * reference.shape[1] // BINS]
    p, q = _counts(reference, edges), _counts(newest, edges)
    used = (p > 0) | (q > 0)
    p, q = _shares(p, used), _shares(q, used)
    return ((q - p) * np.log(np.where(used, q, 1) / np.where(used, p, 1))).sum(axis=1)


def _counts(ordered: Floats, edges: Floats) -> Floats:
    """Of each row's bins: [rows, bins]; a value on an edge belongs to the bin above it."""
    rows, count = ordered.shape
    below = np.zeros((rows, BINS + 1))
    below[:, -1] = count
    for row in range(rows):
        below[row, 1:-1] = ordered[row].searchsorted(edges[row], side="left")
    return below[:, 1:] - below[:, :-1]


def _shares(counts: Floats, used: NDArray[np.bool_]) -> Floats:
    smoothed = (counts + _PSEUDO_COUNT) * used
    return smoothed / smoothed.sum(axis=1, keepdims=True)
