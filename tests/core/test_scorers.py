"""Deterministic scorers, rule by rule."""

from __future__ import annotations

import pytest

from touchstone.cases import Expect, GoldenCase
from touchstone.policy import Policy
from touchstone.results import Answer, Retrieval, RetrievedChunk
from touchstone.scorers import deterministic_scores, exact, has_number, is_refusal, meets, numbers, token_f1


def score(scorer: dict, case: dict, answer: str, retrieval: Retrieval | None = None) -> dict[str, float | None]:
    (found,) = Policy.model_validate({"scorers": [scorer]}).scorers
    golden = GoldenCase.model_validate({"id": "c", "question": "q", **case})
    scores = deterministic_scores(found, golden, Answer(text=answer, retrieval=retrieval))
    return {name: one.value for name, one in scores.items()}


@pytest.mark.parametrize(
    "answer",
    [
        "I can't find that in our help center.",
        "I can’t help with that.",
        "I'm not able to share other customers' data.",
        "Sorry, but I cannot do that.",
        "The documents contain no information about shipping to Mars.",
        "I do not know.",
    ],
)
def test_a_refusal_is_recognised(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "You can return it within 30 days.",
        "Customers cannot change the plan after the trial.",
        "The sensor doesn't work below -40 °C.",
        "If you can't find the button, hold it for 5 seconds.",
    ],
)
def test_an_answer_that_says_no_is_not_a_refusal(answer: str) -> None:
    assert not is_refusal(answer)


def test_numbers_are_read_with_signs_separators_and_currency() -> None:
    assert numbers("€1.50, ±0.5 and 40 % of 1,234 at -40 °C, port 8883") == [1.5, 0.5, 40.0, 1234.0, -40.0, 8883.0]
    assert has_number("It costs $14.50.", 14.5, 1e-9)
    assert not has_number("version v2", 2, 1e-9)


@pytest.mark.parametrize(
    ("expect", "answer", "holds"),
    [
        ({"contains": ["30 days"]}, "Within 30  Days.", True),
        ({"contains": ["30 days", "unused"]}, "Within 30 days.", False),
        ({"not_contains": ["secret"]}, "The SECRET is 42.", False),
        ({"regex": r"\b30\b"}, "30 days", True),
        ({"numeric": {"value": 30}}, "thirty or 30", True),
        ({"numeric": 30}, "31", False),
        ({"refuses": True}, "I can't find that.", True),
        ({"refuses": False}, "I can't find that.", False),
        ({"refuses": True, "not_contains": ["key"]}, "I can't share the key.", False),
    ],
)
def test_expect_holds_only_when_every_check_does(expect: dict, answer: str, holds: bool) -> None:
    passed, complaint = meets(answer, Expect.model_validate(expect))
    assert passed is holds
    assert bool(complaint) is not holds


def test_exact_takes_the_last_match_whatever_its_case() -> None:
    pattern = r"\[(Yes|No)\]"
    assert exact("[No] at first, but 17077 has no divisor: [yes].", "Yes", pattern)
    assert not exact("No divisor was found.", "Yes", pattern)
    assert exact(" Paris. ", "paris")


def test_token_f1_ignores_articles_case_and_marks() -> None:
    assert token_f1("The 30 days.", "30 days") == 1.0
    assert token_f1("30 weeks", "30 days") == 0.5
    assert token_f1("nothing shared", "30 days") == 0.0


def test_a_scorer_leaves_out_cases_that_give_it_nothing_to_compare_with() -> None:
    assert score({"name": "ok", "kind": "expect"}, {}, "x") == {}
    assert score({"name": "f1", "kind": "token_f1"}, {}, "x") == {}
    assert score({"name": "r", "kind": "retrieval"}, {"relevant_ids": ["a"]}, "x") == {}
    assert score({"name": "r", "kind": "regex", "pattern": "x", "segments": ["s"]}, {"segment": "t"}, "x") == {}


def test_retrieval_is_scored_on_documents_not_on_their_chunks() -> None:
    chunks = tuple(
        RetrievedChunk(chunk_id=f"{document}#{rank}", document_id=document, text="", rank=rank, score=1 / rank)
        for rank, document in enumerate(["b", "a", "a"], start=1)
    )
    found = Retrieval(query="q", chunks=chunks, latency_ms=1, embedding_model="m", index_version="i", search="semantic")
    scores = score({"name": "r", "kind": "retrieval", "k": 3}, {"relevant_ids": ["a"]}, "x", found)
    assert scores["mrr_at_3"] == 0.5
    assert scores["recall_at_3"] == 1.0


def test_a_retrieval_that_found_nothing_scores_zero() -> None:
    nothing = Retrieval(query="q", chunks=(), latency_ms=1, embedding_model="m", index_version="i", search="keyword")
    scores = score({"name": "r", "kind": "retrieval", "k": 3}, {"relevant_ids": ["a"]}, "x", nothing)
    assert set(scores.values()) == {0.0}


def test_length_and_refusal_are_tracked_for_change() -> None:
    policy = Policy.model_validate({"scorers": [{"name": "n", "kind": "length"}, {"name": "r", "kind": "refusal"}]})
    assert [metric.higher_is_better for metric in policy.metrics] == [None, None]
    assert score({"name": "n", "kind": "length"}, {}, "three short words") == {"n": 3.0}
