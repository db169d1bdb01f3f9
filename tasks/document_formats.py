"""The formats of documents: Markdown with front matter, HTML, plain text, and JSON lines; from bytes to fields."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml

from tasks.html_text import NeverClosed, read_page

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_OPENED = re.compile(r"\A---[ \t]*\n")
_FIRST_HEADING = re.compile(r"^#[ \t]+(.+)$", re.MULTILINE)
_FIELDS = {"id", "title", "text", "updated_at", "url"}
_IGNORED = {"metadata"}  # BEIR's corpus files carry it
_KNOWN = _FIELDS | _IGNORED | {"_id"}  # BEIR's name of the id
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
_ID_COMES_FIRST = re.compile(rb'\s*\{\s*"_?id"\s*:\s*"([^"\\]+)"\s*,')
_ANY_ID = re.compile(rb'"_?id"\s*:')


@dataclass(eq=False)  # exceptions are hashed
class Unreadable(Exception):
    """A document that is not what its format asks for."""

    reason: str
    line: int = 1
    id: str | None = None  # as far as the document itself tells


@dataclass(frozen=True, slots=True)
class Fields:
    """What a document says of itself; empty where it says nothing. `updated_at` is still unchecked."""

    title: str
    text: str
    updated_at: object = None
    id: str = ""
    url: str = ""


def parse_markdown(raw: str) -> Fields:
    """Front matter gives title and date; without a title it is the first heading of the first level."""
    match = _FRONT_MATTER.match(raw)
    if match is None and _OPENED.match(raw):
        raise Unreadable("front matter is opened by --- and never closed")
    fields = _front_matter(match[1]) if match else {}
    text = raw[match.end() :] if match else raw
    heading = _FIRST_HEADING.search(text)
    title = _string(fields.get("title"), "title") or (heading[1].rstrip(" \t#") if heading else "")
    return Fields(title, text, fields.get("updated_at"))


def parse_plain(raw: str) -> Fields:
    return Fields("", raw)


def parse_html(raw: str) -> Fields:
    try:
        page = read_page(raw)
    except NeverClosed as error:
        raise Unreadable("a tag or comment is opened here and never closed", error.args[0]) from None
    return Fields(page.title, page.text, page.updated_at)


PARSERS: dict[str, Callable[[str], Fields]] = {
    ".md": parse_markdown,
    ".txt": parse_plain,
    ".html": parse_html,
    ".htm": parse_html,
}


def decode(raw: bytes) -> str:
    """UTF-8 with any line ends, as text with \\n."""
    try:
        if (place := raw.find(b"\0")) >= 0:
            raise Unreadable(f"binary, not text (NUL at byte {place}); save it as UTF-8 text", _line_at(raw, place))
        text = raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise Unreadable(reason, _line_at(raw, error.start)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json_line(line: bytes) -> Fields:
    """One line of a .jsonl file."""
    try:
        fields = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 10,000 brackets
        raise Unreadable(f"not JSON that can be read: {error}") from None
    if not isinstance(fields, dict):
        raise Unreadable(f"a document is a JSON object, not {type(fields).__name__}")
    identity = _string(fields.get("_id", fields.get("id")), "id")
    if not identity:
        raise Unreadable("field `id` is missing or empty")
    try:
        if not fields.keys() <= _KNOWN:
            unknown = min(fields.keys() - _KNOWN)
            raise Unreadable(f"unknown field {unknown!r}; known are {', '.join(sorted(_FIELDS))}")
        title, text, url = (_string(fields.get(name), name) for name in ("title", "text", "url"))
    except Unreadable as error:
        raise Unreadable(error.reason, id=identity) from None
    return Fields(title, text, fields.get("updated_at"), identity, url)


def id_of_broken(line: bytes) -> str | None:
    """The id on a line that is not JSON, if it comes first and is the only one: lines that ran together have two."""
    match = _ID_COMES_FIRST.match(line)
    if match is None or len(_ANY_ID.findall(line)) > 1:
        return None
    try:
        return match[1].decode()
    except UnicodeDecodeError:
        return None


def _front_matter(block: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(block) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 1  # the block starts below the first ---
        raise Unreadable(f"front matter is not YAML: {getattr(error, 'problem', error)}", line) from None
    except Exception as error:  # a date such as 2025-02-30, a tag that does not fit its value: any type is raised
        raise Unreadable(f"front matter has a value that cannot be read: {error}", 2) from None
    if not isinstance(fields, dict):
        raise Unreadable(f"front matter must be `field: value` lines, not {type(fields).__name__}", 2)
    return fields


def _string(value: object, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable(f"field `{field}` must be text, not {shown(value)}")
    if (not value.isascii() or "\0" in value) and (wrong := _NO_TEXT.search(value)):
        what = "a NUL character" if wrong[0] == "\0" else "half of a surrogate pair"
        raise Unreadable(f"field `{field}` has {what}, which is no text; write it as UTF-8")
    return value


def _line_at(raw: bytes, place: int) -> int:
    return raw.count(b"\n", 0, place) + 1


def shown(value: object) -> str:
    """A wrong value for an error. Of a list only the type: a few aliases of YAML can stand for gigabytes."""
    kind = type(value).__name__
    return f"{kind} ({repr(value)[:60]})" if isinstance(value, str | int | float | date) else kind
