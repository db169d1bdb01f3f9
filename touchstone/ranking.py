"""How good a ranking of documents is, and how to fuse two rankings into one.

Every measure takes the ids as they were retrieved, best first. Several chunks of one document are one hit:
only its first place counts, and later documents move up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

Id = TypeVar("Id", bound=Hashable)


def ndcg_at_k(ranked: Sequence[str], relevant: Collection[str] | Mapping[str, float], k: int) -> float:
    """Discounted cumulative gain over the best possible one.

    A document at place r gains grade / log2(r + 1) (Järvelin & Kekäläinen 2002, in the linear form of trec_eval,
    which BEIR reports). `relevant` may map ids to grades; a plain collection has grade 1 each.
    """
    grades = {document: float(grade) for document, grade in _grades(relevant).items() if grade > 0}
    top = _top(ranked, grades, k)
    best = sorted(grades.values(), reverse=True)[:k]
    return _discounted([grades.get(document, 0.0) for document in top]) / _discounted(best)


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str], k: int | None = None) -> float:
    """1 / place of the first relevant document, 0 when there is none (Voorhees, TREC-8 QA track, 1999).

    The mean over queries is the MRR; with `k` only the first k documents are looked at (MRR@k).
    """
    top = _top(ranked, relevant, max(1, len(ranked)) if k is None else k)
    return next((1 / place for place, document in enumerate(top, start=1) if document in relevant), 0.0)


def recall_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant documents that are among the first k (Manning, Raghavan & Schütze 2008, ch. 8)."""
    return _hits(_top(ranked, relevant, k), relevant) / len(set(relevant))


def precision_at_k(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the distinct documents among the first k that are relevant.

    The denominator is what was retrieved (at most k), not k itself as in trec_eval: so it is counted by the
    published evaluation of the claude-docs set, and a retriever is not blamed for documents that do not exist.
    Nothing retrieved is 0.
    """
    top = _top(ranked, relevant, k)
    return _hits(top, relevant) / len(top) if top else 0.0


def chunk_overlap(reference: str, retrieved: Sequence[str]) -> float:
    """Share of the reference's words (each as often as it occurs) that the retrieved texts contain.

    A lexical stand-in for context recall that needs no judge: ROUGE-1 recall (Lin 2004) against all texts together.
    """
    wanted = words(reference)
    if not wanted:
        raise ValueError("reference has no words")
    found = {word for text in retrieved for word in words(text)}
    return sum(word in found for word in wanted) / len(wanted)


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Id]], k: int = 60) -> list[tuple[Id, float]]:
    """Ids by the sum of 1 / (k + place) over the rankings, best first (Cormack, Clarke & Büttcher 2009, k = 60).

    Ties keep the order in which the ids were first met, so the result is deterministic.
    """
    scores: dict[Id, float] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + place)
    return sorted(scores.items(), key=lambda entry: -entry[1])


def words(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation is not compared."""
    return re.findall(r"\w+", text.lower())


def _grades(relevant: Collection[str] | Mapping[str, float]) -> Mapping[str, float]:
    return relevant if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1.0)


def _top(ranked: Sequence[str], relevant: Collection[str], k: int) -> list[str]:
    """The first k distinct documents; the place where all measures check their input."""
    if k < 1:
        raise ValueError(f"k is {k}; at least one place must be looked at")
    if not relevant:
        raise ValueError("relevant is empty: without a relevant document no ranking is better than another")
    return list(dict.fromkeys(ranked))[:k]


def _hits(top: Sequence[str], relevant: Collection[str]) -> int:
    return sum(document in relevant for document in top)


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1))
