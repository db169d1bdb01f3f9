"""A case's result as it may be stored: scored on what was said, kept without what is personal in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from touchstone.cases import GoldenCase
from touchstone.pii import find_pii, scrub
from touchstone.privacy import clean
from touchstone.results import Answer, CaseResult, Failure, Retrieval, Score

Scrub = Callable[[str], str]


def scrubbed_result(result: CaseResult, case: GoldenCase, also: Scrub = str) -> CaseResult:
    """`result` without personal data and secrets, but for what the golden case says itself; its scores stand.

    The answer keeps the number of findings by kind, for the gate's check of forbidden kinds. What a golden case says is
    the team's own, and without it a stored answer could not be measured again. `also` scrubs names, where that is on.
    """
    known = _own_words(case)

    def hide(text: str) -> str:
        return also(scrub(text, known) if _holds_any(text) else text)

    return result.model_copy(
        update={
            "question": scrub(result.question, known),
            "answer": result.answer and _answer(result.answer, hide),
            "failure": result.failure and _failure(result.failure, also),
            "scores": {name: _score(score, hide, also) for name, score in result.scores.items()},
        }
    )


def scrubbed_retrieval(retrieval: Retrieval, hide: Scrub = scrub) -> Retrieval:
    """A retrieval with its texts scrubbed; ids, ranks and scores as they were."""
    chunks = tuple(
        chunk.model_copy(update={"text": hide(chunk.text), "title": hide(chunk.title)}) for chunk in retrieval.chunks
    )
    return retrieval.model_copy(update={"query": hide(retrieval.query), "chunks": chunks})


@lru_cache(maxsize=4096)
def _holds_any(text: str) -> bool:
    """The same chunks come back in many cases."""
    return bool(find_pii(text))


def _own_words(case: GoldenCase) -> str:
    expect = case.expect
    checks = (*expect.contains, *expect.not_contains, expect.regex or "") if expect else ()
    return "\n".join((case.question, case.reference or "", *checks))


def _answer(answer: Answer, hide: Scrub) -> Answer:
    retrieval = answer.retrieval and scrubbed_retrieval(answer.retrieval, hide)
    return answer.model_copy(update={"text": hide(answer.text), "retrieval": retrieval, "pii": find_pii(answer.text)})


def _failure(failure: Failure, also: Scrub) -> Failure:
    return failure.model_copy(update={"reason": also(clean(failure.reason))})


def _score(score: Score, hide: Scrub, also: Scrub) -> Score:
    failure = score.failure and _failure(score.failure, also)
    return score.model_copy(update={"explanation": hide(score.explanation), "failure": failure})
