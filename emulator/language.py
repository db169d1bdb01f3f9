"""English, lightly: words, numbers, stems and stop words, as extractor and judge both read them."""

import re
from functools import lru_cache


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS = _set(
    """a about above after again all also am an and any are as at be because been before being below between both
    but by can could did do does doing done down during each either else ever every few for from further had has
    have having he her here hers him his how however i if in into is it its itself just let me might more most much
    must my myself neither nor of off on once one only or other our ours ourselves out over own per please same
    shall she should so some such than that the their theirs them themselves then there these they this those
    through to too under until up upon us very was we were what when where whether which while who whom whose why
    will with within would yes yet you your yours yourself
    explain describe tell give say know mean need want like"""
)
NEGATIONS = _set("no not never none cannot without neither nor nothing nobody")
# Words that say little about which passage is meant: half the weight of a rarer word.
COMMON_WORDS = _set(
    """use make get work help support set way thing time take go see find change add new good different available
    possible happen provide include offer service customer user company product information question answer
    many long often kind type example general people part start able allow"""
)
_NUMBER_WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "fifteen": "15", "twenty": "20", "thirty": "30", "forty": "40",
    "fifty": "50", "sixty": "60", "ninety": "90", "hundred": "100",
}  # fmt: skip
# A number, a code such as NW-500 (one name, not two words), or a word.
_TOKEN = re.compile(r"\d++(?:[.,:]\d++)*+|[^\W\d_]+-\d[^\W_]*+|[^\W\d_][^\W_]*(?:['’][^\W\d_]+)?")


def words(text: str) -> list[str]:
    """Lower-case tokens in order; numbers such as 14.5 or 10:30 stay whole."""
    return [token.replace("’", "'") for token in _TOKEN.findall(text.lower())]


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """A light stem, enough to join *refund*, *refunds*, *refunded* and *cancelled*, *cancellation*."""
    if word[0].isdigit():
        return _plain_number(word)
    if word in _NUMBER_WORDS:
        return _NUMBER_WORDS[word]
    root = word.split("'", 1)[0]
    for suffix, replacement, shortest in _SUFFIXES:
        if root.endswith(suffix) and len(root) - len(suffix) >= shortest:
            root = root[: -len(suffix)] + replacement
            break
    return _tidy(root)


_SUFFIXES = (
    ("ations", "", 4), ("ation", "", 4), ("ingly", "", 3), ("edly", "", 3), ("ments", "", 3), ("ment", "", 3),
    ("ions", "", 4), ("ion", "", 4), ("ings", "", 3), ("ing", "", 3), ("sses", "ss", 1), ("ies", "y", 2),
    ("ied", "y", 2), ("ches", "ch", 1), ("shes", "sh", 1), ("xes", "x", 1), ("ness", "", 3), ("ed", "", 3),
    ("ly", "", 3), ("ss", "ss", 0), ("us", "us", 0), ("is", "is", 0), ("s", "", 2),
)  # fmt: skip


def _tidy(root: str) -> str:
    """Drop a final e, undouble a final consonant, and write a final y as i."""
    if len(root) > 3 and root.endswith("e"):
        root = root[:-1]
    if len(root) > 3 and root[-1] == root[-2] and root[-1] not in "aeious":
        root = root[:-1]
    return root[:-1] + "i" if len(root) > 2 and root.endswith("y") else root


def _plain_number(token: str) -> str:
    """One spelling per number: 1,200 -> 1200, 20.00 -> 20, 05 -> 5; times and versions are left alone."""
    token = re.sub(r",(?=\d{3}\b)", "", token)
    if token.count(".") == 1 and ":" not in token:
        token = token.rstrip("0").rstrip(".")
    return token.lstrip("0") or "0" if token.isdigit() else token


@lru_cache(maxsize=50_000)
def content(text: str) -> tuple[str, ...]:
    """The stems that carry meaning, in order, duplicates kept."""
    return tuple(stem(word) for word in words(text) if _means_something(word))


def _means_something(word: str) -> bool:
    return word[0].isdigit() or (len(word) > 1 and word not in STOP_WORDS and word not in NEGATIONS)


def numbers(text: str) -> frozenset[str]:
    """The numbers a text states, number words from *two* upwards included."""
    return frozenset(stem(word) for word in words(text) if word[0].isdigit() or word in _NUMBER_WORDS)


def is_negated(text: str) -> bool:
    """Whether a sentence denies something."""
    return any(word in NEGATIONS or word.endswith("n't") for word in words(text))


def names(text: str) -> frozenset[str]:
    """Stems of words capitalised inside a sentence: people, places, products."""
    found = set()
    for match in re.finditer(r"(?<![.!?:;\"“(\[*#|>\-•\n])\s([A-Z][^\W_]+)", text):
        word = match.group(1).lower()
        if _means_something(word):
            found.add(stem(word))
    return frozenset(found)


def tokens(text: str) -> list[str]:
    """Pieces as a tokenizer would cut them; joined they are the text again."""
    return _PIECE.findall(text)


_PIECE = re.compile(r" ?\w{1,8}|\s?[^\w\s]|\s")

_REFUSAL = re.compile(
    r"^\W*(?:not (?:covered|found|available|stated|known|answered)|unknown|no (?:answer|information)|n/a)\b.{0,30}$|"
    r"\bI(?:'m| am)? (?:do not|don[’']t|did not|didn[’']t|cannot|can[’']t|can not|could not|couldn[’']t|am unable|"
    r"unable|am not able|not able|not sure)\b[^.]{0,40}?"
    r"\b(?:know|answer|find|have|help|say|tell|provide|share|disclose|comply|assist|do that|sure)\b"
    r"|\bI(?:'m|’m| am) (?:not sure|sorry|unable|not able)\b"
    r"|\b(?:cannot|can[’']t|can not|could not|unable to) (?:be )?(?:answer|help with)"
    r"|\bno (?:relevant |such )?(?:information|answer|details?)\b[^.]{0,40}\b(?:context|document|source|passage|"
    r"found|available)"
    r"|\b(?:not|n[’']t) (?:\w+ )?(?:covered|described|mentioned|included|documented|found|stated|provided|specified|"
    r"contained|contain|mention|cover|answered|available|say|part of|in)\b[^.]{0,25}"
    r"\b(?:context|documents?|documentation|docs|help cent|knowledge base|sources?|materials?|passages?|articles?)",
    re.IGNORECASE,
)


def is_refusal(answer: str) -> bool:
    """Whether an answer says that it does not answer; only its short opening counts."""
    opening = answer.strip()[:300]
    return len(opening.split()) <= 60 and _REFUSAL.search(opening) is not None
