"""Labels as files: labels.jsonl of a golden set, and what people fill in, as CSV or JSONL."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.loading import GoldenSet, read_jsonl
from touchstone.errors import BadInput
from touchstone.labels import Label, encode
from touchstone.settings import Settings

COLUMNS: tuple[str, ...] = (
    "id",
    "source",
    "metric",
    "asks",
    "allowed",
    "question",
    "answer",
    "contexts",
    "value",
    "by",
    "note",
    "weight",
)
_NEEDED = {"id", "metric", "value"}
_BETWEEN_CONTEXTS = "\n-----\n"
_LARGEST_CELL = 10_000_000
_FORMULA = re.compile(r"\A['=+\-@\t\r]")  # a spreadsheet would run it, and live traffic is written by strangers


class Row(BaseModel):
    """One line of a file that people fill in. Columns that only tell people something are not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    source: Literal["trace", "case"] = "trace"
    metric: str
    asks: str = ""
    allowed: str = ""
    question: str = ""
    answer: str = ""
    contexts: tuple[str, ...] = ()
    value: str | bool | int | float | None = None
    by: str = ""
    at: datetime | None = None
    note: str = ""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    judge_score: float | None = Field(default=None, ge=0, le=1)
    judge: str = ""


def labels_path(golden: GoldenSet) -> Path:
    return golden.path / "labels.jsonl"


def read_labels(golden: GoldenSet) -> list[Label]:
    """What is in labels.jsonl; nothing when there is none. Errors name file, line and field."""
    path = labels_path(golden)
    return [label for _, label in read_jsonl(path, Label)] if path.exists() else []


def write_labels(golden: GoldenSet, labels: Sequence[Label]) -> None:
    """Replace labels.jsonl: a reader sees the old file or the new one, whatever happens meanwhile."""
    path = labels_path(golden)
    fresh = path.with_name(f".labels.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(encode(labels))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def one_import_at_a_time(settings: Settings, golden: GoldenSet) -> Iterator[None]:
    """Two that read, merged and wrote at once would lose the labels of one."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / f"labels-{golden.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A file for people, by its suffix. Never over another one: it may be half filled in."""
    if path.suffix not in {".csv", ".jsonl"}:
        raise BadInput(f"--out {path}: write .csv or .jsonl")
    text = _csv_text(rows) if path.suffix == ".csv" else "".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in rows)
    try:
        with path.open("x", encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
            file.write(text)  # with a mark for UTF-8, which spreadsheets do not expect
    except FileExistsError:
        raise BadInput(f"--out {path}: is there already, and may be filled in; choose another name") from None
    except OSError as error:
        raise BadInput(f"--out {path}: {error.strerror}") from None


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """(line, row) of every row, filled in or not. Errors name file, line and field."""
    if path.suffix == ".jsonl":
        return list(read_jsonl(path, Row))
    if path.suffix == ".csv":
        return list(_csv_rows(path))
    raise BadInput(f"{path}: neither .csv nor .jsonl")


def _csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        cells = {**row, "contexts": _BETWEEN_CONTEXTS.join(row.get("contexts", ()))}
        writer.writerow({name: _inert(cell) if isinstance(cell, str) else cell for name, cell in cells.items()})
    return target.getvalue()


def _inert(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; save it as CSV UTF-8") from None
    csv.field_size_limit(_LARGEST_CELL)
    heading = text.partition("\n")[0]
    delimiter = max(",;\t", key=heading.count)  # spreadsheets write what their country is used to
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if names is None:
                names = _header(path, cells)
            elif any(cells):
                yield line, _row(path, line, names, cells)
            line = reader.line_num + 1
        if names is None:
            _header(path, [])
    except csv.Error as error:
        raise BadInput(f"{path}:{line}: not CSV: {error}") from None


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if missing := sorted(_NEEDED - set(names)):
        raise BadInput(f"{path}:1: column {missing[0]} is missing; the first line names the columns")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}:1: column {doubled[0]!r} is there twice")
    return names


def _row(path: Path, line: int, names: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) > len(names):
        raise BadInput(
            f"{path}:{line}: {len(cells)} cells, but {len(names)} columns; quote cells that hold a separator"
        )
    found: dict[str, Any] = {name: _as_written(cell) for name, cell in zip(names, cells, strict=False) if cell.strip()}
    if "contexts" in found:
        found["contexts"] = found["contexts"].replace("\r\n", "\n").split(_BETWEEN_CONTEXTS)
    try:
        return Row.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        said = {"extra_forbidden": "unknown column; remove it", "missing": "is empty"}.get(first["type"], first["msg"])
        raise BadInput(f"{path}:{line}: field {field}: {said}") from None


def _as_written(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell
