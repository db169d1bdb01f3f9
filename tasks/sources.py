"""Read documents: a folder of .md, .txt and .html files, or one JSONL file. Every error names file, line and field."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from touchstone.errors import BadInput

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FIRST_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_FIELDS = {"id", "title", "text", "updated_at", "url"}
_IGNORED = {"metadata"}  # BEIR's corpus files carry it


class Document(BaseModel):
    """One document as its source has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str = ""
    text: str
    updated_at: str | None = None
    source: str
    content_hash: str

    @property
    def record_hash(self) -> str:
        """Changes with anything that is stored of the document, `content_hash` only with its title and text."""
        return digest_text(self.id, self.content_hash, self.updated_at or "", self.source)


Found = tuple[str, Document]  # with the file:line that errors name


def read_documents(path: Path) -> list[Document]:
    """All documents of a folder or a .jsonl file, in order of id."""
    if not path.exists():
        raise BadInput(f"{path}: there is no such folder or file; fix `source.path`")
    found = list(_read_folder(path) if path.is_dir() else _read_jsonl(path))
    if not found:
        raise BadInput(f"{path}: no documents (.md, .txt, .html in a folder, or lines in a .jsonl file)")
    _check_ids(found)
    return sorted((document for _, document in found), key=lambda document: document.id)


def corpus_digest(documents: Iterable[Document]) -> str:
    """One digest of all documents: same digest, nothing to index."""
    return digest_records((document.id, document.record_hash) for document in documents)


def digest_records(records: Iterable[tuple[str, str]]) -> str:
    """Digest of (document id, record hash) pairs in any order."""
    return digest_text(*(f"{identity} {record}" for identity, record in sorted(records)))


def _read_folder(folder: Path) -> Iterator[Found]:
    """Hidden files and other suffixes are no documents."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        reader = _READERS.get(path.suffix.lower())
        if reader and not hidden and path.is_file():
            yield reader(path, relative)


def _read_markdown(path: Path, relative: Path) -> Found:
    raw = _read_text(path)
    match = _FRONT_MATTER.match(raw)
    if match is None and raw.startswith("---\n"):
        raise BadInput(f"{path}:1: front matter is opened by --- and never closed")
    fields = _front_matter(path, match[1]) if match else {}
    text = raw[match.end() :] if match else raw
    heading = _FIRST_HEADING.search(text)
    title = _string(fields.get("title"), f"{path}:1", "title") or (heading[1] if heading else relative.stem)
    return _document(f"{path}:1", _id_of(relative), title, text, fields.get("updated_at"), str(relative))


def _read_plain(path: Path, relative: Path) -> Found:
    return _document(f"{path}:1", _id_of(relative), relative.stem, _read_text(path), None, str(relative))


def _read_html(path: Path, relative: Path) -> Found:
    page = _Page()
    page.feed(_read_text(path))
    page.close()
    title = page.title or relative.stem
    return _document(f"{path}:1", _id_of(relative), title, page.text, page.updated_at, str(relative))


_READERS: dict[str, Callable[[Path, Path], Found]] = {
    ".md": _read_markdown,
    ".txt": _read_plain,
    ".html": _read_html,
    ".htm": _read_html,
}


def _front_matter(path: Path, block: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(block) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 1  # the block starts below the first ---
        raise BadInput(f"{path}:{line}: front matter is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(fields, dict):
        raise BadInput(f"{path}:2: front matter must be `field: value` lines, not {type(fields).__name__}")
    return fields


def _read_jsonl(path: Path) -> Iterator[Found]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield _parse_line(f"{path}:{number}", path.name, line)


def _parse_line(where: str, source: str, line: str) -> Found:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, dict):
        raise BadInput(f"{where}: a document is a JSON object, not {type(fields).__name__}")
    if "_id" in fields:  # BEIR's name
        fields["id"] = fields.pop("_id")
    if unknown := sorted(fields.keys() - _FIELDS - _IGNORED):
        raise BadInput(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    identity, title, text, url = (_string(fields.get(name), where, name) for name in ("id", "title", "text", "url"))
    if not identity:
        raise BadInput(f"{where}: field `id` is missing or empty")
    return _document(where, identity, title, text, fields.get("updated_at"), url or source)


def _document(where: str, identity: str, title: str, text: str, updated_at: object, source: str) -> Found:
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise BadInput(f"{where}: field `text` is missing or empty")
    title = title.strip()
    updated = _iso_time(updated_at, where)
    content_hash = digest_text(title, text)
    return where, Document(
        id=identity, title=title, text=text, updated_at=updated, source=source, content_hash=content_hash
    )


def _iso_time(value: object, where: str) -> str | None:
    """ISO 8601; YAML has already turned an unquoted date into one. A time without a zone is UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, dt.datetime | dt.date):
        value = value.isoformat()
    try:
        moment = dt.datetime.fromisoformat(str(value))
    except ValueError:
        raise BadInput(f"{where}: field `updated_at`: {value!r} is not an ISO date such as 2025-01-31") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).isoformat()


def _string(value: object, where: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{where}: field `{field}` must be text, not {type(value).__name__} ({repr(value)[:60]})")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadInput(f"{where}: field `{field}` has half of a surrogate pair, which is no text; write it as UTF-8")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}:{line}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _check_ids(found: Iterable[Found]) -> None:
    first: dict[str, str] = {}
    for where, document in found:
        if document.id in first:
            raise BadInput(f"{where}: field `id`: {document.id!r} is already used by {first[document.id]}")
        first[document.id] = where


def _id_of(relative: Path) -> str:
    return relative.with_suffix("").as_posix()


def digest_text(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class _Page(HTMLParser):
    """The words of a page, headings as Markdown, so that chunks keep their heading path."""

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
        joined = re.sub(r"[ \t\r\f\v]+", " ", "".join(self._pieces))
        return re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r" ?\n ?", "\n", joined)).strip()

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
