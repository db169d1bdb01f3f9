"""Counting what was retrieved: shares, their bounds by query, and memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from touchstone.freshness_traffic import Share, Traffic, TrafficCounter, clustered_share, weighted_quantile

Retrievals = list[tuple[str, int, list[int]]]  # (segment, hash of the query, documents)


def share_of(marked: list[int], retrieved: list[int]) -> Share:
    share = clustered_share(np.array(marked), np.array(retrieved))
    assert share is not None
    return share


def count(retrievals: Retrievals, marks: list[list[bool]], batch: int = 100) -> Traffic:
    counter = TrafficCounter(np.array(marks))
    for start in range(0, len(retrievals), batch):
        part = retrievals[start : start + batch]
        names = sorted({segment for segment, _, _ in part})
        lengths = [len(documents) for _, _, documents in part]
        counter.add(
            names,
            np.array([names.index(segment) for segment, _, _ in part]),
            np.array([query for _, query, _ in part]),
            np.repeat(np.arange(len(part)), lengths),
            np.array([document for _, _, documents in part for document in documents], int),
        )
    return counter.traffic()


def test_nothing_retrieved_has_no_share() -> None:
    assert clustered_share(np.zeros(3, int), np.zeros(3, int)) is None
    assert weighted_quantile(np.array([1.0]), np.array([0.0]), 0.5) is None


def test_a_share_is_the_ratio_of_the_totals_inside_its_bounds() -> None:
    share = share_of([1, 0, 3, 0, 0, 2], [4, 4, 4, 8, 4, 4])
    assert share.value == 6 / 28
    assert 0 < share.ci_low < share.lower_bound < share.value < share.ci_high < 1


def test_the_same_chunks_from_fewer_queries_say_less() -> None:
    many = share_of([1] * 40 + [0] * 160, [1] * 200)
    few = share_of([8] * 5 + [0] * 20, [8] * 25)
    assert many.value == few.value == 0.2
    assert few.lower_bound < many.lower_bound - 0.03


def test_a_query_asked_a_thousand_times_is_still_one_query() -> None:
    assert share_of([8000], [8000]) == Share(1.0, 0.0, 1.0, 0.0)
    assert share_of([8000, 0, 0], [8000, 8, 8]).lower_bound < 0.01


@pytest.mark.parametrize(("queries", "bound"), [(2, 0.0), (5, 0.25), (20, 0.8), (200, 0.98)])
def test_when_every_query_gets_only_ghosts_the_bound_grows_with_the_queries(queries: int, bound: float) -> None:
    share = share_of([4] * queries, [4] * queries)
    assert (share.value, share.ci_high) == (1.0, 1.0)
    assert bound <= share.lower_bound < (queries - 1) / queries + 0.01
    nothing = share_of([0] * queries, [4] * queries)
    assert (nothing.value, nothing.lower_bound) == (0.0, 0.0)
    assert nothing.ci_high == pytest.approx(1 - share.ci_low)


def test_queries_without_a_retrieved_chunk_change_nothing() -> None:
    assert share_of([1, 0, 2, 0, 0], [4, 4, 4, 0, 0]) == share_of([1, 0, 2], [4, 4, 4])


@pytest.mark.parametrize("queries", [15, 60, 400])
@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5])
def test_the_lower_bound_is_above_the_truth_in_at_most_5_percent_of_samples(queries: int, mean: float) -> None:
    """Queries of very unequal sizes whose shares differ from one to the next, as Beta(mean) with ICC 0.3."""
    random = np.random.default_rng(7)
    samples, above = 600, 0
    for _ in range(samples):
        sizes = random.geometric(0.1, queries) * 4
        marked = random.binomial(sizes, random.beta(mean * 2.3, (1 - mean) * 2.3, queries))
        share = clustered_share(marked, sizes)
        above += share is not None and share.lower_bound > mean
    assert above / samples <= 0.05 + 2 * (0.05 * 0.95 / samples) ** 0.5


def test_with_equal_independent_chunks_the_bounds_are_close_to_the_exact_binomial_ones() -> None:
    share = share_of([1] * 60 + [0] * 940, [1] * 1000)
    assert share.lower_bound == pytest.approx(0.0481, abs=0.0005)  # Clopper-Pearson, 60 of 1000
    assert (share.ci_low, share.ci_high) == pytest.approx((0.0461, 0.0766), abs=0.0005)


RETRIEVALS: Retrievals = [
    ("billing", 11, [0, 1, 2]),
    ("billing", 11, [0, 1]),
    ("shipping", 22, [3, -1]),
    ("shipping", 33, []),
    ("billing", 44, [-1]),
]
MARKS = [[True, False, False, False], [False, False, False, True]]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_documents_queries_and_marks_are_counted_however_the_log_is_cut(batch: int) -> None:
    traffic = count(RETRIEVALS, MARKS, batch)
    assert (traffic.overall.retrievals, traffic.overall.chunks) == (5, 6)
    assert (traffic.queries, traffic.left_out) == (4, 2)
    assert traffic.overall.documents.tolist() == [2, 2, 1, 1]
    assert sorted(traffic.overall.clusters.tolist()) == [[1, 0, 1], [5, 2, 0]]
    assert {name: part.retrievals for name, part in traffic.segments.items()} == {"billing": 3, "shipping": 2}
    assert traffic.segments["billing"].documents.tolist() == [2, 2, 1, 0]
    share = traffic.overall.share(0)
    assert share is not None
    assert share.value == 2 / 6


def test_a_query_in_two_segments_is_one_query_overall() -> None:
    traffic = count([("a", 5, [0]), ("b", 5, [0])], [[True]])
    assert (traffic.queries, len(traffic.overall.clusters)) == (1, 1)


def test_a_single_segment_is_not_listed_beside_the_whole() -> None:
    assert count([("a", 1, [0]), ("a", 2, [0])], [[True]]).segments == {}
    nothing = count([], [[True]])
    assert (nothing.overall.retrievals, nothing.queries, nothing.overall.share(0)) == (0, 0, None)


def test_the_33rd_segment_and_all_later_ones_are_counted_together() -> None:
    traffic = count([(f"s{number:03}", number, [0]) for number in range(100)], [[True]])
    assert len(traffic.segments) == 33
    assert traffic.segments["(other segments)"].retrievals == 68
    assert traffic.overall.retrievals == 100
    assert "segments" in traffic.warnings[0]


def test_distinct_queries_are_counted_well_when_there_are_many() -> None:
    hashes = np.random.default_rng(3).integers(0, 2**32, 200_000)
    counter = TrafficCounter(np.zeros((1, 1), bool))
    zeros = np.zeros(len(hashes), int)
    counter.add(["a"], zeros, hashes, np.arange(len(hashes)), zeros)
    counter.add(["a"], zeros, hashes, np.arange(len(hashes)), zeros)
    traffic = counter.traffic()
    assert traffic.queries == pytest.approx(200_000, rel=0.03)
    assert len(traffic.overall.clusters) <= 65_536
    assert traffic.overall.chunks == 400_000


def test_a_quantile_is_taken_by_weight() -> None:
    ages, weights = np.array([30.0, 0.0, 5.0]), np.array([1.0, 18.0, 1.0])
    assert [weighted_quantile(ages, weights, q) for q in (0.5, 0.9, 0.95, 0.951, 1)] == [0, 0, 5, 30, 30]
