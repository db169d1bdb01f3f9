"""Extractive question answering: the best-supported sentences of the prompt's own documents, or a refusal."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from emulator.language import COMMON_WORDS, content, stem
from emulator.passages import Passage, passages
from emulator.prompt import Asked, Document, asks_for_quantity, is_injection
from emulator.snapshots import Temperament, chance

HEADING_WEIGHT = 0.6  # a question word found in the heading or title, not in the sentence
SECOND_SENTENCE = 0.55  # a further sentence must score this share of the best
PATIENCE = 0.05  # per content word above three, so much less of the question must be supported, down to 60 %
_COMMON = frozenset(stem(word) for word in COMMON_WORDS)
_NOTHING: frozenset[str] = frozenset()
# What a question for a number is put in ("take", "cost"): a sentence with a number meets it without the word.
_MEASURES = frozenset(
    content("take cost price fee last time long day hour date limit maximum minimum threshold amount")
)


@dataclass(frozen=True)
class Extract:
    """An answer, and the share of the question that the documents support."""

    text: str
    support: float


class _Unit(NamedTuple):
    """One sentence of the prompt, seen through the question: which of its words are said, and where."""

    passage: Passage
    document: Document
    place: int  # rank of its document
    said: frozenset[str]
    headed: frozenset[str]  # in its headings
    titled: frozenset[str]  # in its document's title


class _Candidate(NamedTuple):
    passage: Passage
    document: Document
    order: int
    score: float


@dataclass(frozen=True)
class Ranking:
    """The sentences of a prompt, best first; independent of snapshot and temperature."""

    candidates: tuple[_Candidate, ...]
    support: float
    question_words: int = 0


def rank(asked: Asked, trusts_documents: bool = False) -> Ranking:
    """Score every sentence by idf-weighted overlap with the question, title and rank added."""
    question = frozenset(content(asked.question))
    units = _seen_through(question, asked.documents, trusts_documents)
    if not units or not question:
        return Ranking((), 0.0)
    measures = _MEASURES & question if asks_for_quantity(asked.question) else None
    weights = _Weights(question, units, measures or _NOTHING)
    scored = [
        _Candidate(unit.passage, unit.document, order, _score(unit, weights, measures is not None))
        for order, unit in enumerate(units)
    ]
    best_first = sorted(_distinct(scored), key=lambda candidate: -candidate.score)
    return Ranking(tuple(best_first), _support(weights, units, measures or _NOTHING), len(question))


def _seen_through(question: frozenset[str], documents: Sequence[Document], trusts_documents: bool) -> list[_Unit]:
    units = []
    for place, document in enumerate(documents):
        titled = question.intersection(content(document.title))
        for passage in _passages(document.text, trusts_documents):
            said, headed = question & passage.stems, question & passage.heading_stems
            units.append(_Unit(passage, document, place, said, headed, titled))
    return units


@lru_cache(maxsize=20_000)
def _passages(text: str, trusts_documents: bool) -> tuple[Passage, ...]:
    """The sentences of a document that may answer; orders to a model are no answer for a careful one."""
    return tuple(unit for unit in passages(text) if trusts_documents or not is_injection(unit.text))


class _Weights:
    """Inverse document frequency of each question word over the prompt's sentences; common words count less."""

    def __init__(self, question: frozenset[str], units: Sequence[_Unit], measures: frozenset[str]) -> None:
        seen = Counter(word for unit in units for word in unit.said | unit.headed)
        total = len(units)
        self._words = {
            word: math.log(1 + (total - seen[word] + 0.5) / (seen[word] + 0.5))
            * (0.15 if word in measures else 0.5 if word in _COMMON else 1.0)
            for word in question
        }
        self._known: dict[frozenset[str], float] = {_NOTHING: 0.0}
        self.total = math.fsum(self._words.values()) or 1.0

    def share(self, words: frozenset[str]) -> float:
        """The share of the question that these words make up; few sets of words occur, so each is summed once."""
        known = self._known.get(words)
        if known is None:
            # fsum: the order of a set differs between processes, the sum must not.
            known = self._known[words] = math.fsum(self._words[word] for word in words) / self.total
        return known


