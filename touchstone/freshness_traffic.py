"""What was retrieved, counted: how often each document, and per query how many chunks of marked documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Ints = NDArray[np.int64]

_GROUPS = 1 << 16  # queries are spread over so many clusters: memory does not grow with the log
_CELLS = 1 << 22  # of the bitmap that counts distinct queries
_MOST_SEGMENTS = 32
_REST = "(other segments)"
_TINY = 1e-12


@dataclass(frozen=True)
class Share:
    """A share of retrieved chunks; `lower_bound` is one-sided 95 %, the interval two-sided 95 %."""

    value: float
    ci_low: float
    ci_high: float
    lower_bound: float


@dataclass(frozen=True, eq=False)
class SegmentTraffic:
    """Retrievals of one segment, or of all."""

    retrievals: int
    clusters: Ints  # (clusters, 1 + marks): retrieved chunks, then those of documents with each mark
    documents: Ints  # (documents,): retrieved chunks of each

    @property
    def chunks(self) -> int:
        return int(self.documents.sum())

    def share(self, mark: int) -> Share | None:
        """Share of retrieved chunks whose document has the mark; None when nothing was retrieved."""
        return clustered_share(self.clusters[:, 1 + mark], self.clusters[:, 0])


@dataclass(frozen=True, eq=False)
class Traffic:
    """What queries retrieved of the documents that are live now."""

    overall: SegmentTraffic
    segments: dict[str, SegmentTraffic]
    queries: int  # distinct
    left_out: int  # retrieved chunks of documents that are not live any more
    warnings: tuple[str, ...] = ()


class TrafficCounter:
    """Adds retrievals up in memory that depends on the documents and segments, not on how many there are.

    Distinct queries are the clusters. They are spread over 65,536 groups by their hash, so that two may share one;
    that leaves the variance estimate unbiased ("random groups", Wolter, Introduction to Variance Estimation, ch. 2).
    Distinct queries are counted by linear counting (Whang, Vander-Zanden & Taylor 1990).
    """

    def __init__(self, marks: NDArray[np.bool_]) -> None:
        """`marks` is (marks, documents): which documents have which mark."""
        self._marks = marks
        self._parts: dict[str, _Part] = {}
        self._seen = np.zeros(_CELLS, np.bool_)
        self._left_out = 0

    def add(self, names: Sequence[str], segment: Ints, query_hash: Ints, line: Ints, document: Ints) -> None:
        """Add retrievals: per retrieval its segment (index in `names`) and the hash of its query (32 bits).

        Per retrieved chunk the retrieval it belongs to (its index) and its document (index; -1: not live any more).
        """
        known = document >= 0
        self._left_out += int(np.count_nonzero(~known))
        line, document = line[known], document[known]
        self._seen[query_hash % _CELLS] = True
        counts = [np.bincount(line, minlength=len(segment))]
        counts += [np.bincount(line[mark[document]], minlength=len(segment)) for mark in self._marks]
        for code, name in enumerate(names):
            rows = segment == code
            part = self._part(name)
            part.retrievals += int(np.count_nonzero(rows))
            for column, count in enumerate(counts):
                np.add.at(part.clusters[column], query_hash[rows] % _GROUPS, count[rows])
            np.add.at(part.documents, document[rows[line]], 1)

    def traffic(self, warnings: Sequence[str] = ()) -> Traffic:
        """All that was added; one segment alone is not listed beside the whole."""
        segments = {name: part.traffic() for name, part in sorted(self._parts.items())}
        if len(self._parts) == 1:
            return Traffic(next(iter(segments.values())), {}, self._queries(), self._left_out, tuple(warnings))
        overall = _Part(*self._marks.shape)
        for part in self._parts.values():
            overall.retrievals += part.retrievals
            overall.clusters += part.clusters
            overall.documents += part.documents
        if _REST in self._parts:
            warnings = [*warnings, f"more than {_MOST_SEGMENTS} segments: the later ones are counted together"]
        return Traffic(overall.traffic(), segments, self._queries(), self._left_out, tuple(warnings))

    def _part(self, name: str) -> _Part:
        if name not in self._parts and len(self._parts) >= _MOST_SEGMENTS:
            name = _REST
        if name not in self._parts:
            self._parts[name] = _Part(*self._marks.shape)
        return self._parts[name]

    def _queries(self) -> int:
        free = _CELLS - np.count_nonzero(self._seen)
        return round(_CELLS * math.log(_CELLS / max(free, 1)))


class _Part:
    def __init__(self, marks: int, documents: int) -> None:
        self.retrievals = 0
        self.clusters = np.zeros((1 + marks, _GROUPS), np.int64)
        self.documents = np.zeros(documents, np.int64)

    def traffic(self) -> SegmentTraffic:
        used = self.clusters[:, self.clusters[0] > 0].T
        return SegmentTraffic(self.retrievals, used, self.documents)


def clustered_share(marked: Ints, retrieved: Ints) -> Share | None:
    """sum(marked) / sum(retrieved) with bounds that allow for chunks of one query coming together.

    The variance is the linearised one of a ratio estimator over clusters (Cochran, Sampling Techniques, 3rd ed.,
    eqs. 2.39 and 6.13). The bounds are Clopper-Pearson's for the effective number of chunks that this variance implies,
    with Student's t for few clusters (Korn & Graubard, Survey Methodology 24 (1998) 193-201), so that they stay in
    [0, 1] and are honest near 0 and 1. There, and where no query differs from another, the variance says nothing, and
    each query counts as one observation. Clusters of unequal size count as (sum n)^2 / sum n^2 equal ones (Kish).
    """
    total, hits = int(retrieved.sum()), int(marked.sum())
    if total == 0:
        return None
    sizes = retrieved[retrieved > 0].astype(float)
    clusters = total**2 / float(sizes @ sizes)
    share = hits / total
    variance = _ratio_variance(marked, retrieved, share)
    spread = share * (1 - share)
    observations = min(spread / variance, total) if variance > _TINY * max(spread, _TINY) else clusters
    low, high = _bounds(share, observations, clusters, 0.025)
    return Share(share, low, high, _bounds(share, observations, clusters, 0.05)[0])


def _ratio_variance(marked: Ints, retrieved: Ints, share: float) -> float:
    count = int(np.count_nonzero(retrieved))
    if count < 2:
        return 0.0
    residuals = marked - share * retrieved
    return float(count / (count - 1) * (residuals @ residuals) / float(retrieved.sum()) ** 2)


def _bounds(share: float, observations: float, clusters: float, tail: float) -> tuple[float, float]:
    """One-sided bounds at `tail` on either side; (0, 1) when a single query is all there is."""
    freedom = clusters - 1
    if freedom < _TINY:
        return 0.0, 1.0
    # A t quantile instead of the normal one widens the interval; here as that many fewer observations.
    n = observations * float(special.ndtri(tail) / special.stdtrit(freedom, tail)) ** 2
    hits = share * n
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if share > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if share < 1 else 1.0
    return min(low, share), max(high, share)


def weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], q: float) -> float | None:
    """The smallest value that at least a share q of the weight does not exceed; None without weight."""
    if weights.sum() <= 0:
        return None
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, q * reached[-1] * (1 - _TINY))])
