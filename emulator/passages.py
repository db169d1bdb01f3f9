"""Markdown taken apart: sentences, list items and table rows, each with the heading it stands under."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from emulator.language import content, numbers


@dataclass(frozen=True)
class Passage:
    """One unit of text that can stand as an answer, and what it is said about."""

    text: str
    heading: str
    whole: bool = True  # False for a fragment that a chunk border cut off

    @cached_property
    def stems(self) -> frozenset[str]:
        """Content stems of the unit itself."""
        return frozenset(content(self.text))

    @cached_property
    def heading_stems(self) -> frozenset[str]:
        """Content stems of the headings, lead-in or question it stands under."""
        return frozenset(content(self.heading))

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Numbers that the unit states."""
        return numbers(self.text)


_ABBREVIATIONS = re.compile(
    r"\b(?:e\.g|i\.e|etc|vs|approx|incl|excl|max|min|no|nos|fig|sec|dr|mr|mrs|ms|prof|st|inc|ltd|co|corp|dept|est|"
    r"a\.m|p\.m|u\.s|u\.k|[A-Z])\.$",
    re.IGNORECASE,
)
_END = re.compile(r"[.!?]+[\"”’)\]]*(?=\s+[\"“(\[]?[^\Wa-z_])|(?<=[。！？])")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*$")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?(.*)$")
_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*$")
_LINK = re.compile(r"!?\[([^\]]*)\]\((?:[^()\s]|\([^)]*\))*(?:\s+\"[^\"]*\")?\)")
_CITATION = re.compile(r"\s*\[[^\[\]\n]{1,80}\](?!\()")
_EMPHASIS = re.compile(r"(\*\*|__|\*|`+)(?=\S)(.+?)(?<=\S)\1")
_FRONT_MATTER = re.compile(r"\A\s*---\n(?:[\w-]+:.*\n)+---\n")
_QUOTE = re.compile(r"^\s*(?:>\s?)+")


def without_citations(answer: str) -> str:
    """An answer without its marks such as [billing/refunds]: where it is from is no statement."""
    return _CITATION.sub("", answer)


def plain(markdown: str) -> str:
    """One line of Markdown as it reads: links by their text, no emphasis marks."""
    text = _LINK.sub(r"\1", markdown)
    for _ in range(2):
        text = _EMPHASIS.sub(r"\2", text)
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """Sentences of running prose; 14.5, v1.2 and "e.g. this" are not ends."""
    found, start = [], 0
    for match in _END.finditer(text):
        candidate = text[start : match.end()]
        if _ABBREVIATIONS.search(candidate):
            continue
        found.append(candidate.strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


class _Reader:
    """Walks Markdown line by line and gathers passages under their headings."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.headings: dict[int, str] = {}
        self.lead_in = ""
        self.prose: list[str] = []
        self.in_item = False
        self.header: list[str] = []

    def read(self, markdown: str) -> list[Passage]:
        """All passages of a text, in order."""
        lines = markdown.splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            self._line(_QUOTE.sub("", line), following)
        self._end_prose()
        return self.passages

    def _line(self, line: str, following: str) -> None:
        heading, item = _HEADING.match(line), _ITEM.match(line)
        if not line.strip() or line.lstrip().startswith("```"):
            self._end_prose()
        elif heading:
            self._end_prose()
            self._open_section(line.count("#", 0, line.find(" ", line.find("#"))), plain(heading.group(1)))
        elif line.lstrip().startswith("|"):
            self._end_prose()
            self._table_row(line, following)
        elif item:
            self._end_prose()
            self.in_item = True
            self.prose.append(item.group(1))
        else:
            self.header = []
            self.prose.append(line)

    def _open_section(self, level: int, title: str) -> None:
        self.headings = {depth: text for depth, text in self.headings.items() if depth < level}
        self.headings[level] = title
        self.lead_in, self.header = "", []

    def _table_row(self, line: str, following: str) -> None:
        if _RULE.match(line):
            return
        cells = [plain(cell) for cell in line.strip().strip("|").split("|")]
        if _RULE.match(following):
            self.header = cells
        elif self.header:
            named = (f"{name}: {cell}" if name else cell for name, cell in zip(self.header, cells, strict=False))
            self._add("; ".join(named) + ".")
        else:
            self._add(", ".join(cell for cell in cells if cell) + ".")

    def _end_prose(self) -> None:
        text, was_item = plain(" ".join(self.prose)), self.in_item
        self.prose, self.in_item = [], False
        lead_in = self.lead_in
        for sentence in sentences(text):
            # "You can return:" and "How long does it take?" say what comes next; they answer nothing themselves.
            if sentence.endswith((":", "?")):
                self.lead_in = sentence
            else:
                self._add(sentence)
        if text and not was_item and self.lead_in == lead_in and lead_in.endswith(":"):
            self.lead_in = ""

    def _add(self, text: str) -> None:
        if not any(character.isalnum() for character in text):
            return
        heading = " — ".join(filter(None, [*self.headings.values(), self.lead_in]))
        whole = not text[0].islower() or bool(self.passages)
        closed = text if text[-1] in '.!?…:;"”)' else text + "."
        self.passages.append(Passage(closed, heading, whole))


@lru_cache(maxsize=20_000)
def passages(markdown: str) -> tuple[Passage, ...]:
    """The units of a Markdown text; kept, because the same chunks come back in many prompts."""
    return tuple(_Reader().read(_FRONT_MATTER.sub("", markdown)))
