"""Deterministic scorers: an answer's text against what is known of the right one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from touchstone import ranking
from touchstone.cases import Expect, GoldenCase
from touchstone.results import Answer, Score
from touchstone.scorer_specs import (
    ExactScorer,
    ExpectScorer,
    LengthScorer,
    NumericScorer,
    OverlapScorer,
    RefusalScorer,
    RegexScorer,
    RetrievalScorer,
    Scorer,
    TextScorer,
)

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.])[-+]?\d+(?:\.\d+)?|(?<=[$€£])\d+(?:\.\d+)?"
)
_REFUSAL = re.compile(
    r"\bI(?: a|')m (?:not able|unable) to\b|\bI (?:cannot|can't|can not|won't|don't|do not|could not|couldn't) "
    r"(?:\w+ ){0,2}?(?:find|answer|help|assist|provide|share|reveal|disclose|know|have|comply|discuss|do that)\b|"
    r"\b(?:not|isn't|is not) (?:in|part of|covered (?:by|in)) (?:the|our) (?:help cent(?:er|re)|documents?|context|"
    r"knowledge base)\b|\bno information (?:about|on|regarding)\b|\b(?:sorry|unfortunately), (?:but )?I can(?:no|')t\b",
    re.IGNORECASE,
)


def _fold(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


def contains_all(answer: str, texts: Sequence[str]) -> bool:
    """Every text occurs, case and white space aside."""
    folded = _fold(answer)
    return all(_fold(text) in folded for text in texts)


def contains_any(answer: str, texts: Sequence[str]) -> bool:
    """Some text occurs, case and white space aside."""
    folded = _fold(answer)
    return any(_fold(text) in folded for text in texts)


def is_refusal(answer: str) -> bool:
    """The answer declines: it says that it cannot, or may not, or does not know."""
    return bool(_REFUSAL.search(answer.replace("’", "'")))


def numbers(text: str) -> list[float]:
    """The numbers of a text in order; thousands may be set off by commas."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def has_number(answer: str, value: float, tolerance: float) -> bool:
    return any(abs(number - value) <= tolerance for number in numbers(answer))


def meets(answer: str, expect: Expect) -> tuple[bool, str]:
    """(every check holds, the first one that does not)."""
    checks = (
        (not expect.contains or contains_all(answer, expect.contains), f"lacks one of {list(expect.contains)}"),
        (not contains_any(answer, expect.not_contains), f"holds one of {list(expect.not_contains)}"),
        (expect.regex is None or re.search(expect.regex, answer) is not None, f"does not match {expect.regex!r}"),
        (
            expect.refuses is None or is_refusal(answer) == expect.refuses,
            "does not refuse" if expect.refuses else "refuses",
        ),
        (
            expect.numeric is None or has_number(answer, expect.numeric.value, expect.numeric.tolerance),
            f"lacks the number {expect.numeric.value:g}" if expect.numeric else "",
        ),
    )
    return next(((False, complaint) for holds, complaint in checks if not holds), (True, ""))


def exact(answer: str, reference: str, extract: str | None = None) -> bool:
    """The answer, or the last match of `extract` in it (its first group if it has one), is the reference."""
    found = answer
    if extract is not None:
        matches = list(re.finditer(extract, answer, re.IGNORECASE))
        if not matches:
            return False
        last = matches[-1]
        found = last.group(1) if last.re.groups and last.group(1) is not None else last.group()
    return _bare(found) == _bare(reference)


def _bare(text: str) -> str:
    return _fold(text).strip(" .!\"'`*[]()")


def token_f1(answer: str, reference: str) -> float:
    """Token F1 after SQuAD's normalisation (Rajpurkar et al. 2016): no case, punctuation, articles."""
    given, wanted = Counter(_tokens(answer)), Counter(_tokens(reference))
    if not given or not wanted:
        return float(given == wanted)
    shared = (given & wanted).total()
    return 2 * shared / (given.total() + wanted.total())


def _tokens(text: str) -> list[str]:
    return [token for token in re.findall(r"\w+", text.casefold()) if token not in {"a", "an", "the"}]


def word_count(answer: str) -> int:
    return len(answer.split())


def numeric_reference(case: GoldenCase) -> float | None:
    """The last number of the reference, the answer of a worked problem."""
    found = numbers(case.reference or "")
    return found[-1] if found else None


def deterministic_scores(scorer: Scorer, case: GoldenCase, answer: Answer) -> dict[str, Score]:
    """The metrics of a scorer that needs no judge; empty where the case gives it nothing to compare with."""
    if scorer.segments and case.segment not in scorer.segments:
        return {}
    passed: bool | None = None
    explanation = ""
    match scorer:
        case ExpectScorer() if case.expect:
            passed, explanation = meets(answer.text, case.expect)
        case ExactScorer() if case.reference:
            passed = exact(answer.text, case.reference, scorer.extract)
        case RegexScorer():
            passed = re.search(scorer.pattern, answer.text) is not None
        case TextScorer(kind="contains"):
            passed = contains_all(answer.text, scorer.texts)
        case TextScorer():
            passed = not contains_any(answer.text, scorer.texts)
        case NumericScorer():
            reference = numeric_reference(case)
            passed = None if reference is None else has_number(answer.text, reference, scorer.tolerance)
        case RefusalScorer():
            passed = is_refusal(answer.text)
        case LengthScorer():
            return {scorer.name: Score(value=float(word_count(answer.text)))}
        case OverlapScorer() if case.reference:
            return {scorer.name: Score(value=token_f1(answer.text, case.reference))}
        case RetrievalScorer():
            return _retrieval_scores(scorer, case, answer)
    return {} if passed is None else {scorer.name: Score(value=float(passed), explanation=explanation)}


def _retrieval_scores(scorer: RetrievalScorer, case: GoldenCase, answer: Answer) -> dict[str, Score]:
    if answer.retrieval is None or not case.relevant_ids:
        return {}
    ranked = [chunk.document_id for chunk in answer.retrieval.chunks]
    measures: dict[str, Callable[[], float]] = {
        "ndcg": lambda: ranking.ndcg_at_k(ranked, case.relevant_ids, scorer.k),
        "mrr": lambda: ranking.reciprocal_rank(ranked[: scorer.k], case.relevant_ids),
        "recall": lambda: ranking.recall_at_k(ranked, case.relevant_ids, scorer.k),
        "precision": lambda: ranking.precision_at_k(ranked, case.relevant_ids, scorer.k),
    }
    found = {
        scorer.metric_name(measure): Score(value=measures[measure]() if ranked else 0.0)
        for measure in scorer.measures
        if measure != "chunk_overlap"
    }
    if "chunk_overlap" in scorer.measures and case.reference:
        texts = [chunk.text for chunk in answer.retrieval.chunks]
        overlap = ranking.chunk_overlap(case.reference, texts) if texts else 0.0
        found[scorer.metric_name("chunk_overlap")] = Score(value=overlap)
    return found
