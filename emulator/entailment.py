"""Does a text say so? Lexical support of a statement by a context, with numbers, names and denials checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from emulator.language import content, is_negated, is_refusal, names, numbers, stem
from emulator.passages import Passage, passages, plain

ENTAILED = 0.7  # share of the statement's content words that one place of the context must hold
ATTRIBUTED = 0.6  # the same for a reference, which is written in its author's own words
_WINDOW = 3  # sentences read together

_OPPOSITES = """
    enable disable, increase decrease, before after, minimum maximum, include exclude, open close, allow forbid,
    allow prohibit, always never, free paid, first last, more less, above below, accept reject, optional required,
    public private, true false, faster slower, higher lower, early late
"""


def _opposites(pairs: str) -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for pair in pairs.split(","):
        one, other = (stem(word) for word in pair.split())
        table[one] = table.get(one, frozenset()) | {other}
        table[other] = table.get(other, frozenset()) | {one}
    return table


_OPPOSITE = _opposites(_OPPOSITES)


@dataclass(frozen=True)
class Support:
    """How far a context carries a statement, and what speaks against it."""

    share: float
    objection: str = ""  # a number, a name or a denial that the context does not bear out

    def holds(self, threshold: float = ENTAILED) -> bool:
        """Whether the statement follows, for a lexical reader."""
        return not self.objection and self.share >= threshold

    @property
    def reason(self) -> str:
        """One sentence for the judge's report."""
        if self.objection:
            return f"The context does not bear this out: {self.objection}."
        return f"{self.share:.0%} of the statement's content words stand together in the context."


@dataclass(frozen=True)
class _Place:
    """A few neighbouring sentences, read together with what they stand under."""

    stems: frozenset[str]
    numbers: frozenset[str]
    sentences: tuple[Passage, ...]


@lru_cache(maxsize=2_000)
def _places(context: str) -> tuple[_Place, ...]:
    units = passages(context)
    return tuple(
        _Place(
            frozenset().union(*(unit.stems | unit.heading_stems for unit in near)),
            frozenset().union(*(unit.numbers | numbers(unit.heading) for unit in near)),
            near,
        )
        for start in range(max(1, len(units) - _WINDOW + 1))
        if (near := units[start : start + _WINDOW])
    )


def support(statement: str, context: str) -> Support:
    """Support of one statement by a context. A refusal claims nothing, so it always holds."""
    if is_refusal(statement) or _is_quoted(statement, context):
        return Support(1.0)
    said = frozenset(content(statement))
    places = _places(context)
    if not said or not places:
        return Support(0.0)
    stated = numbers(statement)
    best = max(places, key=lambda place: (len(stated & place.numbers), len(said & place.stems)))
    share = len(said & best.stems) / len(said)
    return Support(share, _objection(statement, said, stated, best, places))


def _is_quoted(statement: str, context: str) -> bool:
    """Whether the context says it in the same words; two or three words prove nothing."""
    return len(statement.split()) > 3 and plain(statement).rstrip(".") in _flat(context)


@lru_cache(maxsize=2_000)
def _flat(context: str) -> str:
    return plain(context)


def _objection(
    statement: str, said: frozenset[str], stated: frozenset[str], best: _Place, places: Sequence[_Place]
) -> str:
    if missing := stated - best.numbers:
        return f"it does not state {', '.join(sorted(missing))} there"
    everything = frozenset().union(*(place.stems for place in places))
    if unknown := names(statement) - everything:
        return f"it does not name {', '.join(sorted(unknown))}"
    closest = max(best.sentences, key=lambda sentence: (len(said & sentence.stems), -len(sentence.stems)))
    if len(said & closest.stems) < 0.6 * len(said):
        return ""
    if is_negated(statement) != is_negated(closest.text) and len(closest.stems) <= 3 * len(said):
        return "one of the two denies it"
    for word in said:
        if _OPPOSITE.get(word, frozenset()) & closest.stems and word not in best.stems:
            return f"it says the opposite of {word!r}"
    return ""


def coverage(wanted: str, given: str) -> float:
    """Share of one text's content words (numbers twice) that another text holds anywhere."""
    words, counted = frozenset(content(wanted)), numbers(wanted)
    if not words:
        return 0.0
    held, held_numbers = frozenset(content(given)), numbers(given)
    weight = {word: 2.0 if word in counted else 1.0 for word in words | counted}
    found = sum(value for word, value in weight.items() if word in held or word in held_numbers)
    return found / sum(weight.values())


def agreement(one: str, other: str) -> float:
    """Harmonic mean of the two coverages, in [0, 1]."""
    forth, back = coverage(one, other), coverage(other, one)
    return 2 * forth * back / (forth + back) if forth + back else 0.0
