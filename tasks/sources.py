"""Read documents: a folder of .md, .txt and .html files, or one JSONL file. Every error names file, line and field."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NoReturn

from tasks.document_formats import PARSERS, Fields, Unreadable, decode, id_of_broken, parse_json_line, shown
from touchstone.errors import BadInput
from touchstone.index import UnreadableDocument

_LONGEST_MB = 10.0
_FUTURE = dt.timedelta(days=1)  # clocks differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as its source has it."""

    id: str
    title: str
    text: str
    updated_at: str  # ISO 8601: as the document declares it, or else the time of its file
    declares_date: bool
    source: str  # its address: the path in its folder, its url, or the name of its .jsonl file
    content_hash: str  # of title and text

    @property
    def record_hash(self) -> str:
        """Changes with anything that is stored of the document, `content_hash` only with its title and text.

        The time of a file is left out: a check-out would change every document.
        """
        declared = self.updated_at if self.declares_date else ""
        return digest_text(self.id, self.content_hash, declared, self.source)


@dataclass(frozen=True)
class SourceSnapshot:
    """A source as it was read at one time: what it has, and what of it nobody can read."""

    documents: tuple[Document, ...]  # in order of id
    unreadable: tuple[UnreadableDocument, ...]  # in order of reading
    read_at: str  # ISO 8601 in UTC, when reading began: what changes later is not in here

    @cached_property
    def hashes(self) -> dict[str, tuple[str, str]]:
        """(content hash, record hash) by document id, as `touchstone.index.compare_source` takes it."""
        return {document.id: (document.content_hash, document.record_hash) for document in self.documents}


Found = tuple[str, Document]  # with the file:line that errors name


def read_source(path: Path, max_document_mb: float = _LONGEST_MB) -> SourceSnapshot:
    """All documents of a folder or a .jsonl file; those that cannot be read are listed beside the others.

    Raises BadInput when there is no source, no document in it, none that can be read, or two with one id.
    """
    reading = _Reading.begin(max_document_mb)
    found: list[Found] = []
    unreadable: list[UnreadableDocument] = []
    for one in _read(path, reading):
        found.append(one) if isinstance(one, tuple) else unreadable.append(one)
    if not found and unreadable:
        first = f"{unreadable[0].where}: {unreadable[0].reason}"
        raise BadInput(f"{path}: none of its documents can be read ({len(unreadable)}); the first: {first}")
    return SourceSnapshot(_in_order(path, found, unreadable), tuple(unreadable), reading.now.isoformat())


def read_documents(path: Path, max_document_mb: float = _LONGEST_MB) -> list[Document]:
    """All documents in order of id. Raises BadInput for the first that cannot be read."""
    found: list[Found] = []
    for one in _read(path, _Reading.begin(max_document_mb)):
        if isinstance(one, UnreadableDocument):
            raise BadInput(f"{one.where}: {one.reason}")
        found.append(one)
    return list(_in_order(path, found))


def digest_records(records: Iterable[tuple[str, str]]) -> str:
    """Digest of (document id, record hash) pairs in any order."""
    return digest_text(*(f"{identity} {record}" for identity, record in sorted(records)))