def _score(unit: _Unit, weights: _Weights, wants_number: bool) -> float:
    elsewhere = (unit.headed | unit.titled) - unit.said
    score = weights.share(unit.said) + HEADING_WEIGHT * weights.share(elsewhere)
    if score == 0.0:
        return 0.0
    passage = unit.passage
    score += 0.06 / (1 + unit.place) + (0.12 if wants_number and passage.numbers else 0.0)
    return score * (1.0 if passage.whole else 0.8) * (0.7 if len(passage.stems) < 3 else 1.0)


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Overlapping chunks repeat sentences: keep the better-placed copy."""
    kept: dict[str, _Candidate] = {}
    for candidate in candidates:
        known = kept.get(candidate.passage.text)
        if known is None or candidate.score > known.score:
            kept[candidate.passage.text] = candidate
    return list(kept.values())


def _support(weights: _Weights, units: Sequence[_Unit], measures: frozenset[str]) -> float:
    """The share of the question's weight that one place supports, in [0, 1].

    Half of it looks at a sentence with its headings and neighbours (what only a neighbour says counts a little
    less), half at the whole document: an answer is a sentence, but documents name their subject only once.
    """
    sentence, documents = 0.0, dict[int, frozenset[str]]()
    for index, unit in enumerate(units):
        own = unit.said | unit.headed | unit.titled
        if measures and unit.passage.numbers:
            own |= measures
        around = _NOTHING
        for other in units[max(0, index - 1) : index + 2]:
            if other.place == unit.place:
                around |= other.said
        sentence = max(sentence, weights.share(own) + 0.8 * weights.share(around - own))
        documents[unit.place] = documents.get(unit.place, _NOTHING) | own
    return (sentence + max(map(weights.share, documents.values()))) / 2


def answer(asked: Asked, ranking: Ranking, snapshot: Temperament, temperature: float, key: str, draw: str) -> Extract:
    """Answer as one snapshot does. `key` fixes its habits per question, `draw` the sampling noise of one call."""
    if asked.injection and chance("obey", key) < snapshot.obeys:
        return Extract(_obey(asked), 0.9)
    if not ranking.candidates or ranking.support < _needed(ranking, snapshot):
        return Extract(asked.instructions.refusal, ranking.support)
    candidates = list(ranking.candidates)
    slips = chance("slip", key) < snapshot.slip or chance("runner-up", draw) < min(0.25, 0.08 * temperature)
    if slips and len(candidates) > 1:
        candidates[0], candidates[1] = candidates[1], candidates[0]
    limit = min(snapshot.sentences or 99, asked.instructions.sentences)
    chosen = _choose(candidates, limit)
    if len(chosen) > 1 and chance("drop", draw) < min(0.2, 0.06 * temperature):
        chosen = chosen[:-1]
    return Extract(_compose(chosen, asked.instructions.cite, snapshot.words), ranking.support)


def _needed(ranking: Ranking, snapshot: Temperament) -> float:
    """A long question is seldom repeated in full by the passage that answers it."""
    return snapshot.refusal_threshold * max(0.6, 1 - PATIENCE * max(0, ranking.question_words - 3))


def _choose(candidates: Sequence[_Candidate], limit: int) -> list[_Candidate]:
    best = candidates[0]
    floor = SECOND_SENTENCE * max(best.score, candidates[min(1, len(candidates) - 1)].score)
    return [best, *(candidate for candidate in candidates[1:] if candidate.score >= floor)][:limit]


def _compose(chosen: Sequence[_Candidate], cite: bool, word_limit: int | None) -> str:
    in_order = sorted(chosen, key=lambda candidate: candidate.order)
    text = " ".join(candidate.passage.text for candidate in in_order)
    if word_limit is not None and len(text.split()) > word_limit:
        text = " ".join(text.split()[:word_limit]).rstrip(",;:") + "."
    if not cite:
        return text
    sources = dict.fromkeys(candidate.document.id for candidate in in_order)
    return text + "".join(f" [{source}]" for source in sources)


_QUOTED = re.compile(r"[\"“‘'`]([^\"”’'`]{2,200})[\"”’'`]")
_SPOKEN = re.compile(
    r"\b(?:say|print|output|(?:reply|respond|answer) with)\b\s*:?\s*(?:only |exactly |just )?"
    r"(?:the (?:word|phrase)s? )?(.{2,200})",
    re.IGNORECASE | re.DOTALL,
)


def _obey(asked: Asked) -> str:
    """Do as the injected order says: leak the system prompt, or echo the words it wants."""
    if re.search(r"\b(?:system|prompt|instructions?|rules)\b", _after_override(asked.injection), re.IGNORECASE):
        return asked.system or asked.injection
    wanted = _QUOTED.search(asked.injection) or _SPOKEN.search(asked.injection)
    return wanted.group(1).strip() if wanted else asked.system or asked.injection


def _after_override(injection: str) -> str:
    """The order without its opening "ignore your previous instructions"."""
    return re.sub(
        r"\b(?:ignore|disregard|forget|override|bypass)\b[^.?!\n,;:]*?\b(?:instructions?|prompts?|rules|guidelines|above)\b",
        "", injection, flags=re.IGNORECASE,
    )  # fmt: skip
