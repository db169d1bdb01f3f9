"""The switch to a new index as far as retrieval decides it: every verdict, what it counts, and whom it names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from touchstone.cases import Expect, GoldenCase
from touchstone.results import Retrieval, RetrievedChunk
from touchstone.retrieval_config import BuildGate
from touchstone.retrieval_gate import METRICS, Scores, decide_retrieval, score_retrievals

GATE = BuildGate(dataset="support")


def retrieval(*found: tuple[str, str]) -> Retrieval:
    """Chunks as (document id, text), best first."""
    chunks = tuple(
        RetrievedChunk(chunk_id=f"{document}#{rank}", document_id=document, text=text, rank=rank, score=1 / rank)
        for rank, (document, text) in enumerate(found, start=1)
    )
    return Retrieval(
        query="q", chunks=chunks, latency_ms=1, embedding_model="hashing", index_version="t@1", search="semantic"
    )


def scores(n: int = 100, *, low: int = 0, metrics: tuple[str, ...] = METRICS, lower: str = "ndcg") -> Scores:
    """n cases with 1.0 each on the metrics; the first `low` of them have 0.0 on metric `lower`."""
    return {
        metric: {f"case-{number}": float(not (metric == lower and number < low)) for number in range(n)}
        if metric in metrics
        else {}
        for metric in METRICS
    }


def test_documents_are_ranked_and_texts_are_covered_case_by_case() -> None:
    case = GoldenCase(id="a", question="q", reference="paid within fourteen days", relevant_ids=("refunds",))
    found = retrieval(("shipping", "Parcels leave."), ("refunds", "Money is paid within 14 days."))
    scored = score_retrievals([case], [found], k=2)
    assert scored["mrr"] == {"a": 0.5}
    assert scored["recall"] == {"a": 1.0}
    assert scored["ndcg"]["a"] == pytest.approx(0.6309, abs=1e-4)
    assert scored["coverage"] == {"a": 0.75}
    assert score_retrievals([case], [found], k=1)["recall"] == {"a": 0.0}


def test_a_case_counts_only_for_what_it_has_labels_for() -> None:
    cases = [
        GoldenCase(id="ranked", question="q", relevant_ids=("a",)),
        GoldenCase(id="worded", question="q", reference="yes"),
        GoldenCase(id="marks", question="q", reference="?!"),
        GoldenCase(id="refused", question="q", reference="I cannot help with that.", expect=Expect(refuses=True)),
    ]
    scored = score_retrievals(cases, [retrieval(("a", "yes"))] * 4, k=1)
    assert {metric: list(found) for metric, found in scored.items()} == {
        "ndcg": ["ranked"],
        "mrr": ["ranked"],
        "recall": ["ranked"],
        "coverage": ["worded"],
    }


def test_nothing_retrieved_is_the_worst_score_not_a_missing_one() -> None:
    case = GoldenCase(id="a", question="q", reference="yes", relevant_ids=("a",))
    assert score_retrievals([case], [retrieval()], k=3) == {metric: {"a": 0.0} for metric in METRICS}


def test_an_index_that_serves_as_well_passes() -> None:
    found = decide_retrieval(120, scores(), scores(), 1.0, GATE)
    assert found.verdict == "pass"
    assert [one.not_inferior for one in found.comparisons] == [True] * 4
    assert "ndcg 1.000 against 1.000 (n 100 of 120)" in found.reason
    assert found.metrics == {"recall_vs_exact": 1.0, "ndcg": 1, "mrr": 1, "recall": 1, "coverage": 1}
    assert found.worst_cases == ()


@pytest.mark.parametrize("metric", METRICS)
def test_one_metric_that_is_clearly_worse_fails_and_its_worst_cases_are_named(metric: str) -> None:
    found = decide_retrieval(100, scores(low=20, lower=metric), scores(), 1.0, GATE)
    assert found.verdict == "fail"
    assert f"{metric} 0.800 against 1.000 over 100 cases" in found.reason
    assert "gate.margin" in found.reason
    assert {one.metric: one.not_inferior for one in found.comparisons} == {name: name != metric for name in METRICS}
    assert len(found.worst_cases) == 10
    assert {(worst.metric, worst.live, worst.new) for worst in found.worst_cases} == {(metric, 1.0, 0.0)}


def test_a_loss_that_may_or_may_not_be_real_is_unmeasurable_and_says_what_would_decide() -> None:
    found = decide_retrieval(100, scores(low=4), scores(), 1.0, GATE)
    assert found.verdict == "unmeasurable"
    assert [one.not_inferior for one in found.comparisons] == [None, True, True, True]
    assert "more cases like these would decide, or a margin of 0.1" in found.reason
    assert "golden set 'support'" in found.reason
    assert decide_retrieval(100, scores(low=4), scores(), 1.0, BuildGate(margin=0.12)).verdict == "pass"


def test_too_few_labelled_cases_of_one_metric_are_no_pass() -> None:
    few: Scores = {**scores(), "coverage": {f"case-{number}": 1.0 for number in range(10)}}
    found = decide_retrieval(100, few, few, 1.0, GATE)
    assert found.verdict == "unmeasurable"
    assert "coverage 10 cases cannot tell: at least 59 are needed" in found.reason


def test_a_metric_without_any_label_does_not_stand_in_the_way() -> None:
    found = decide_retrieval(100, scores(metrics=("coverage",)), scores(metrics=("coverage",)), None, GATE)
    assert found.verdict == "pass"
    assert [one.metric for one in found.comparisons] == ["coverage"]


def test_cases_without_any_label_are_unmeasurable() -> None:
    found = decide_retrieval(100, scores(0), scores(0), 1.0, GATE)
    assert (found.verdict, found.comparisons) == ("unmeasurable", ())
    assert "none of the 100 golden cases has relevant_ids or a reference" in found.reason


def test_the_first_index_passes_with_its_own_figures_alone() -> None:
    found = decide_retrieval(100, scores(low=30), None, 1.0, GATE)
    assert found.verdict == "pass"
    ndcg = found.comparisons[0]
    assert (ndcg.new, ndcg.live, ndcg.difference, ndcg.lower_bound, ndcg.not_inferior) == (0.7, None, None, None, None)
    assert "ndcg 0.700 (n 100 of 100)" in found.reason
    assert found.worst_cases == ()


@pytest.mark.parametrize("live", [None, scores(0)])
def test_without_a_golden_set_the_comparison_is_skipped(live: Mapping | None) -> None:
    found = decide_retrieval(0, scores(0), live, 0.97, BuildGate())
    assert found.verdict == "skipped"
    assert "gate.dataset" in found.reason
    assert found.metrics == {"recall_vs_exact": 0.97}


@pytest.mark.parametrize(("n_cases", "live"), [(100, scores()), (100, None), (0, None)])
def test_a_vector_index_that_misses_too_much_fails_whatever_else(n_cases: int, live: Scores | None) -> None:
    gate = BuildGate(dataset="support" if n_cases else "", minimum_recall=0.95)
    found = decide_retrieval(n_cases, scores(n_cases), live, 0.949, gate)
    assert found.verdict == "fail"
    assert "0.949 of what exact search finds" in found.reason
    assert "gate.minimum_recall is 0.95" in found.reason
    assert decide_retrieval(n_cases, scores(n_cases), live, 0.95, gate).verdict != "fail"


def test_worst_cases_are_the_largest_drop_of_each_case_largest_first() -> None:
    live: dict[str, dict[str, float]] = {metric: dict(values) for metric, values in scores().items()}
    new = {metric: dict(values) for metric, values in live.items()}
    new["ndcg"] |= {"case-1": 0.5, "case-2": 0.9}
    new["recall"] |= {"case-1": 0.2, "case-3": 0.6}
    found = decide_retrieval(100, new, live, 1.0, GATE)
    assert found.verdict == "pass"  # three drops among a hundred are within the margin
    assert [(worst.case_id, worst.metric) for worst in found.worst_cases] == [
        ("case-1", "recall"),
        ("case-3", "recall"),
        ("case-2", "ndcg"),
    ]
