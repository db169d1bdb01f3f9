"""Ranking measures: known values, and what counts as a hit."""

from __future__ import annotations

import math

import pytest

from touchstone.ranking import (
    chunk_overlap,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    reciprocal_rank_fusion,
)


def test_a_perfect_ranking_scores_one_on_every_measure() -> None:
    ranked, relevant = ["a", "b"], {"a", "b"}
    assert ndcg_at_k(ranked, relevant, 2) == pytest.approx(1)
    assert (reciprocal_rank(ranked, relevant), recall_at_k(ranked, relevant, 2)) == (1, 1)
    assert precision_at_k(ranked, relevant, 2) == 1


def test_ndcg_discounts_by_the_logarithm_of_the_place() -> None:
    assert ndcg_at_k(["x", "a"], {"a"}, 10) == pytest.approx(1 / math.log2(3))


def test_ndcg_weighs_grades_and_normalises_by_the_best_order() -> None:
    best = 3 + 1 / math.log2(3)
    worst = 1 + 3 / math.log2(3)
    assert ndcg_at_k(["low", "high"], {"high": 3, "low": 1}, 10) == pytest.approx(worst / best)


def test_ndcg_does_not_punish_more_relevant_documents_than_places() -> None:
    assert ndcg_at_k(["a"], {"a", "b", "c"}, 1) == pytest.approx(1)


def test_several_chunks_of_one_document_are_one_hit_and_later_documents_move_up() -> None:
    ranked = ["x", "x", "x", "a"]
    assert reciprocal_rank(ranked, {"a"}) == 1 / 2
    assert recall_at_k(ranked, {"a"}, 2) == 1
    assert precision_at_k(ranked, {"a"}, 4) == 1 / 2


def test_precision_divides_by_what_was_retrieved_not_by_k() -> None:
    assert precision_at_k(["a", "x"], {"a"}, 10) == 1 / 2


def test_a_document_beyond_k_is_no_hit() -> None:
    assert recall_at_k(["x", "y", "a"], {"a"}, 2) == 0
    assert reciprocal_rank(["x", "y", "a"], {"a"}, 2) == 0


def test_a_query_that_finds_nothing_scores_zero() -> None:
    assert ndcg_at_k([], {"a"}, 3) == precision_at_k([], {"a"}, 3) == recall_at_k([], {"a"}, 3) == 0
    assert reciprocal_rank([], {"a"}) == 0


@pytest.mark.parametrize("measure", [ndcg_at_k, precision_at_k, recall_at_k, reciprocal_rank])
def test_without_a_relevant_document_nothing_can_be_measured(measure) -> None:
    with pytest.raises(ValueError, match="relevant is empty"):
        measure(["a"], set(), 3)


def test_at_least_one_place_must_be_looked_at() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(["a"], {"a"}, 0)


def test_chunk_overlap_is_the_share_of_reference_words_that_were_retrieved() -> None:
    assert chunk_overlap("Refunds take 14 days", ["A refund takes", "14 days, no more."]) == 1 / 2
    assert chunk_overlap("14 days", []) == 0


def test_chunk_overlap_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        chunk_overlap(" ?! ", ["text"])


def test_fusion_prefers_what_both_rankings_found() -> None:
    fused = reciprocal_rank_fusion([["a", "b"], ["c", "b"]])
    assert fused[0] == ("b", pytest.approx(2 / 62))


def test_fusion_breaks_ties_in_the_order_of_first_sight() -> None:
    assert [item for item, _ in reciprocal_rank_fusion([["a"], ["b"]])] == ["a", "b"]