def digest_text(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class _Reading:
    """What one pass over a source goes by."""

    max_document_mb: float
    longest: int  # bytes of one document
    now: dt.datetime

    @classmethod
    def begin(cls, max_document_mb: float) -> _Reading:
        return cls(max_document_mb, int(max_document_mb * 1e6), dt.datetime.now(dt.UTC))

    @property
    def too_long(self) -> str:
        limit = f"{self.max_document_mb:g} MB (`source.max_document_mb`)"
        return f"longer than {limit}; split it, or raise the limit in the retrieval config"

    def document(self, identity: str, fields: Fields, source: str, file_date: str, name: str = "") -> Document:
        """Raises Unreadable for one without text, or with a date that is none; `name` is its title if it has none."""
        text = fields.text.replace("\r\n", "\n").strip()
        if not text:
            raise Unreadable("field `text` is missing or empty")
        title = fields.title.strip() or name
        declared = self._declared(fields.updated_at)
        return Document(
            id=identity,
            title=title,
            text=text,
            updated_at=declared or file_date,
            declares_date=declared is not None,
            source=source,
            content_hash=digest_text(title, text),
        )

    def _declared(self, value: object) -> str | None:
        """ISO 8601; YAML has already turned an unquoted date into one. A time without a zone is UTC."""
        if value is None or value == "":
            return None
        if isinstance(value, dt.datetime | dt.date):
            value = value.isoformat()
        try:
            moment = dt.datetime.fromisoformat(str(value) if isinstance(value, str | int) else "")
        except ValueError:
            given = repr(value)[:60] if isinstance(value, str) else shown(value)
            raise Unreadable(f"field `updated_at`: {given} is not an ISO date such as 2025-01-31") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
        if moment > self.now + _FUTURE:
            raise Unreadable(f"field `updated_at`: {value} is in the future; fix the date, or this machine's clock")
        return moment.isoformat()

    def file_date(self, status: os.stat_result) -> str:
        """Nobody declared it, so one in the future is no error; it counts as now."""
        seconds = min(status.st_mtime, self.now.timestamp())
        return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def _read(path: Path, reading: _Reading) -> Iterator[Found | UnreadableDocument]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such folder or file; fix `source.path`") from None
    except OSError as error:
        _give_up(path, error)
    return _read_folder(path, reading) if stat.S_ISDIR(mode) else _read_jsonl(path, reading)


def _read_folder(folder: Path, reading: _Reading) -> Iterator[Found | UnreadableDocument]:
    """Hidden files and other suffixes are no documents; folders that are links are not entered: they may lead back."""
    unlisted: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() in PARSERS and not name.startswith("."):
                yield from _read_file(path, path.relative_to(folder), reading)
    for error in unlisted:  # any document may be below it, so no id is known
        where = f"{_printable(error.filename)}:1"
        yield UnreadableDocument(where=where, id=None, reason=f"cannot be listed: {error.strerror}")


def _read_file(path: Path, relative: Path, reading: _Reading) -> Iterator[Found | UnreadableDocument]:
    where, identity = str(path), relative.with_suffix("").as_posix()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return  # a pipe would never end
        if status.st_size > reading.longest:
            raise Unreadable(reading.too_long)
        identity.encode()
        fields = PARSERS[path.suffix.lower()](decode(path.read_bytes()))
        yield f"{where}:1", reading.document(identity, fields, str(relative), reading.file_date(status), relative.stem)
    except Unreadable as error:
        yield UnreadableDocument(where=f"{where}:{error.line}", id=identity, reason=error.reason)
    except OSError as error:
        yield UnreadableDocument(where=f"{where}:1", id=identity, reason=f"cannot be read: {error.strerror}")
    except UnicodeEncodeError:
        reason = "its name is not UTF-8; rename it"
        yield UnreadableDocument(where=f"{_printable(where)}:1", id=_printable(identity), reason=reason)


def _read_jsonl(path: Path, reading: _Reading) -> Iterator[Found | UnreadableDocument]:
    try:
        with path.open("rb") as file:
            file_date = reading.file_date(os.fstat(file.fileno()))
            for number, line, is_whole in _lines(file, reading.longest):
                where = f"{path}:{number}"
                try:
                    yield where, _from_json(line, path.name, file_date, reading)
                except Unreadable as error:
                    identity = error.id or (id_of_broken(line) if is_whole else None)
                    yield UnreadableDocument(where=where, id=identity, reason=error.reason)
    except OSError as error:
        _give_up(path, error)


def _from_json(line: bytes, name: str, file_date: str, reading: _Reading) -> Document:
    if len(line) > reading.longest:
        raise Unreadable(reading.too_long)
    fields = parse_json_line(line)
    try:
        return reading.document(fields.id, fields, fields.url or name, file_date)
    except Unreadable as error:
        raise Unreadable(error.reason, id=fields.id) from None


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes, bool]]:
    """Lines that are not blank: number, bytes (`longest` + 1 of them at most), and whether the line has an end.

    A file that is still being written, or was cut, ends in the middle of a line.
    """
    number = 0
    while line := file.readline(longest + 2):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 20)
        if not line.isspace():
            yield number, line.removesuffix(b"\n"), bool(rest)


def _in_order(
    path: Path, found: Iterable[Found], unreadable: Iterable[UnreadableDocument] = ()
) -> tuple[Document, ...]:
    """Raises BadInput without documents, or when two have one id: nobody could tell which is meant."""
    first: dict[str | None, str] = {}
    documents: list[Document] = []
    for where, document in found:
        _check_new(document.id, where, first)
        first[document.id] = where
        documents.append(document)
    if not documents:
        raise BadInput(f"{path}: no documents (.md, .txt, .html in a folder, or lines in a .jsonl file)")
    for broken in unreadable:
        _check_new(broken.id, broken.where, first)
    return tuple(sorted(documents, key=lambda document: document.id))


def _check_new(identity: str | None, where: str, first: dict[str | None, str]) -> None:
    if identity in first:
        raise BadInput(f"{where}: field `id`: {identity!r} is already used by {first[identity]}")


def _give_up(path: Path, error: OSError) -> NoReturn:
    raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _printable(name: str) -> str:
    """A file's name may be bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode()
