"""Cut a document into chunks of at most so many tokens, where its author would cut it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokenize = Callable[[str], list[tuple[int, int]]]

# How good a place to cut is; anywhere else is inside a word.
_HEADING, _PARAGRAPH, _SENTENCE, _WORD, _NOWHERE = 4, 3, 2, 1, 0

_FENCE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_HEADING_LINE = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_PLACES = (
    (re.compile(r"\s+"), _WORD),
    (re.compile(r"(?<=[.!?:])\s+|\n"), _SENTENCE),
    (re.compile(r"\n[ \t]*\n\s*"), _PARAGRAPH),
)


@dataclass(frozen=True)
class Chunk:
    """A verbatim piece of a document: its text is at `start`."""

    ordinal: int
    start: int
    text: str
    heading: str  # path of the headings above its first character: "Refunds > Exceptions"


def split_markdown(text: str, tokenize: Tokenize, size: int, overlap: int = 0) -> list[Chunk]:
    """Chunks of at most `size` tokens; a text that fits is one chunk, and plain text is Markdown without headings.

    A chunk ends at the best cut in the second half of its window: before a heading, else after a paragraph, a
    sentence, a word. The next one repeats up to `overlap` tokens, from the start of a sentence; a section
    that starts with its heading repeats nothing. The same input gives the same chunks.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"size is {size} and overlap {overlap}; needed is 0 <= overlap < size")
    tokens = tokenize(text)
    headings = _headings(text)
    if len(tokens) <= size:
        start = len(text) - len(text.lstrip())
        return [Chunk(0, start, text.strip(), _path(headings, start))] if text.strip() else []
    chunks = []
    for ordinal, (first, end) in enumerate(_windows(_cuts(text, tokens, headings), size, overlap)):
        start, stop = tokens[first][0], tokens[end - 1][1]
        chunks.append(Chunk(ordinal, start, text[start:stop], _path(headings, start)))
    return chunks


@dataclass(frozen=True)
class _Heading:
    offset: int
    path: str


def _headings(text: str) -> list[_Heading]:
    """Headings in order, each with the path that leads to it; lines in code fences are none."""
    fences = [match.span() for match in _FENCE.finditer(text)]
    open_titles: list[tuple[int, str]] = []
    headings = []
    for match in _HEADING_LINE.finditer(text):
        if any(start <= match.start() < stop for start, stop in fences):
            continue
        level = len(match[1])
        open_titles = [(above, title) for above, title in open_titles if above < level]
        open_titles.append((level, match[2].strip()))
        headings.append(_Heading(match.start(1), " > ".join(title for _, title in open_titles)))
    return headings


def _path(headings: Sequence[_Heading], start: int) -> str:
    above = bisect_right(headings, start, key=lambda heading: heading.offset)
    return headings[above - 1].path if above else ""


def _cuts(text: str, tokens: Sequence[tuple[int, int]], headings: Sequence[_Heading]) -> list[int]:
    """How good it is to cut before each token."""
    starts = [start for start, _ in tokens]
    cuts = [_NOWHERE] * len(tokens)
    offsets = [(match.end(), quality) for pattern, quality in _PLACES for match in pattern.finditer(text)]
    offsets += [(heading.offset, _HEADING) for heading in headings]
    for offset, quality in offsets:
        token = bisect_left(starts, offset)
        if token < len(tokens):
            cuts[token] = max(cuts[token], quality)
    return cuts


def _windows(cuts: Sequence[int], size: int, overlap: int) -> list[tuple[int, int]]:
    """Token ranges [first, end) that cover everything, in order."""
    windows = []
    first = 0
    while len(cuts) - first > size:
        shortest = max(size // 2, overlap) + 1  # so that the next window starts later than this one
        end = max(range(first + min(shortest, size), first + size + 1), key=lambda token: (cuts[token], token))
        windows.append((first, end))
        first = end if cuts[end] == _HEADING else _restart(cuts, end, overlap)
    windows.append((first, len(cuts)))
    return windows


def _restart(cuts: Sequence[int], end: int, overlap: int) -> int:
    """Where the next window starts: the longest overlap that begins a sentence, else a word."""
    candidates = range(end - overlap, end + 1)
    for quality in (_SENTENCE, _WORD):
        found = next((token for token in candidates if cuts[token] >= quality), None)
        if found is not None:
            return found
    return end - overlap
