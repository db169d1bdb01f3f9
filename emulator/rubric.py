"""The rubric judge: 1 to 5 per dimension, from lexical support, coverage and what a refusal deserves."""

from collections.abc import Sequence

from emulator.entailment import agreement, coverage, support
from emulator.language import is_refusal
from emulator.passages import passages, without_citations

ANSWERABLE = 0.6  # contexts hold this share of the question's words: a refusal was wrong


def score(
    question: str, answer: str, contexts: Sequence[str], reference: object, dimensions: Sequence[str]
) -> tuple[dict[str, int], str]:
    """Scores per dimension and one sentence of reason."""
    expected = reference if isinstance(reference, str) and reference.strip() else None
    if not answer.strip():
        return dict.fromkeys(dimensions, 1), "The answer is empty."
    if is_refusal(answer):
        return _refused(question, contexts, expected, dimensions)
    if expected is not None and is_refusal(expected):
        faithful = grade(_faithfulness(answer, contexts, None))
        scores = {name: faithful if name == "faithfulness" else 1 for name in dimensions}
        return scores, "The reference refuses; this answer does not."
    shares = {name: _share(name, question, answer, contexts, expected) for name in dimensions}
    reason = "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return {name: grade(share) for name, share in shares.items()}, f"Lexical shares: {reason}."


def grade(share: float) -> int:
    """[0, 1] onto 1..5."""
    return 1 + round(4 * min(1.0, max(0.0, share)))


def _refused(
    question: str, contexts: Sequence[str], expected: str | None, dimensions: Sequence[str]
) -> tuple[dict[str, int], str]:
    answerable = (
        coverage(question, "\n\n".join(contexts)) >= ANSWERABLE if expected is None else not is_refusal(expected)
    )
    right = not answerable
    scores = {name: 5 if right or name == "faithfulness" else 1 for name in dimensions}
    return scores, "A refusal, and rightly so." if right else "A refusal although the question can be answered."


def _share(name: str, question: str, answer: str, contexts: Sequence[str], expected: str | None) -> float:
    if name == "faithfulness":
        return _faithfulness(answer, contexts, expected)
    if name == "relevance":
        return _relevance(question, answer, expected)
    if name == "completeness":
        return coverage(expected, answer) if expected is not None else coverage(question, answer)
    return agreement(answer, expected) if expected is not None else coverage(question, answer)


def _faithfulness(answer: str, contexts: Sequence[str], expected: str | None) -> float:
    """Share of the answer's sentences that the contexts carry; the reference stands in for missing contexts."""
    context = "\n\n".join(contexts) or expected or ""
    units = passages(without_citations(answer))
    return sum(support(unit.text, context).holds() for unit in units) / len(units) if units else 0.0


def _relevance(question: str, answer: str, expected: str | None) -> float:
    """How much of the question the answer takes up, or of the reference; half of the words is all one can ask."""
    taken_up = coverage(question, answer)
    against_reference = coverage(expected, answer) if expected is not None else 0.0
    return min(1.0, 2 * max(taken_up, against_reference))
