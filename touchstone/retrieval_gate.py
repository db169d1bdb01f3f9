"""May readers be switched to a new index, as far as retrieval tells? Golden cases on the new and on the live one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from touchstone.cases import GoldenCase
from touchstone.index import MetricComparison, RetrievalEvaluation, WorstCase
from touchstone.noninferiority import NonInferiority, decide
from touchstone.ranking import chunk_overlap, ndcg_at_k, recall_at_k, reciprocal_rank, words
from touchstone.results import Retrieval
from touchstone.retrieval_config import BuildGate

Scores = Mapping[str, Mapping[str, float]]  # metric -> case id -> score in [0, 1]

METRICS = ("ndcg", "mrr", "recall", "coverage")
_MOST_WORST = 10


def score_retrievals(cases: Sequence[GoldenCase], found: Sequence[Retrieval], k: int) -> Scores:
    """What each case can say of its retrieval; a metric that a case has no label for is left out for it.

    ndcg, mrr and recall look at the first k documents and need `relevant_ids`. coverage is the share of the words of
    `reference` in the retrieved texts: documents can be ranked as well as before by chunks that no longer hold the
    answer, which only a measure of the texts sees. A question to be refused has its answer in no document.
    """
    scores: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for case, retrieval in zip(cases, found, strict=True):
        ranked = [chunk.document_id for chunk in retrieval.chunks]
        if case.relevant_ids:
            scores["ndcg"][case.id] = min(ndcg_at_k(ranked, case.relevant_ids, k), 1.0)  # rounding may pass 1
            scores["mrr"][case.id] = reciprocal_rank(ranked, case.relevant_ids, k)
            scores["recall"][case.id] = recall_at_k(ranked, case.relevant_ids, k)
        refused = case.expect is not None and case.expect.refuses
        if case.reference and words(case.reference) and not refused:
            scores["coverage"][case.id] = chunk_overlap(case.reference, [chunk.text for chunk in retrieval.chunks])
    return scores


def decide_retrieval(
    n_cases: int, new: Scores, live: Scores | None, recall_vs_exact: float | None, gate: BuildGate
) -> RetrievalEvaluation:
    """Pass, fail, unmeasurable, or skipped (no golden set); both scores are of the same `n_cases` cases.

    Every metric that has labels must be not inferior (no alpha is split: see `touchstone.noninferiority`). One that
    is inferior fails the build; one that cases are too few to decide leaves it unmeasurable, and is no pass. A
    vector search that misses what exact search finds fails with or without golden cases.
    """
    decisions = {} if live is None else _decisions(new, live, gate)
    comparisons = tuple(
        _comparison(metric, scores, decisions.get(metric), gate) for metric, scores in new.items() if scores
    )
    if not n_cases and not gate.dataset:
        verdict, reason = "skipped", "the retrieval config names no golden set (gate.dataset): nothing was compared"
    elif live is None:
        verdict, reason = "pass", f"the first index of this config: {_means(comparisons, n_cases)}"
    else:
        verdict, reason = _verdict(decisions, comparisons, n_cases, gate)
    if recall_vs_exact is not None and recall_vs_exact < gate.minimum_recall:
        missed = (
            f"the vector index finds {recall_vs_exact:.3f} of what exact search finds, gate.minimum_recall is "
            f"{gate.minimum_recall:g}: use `index: flat`, or another kind of index"
        )
        verdict, reason = "fail", f"{missed}; {reason}" if verdict == "fail" else missed
    return RetrievalEvaluation(
        verdict=verdict,
        reason=reason,
        recall_vs_exact=recall_vs_exact,
        comparisons=comparisons,
        worst_cases=() if live is None else _worst_cases(decisions, new, live),
    )


def _decisions(new: Scores, live: Scores, gate: BuildGate) -> dict[str, NonInferiority]:
    """By metric that has labels."""
    return {
        metric: decide(list(scores.values()), [live[metric][case] for case in scores], gate.margin)
        for metric, scores in new.items()
        if scores
    }


def _comparison(
    metric: str, scores: Mapping[str, float], decision: NonInferiority | None, gate: BuildGate
) -> MetricComparison:
    mean, n = math.fsum(scores.values()) / len(scores), len(scores)
    if decision is None:
        return MetricComparison(metric=metric, live=None, new=mean, margin=gate.margin, n=n, not_inferior=None)
    return MetricComparison(
        metric=metric,
        live=decision.mean_old,
        new=mean,
        difference=decision.difference,
        lower_bound=decision.lower_bound,
        margin=gate.margin,
        n=n,
        not_inferior={"not_inferior": True, "inferior": False}.get(decision.verdict),
    )


def _verdict(
    decisions: Mapping[str, NonInferiority], comparisons: Sequence[MetricComparison], n_cases: int, gate: BuildGate
) -> tuple[str, str]:
    if not decisions:
        return "unmeasurable", _means(comparisons, n_cases)
    reasons = {
        verdict: [
            f"{metric} {decision.reason}" for metric, decision in decisions.items() if decision.verdict == verdict
        ]
        for verdict in ("inferior", "undecided", "unmeasurable")
    }
    where = f"(golden set {gate.dataset!r} with {n_cases} cases; the margin is gate.margin in the retrieval config)"
    if reasons["inferior"]:
        return "fail", f"worse than the live index: {'; '.join(reasons['inferior'])} {where}"
    if undecided := reasons["undecided"] + reasons["unmeasurable"]:
        return "unmeasurable", f"not shown to be as good as the live index: {'; '.join(undecided)} {where}"
    return "pass", f"not inferior to the live index within {gate.margin:g}: {_means(comparisons, n_cases)}"


def _means(comparisons: Sequence[MetricComparison], n_cases: int) -> str:
    if not comparisons:
        return f"none of the {n_cases} golden cases has relevant_ids or a reference, so retrieval cannot be measured"
    return ", ".join(
        f"{one.metric} {one.new:.3f}"
        + ("" if one.live is None else f" against {one.live:.3f}")
        + f" (n {one.n} of {n_cases})"
        for one in comparisons
    )


def _worst_cases(decisions: Mapping[str, NonInferiority], new: Scores, live: Scores) -> tuple[WorstCase, ...]:
    """The largest drop of each case, largest first; of the metrics that stand in the way, if any does."""
    in_the_way = [metric for metric, decision in decisions.items() if decision.verdict != "not_inferior"]
    drops = [
        WorstCase(case_id=case, metric=metric, live=live[metric][case], new=score)
        for metric in in_the_way or decisions
        for case, score in new[metric].items()
        if score < live[metric][case] and not math.isclose(score, live[metric][case], abs_tol=1e-9)
    ]
    largest: dict[str, WorstCase] = {}
    for drop in sorted(drops, key=lambda drop: drop.new - drop.live):
        largest.setdefault(drop.case_id, drop)
    return tuple(largest.values())[:_MOST_WORST]
