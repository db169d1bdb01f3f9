"""A web page as text: its words, with headings as Markdown, so that chunks keep their heading path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

_LONGEST_REPAIR = 10**8  # characters x tags: a few seconds


class NeverClosed(Exception):
    """The page has a tag, comment or section without an end; the argument is its line."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says."""

    title: str
    text: str
    updated_at: str | None  # of its meta tag `updated_at` or `article:modified_time`


def read_page(html: str) -> Page:
    """Words of a page. Raises NeverClosed for what only a repair in quadratic time could read."""
    parser = _Parser()
    parser.feed(html)
    unfinished = parser.rawdata  # html.parser looks through all of it again for every tag in it
    if len(unfinished) * unfinished.count("<") > _LONGEST_REPAIR:
        raise NeverClosed(parser.getpos()[0])
    parser.close()
    return Page(parser.title, parser.text, parser.updated_at)


class _Parser(HTMLParser):
    _SILENT = frozenset({"script", "style", "noscript", "template", "svg"})
    _BLOCKS = frozenset(
        {"p", "div", "section", "article", "header", "footer", "main", "nav", "aside", "blockquote", "pre", "br"}
        | {"ul", "ol", "li", "dl", "dt", "dd", "table", "tr"}
    )
    _LEVELS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.updated_at: str | None = None
        self._pieces: list[str] = []
        self._silent = 0
        self._verbatim = 0
        self._in_title = False

    @property
    def text(self) -> str:
        """Single spaces, and at most one empty line between two lines."""
        lines = (" ".join(line.split()) for line in "".join(self._pieces).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self._SILENT
        self._verbatim += tag == "pre"
        self._in_title = tag == "title" or (self._in_title and tag != "body")
        named = dict(attrs)
        if tag == "meta" and (named.get("name") or named.get("property")) in ("updated_at", "article:modified_time"):
            self.updated_at = named.get("content")
        if tag in self._LEVELS:
            self._pieces.append(f"\n\n{'#' * int(tag[1])} ")
        elif tag in self._BLOCKS:
            self._pieces.append("\n\n" if tag == "p" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in self._SILENT and self._silent > 0
        self._verbatim -= tag == "pre" and self._verbatim > 0
        self._in_title = self._in_title and tag != "title"
        if tag in self._LEVELS or tag in self._BLOCKS:
            self._pieces.append("\n\n" if tag != "li" else "\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data.strip()
        elif not self._silent:
            self._pieces.append(data if self._verbatim else re.sub(r"\s+", " ", data))
