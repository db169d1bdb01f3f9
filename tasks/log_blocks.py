"""JSON lines to Arrow tables, block by block in threads: a broken line is counted and named, never fatal."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")

_BLOCK = 8 << 20
_LONGEST_LINE = 32 << 20  # what is longer is cut, and then broken
_NAMED = 3


@dataclass
class BrokenLines:
    """Lines that could not be read: how many, and where the first ones are."""

    count: int = 0
    unreadable: list[str] = field(default_factory=list)
    _named: list[str] = field(default_factory=list)

    def add(self, path: Path, offset: int) -> None:
        self.count += 1
        if len(self._named) < _NAMED:
            self._named.append(f"{path}:{_line_number(path, offset)}")

    def warnings(self) -> list[str]:
        if not self.count:
            return self.unreadable
        more = f" and {self.count - len(self._named)} more" if self.count > len(self._named) else ""
        what = "a broken line was" if self.count == 1 else f"{self.count} broken lines were"
        return [*self.unreadable, f"{what} skipped: {', '.join(self._named)}{more}"]


@dataclass(frozen=True)
class _Block:
    path: Path
    offset: int  # in the file
    data: memoryview
    is_cut: bool  # ends in the middle of a line, which may be being written


def read_blocks(
    paths: Iterable[Path], schema: pa.Schema, work: Callable[[pa.Table], Result], broken: BrokenLines
) -> Iterator[Result]:
    """What `work` makes of each block's lines, in order; a few blocks of 4 MB are in memory at once.

    Fields outside `schema` are ignored. A torn last line is none: somebody is writing it.
    """
    workers = min(4, os.cpu_count() or 1)

    def run(block: _Block) -> tuple[list[Result], list[int]]:
        tables, offsets = _parse(block, schema)
        return [work(table) for table in tables], offsets

    pending: deque[tuple[Path, Future[tuple[list[Result], list[int]]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="log") as pool:
        for block in _blocks(paths, broken):
            pending.append((block.path, pool.submit(run, block)))
            if len(pending) > workers + 1:
                yield from _finished(*pending.popleft(), broken)
        while pending:
            yield from _finished(*pending.popleft(), broken)


def _finished(path: Path, future: Future[tuple[list[Result], list[int]]], broken: BrokenLines) -> list[Result]:
    results, offsets = future.result()
    for offset in offsets:
        broken.add(path, offset)
    return results


def _blocks(paths: Iterable[Path], broken: BrokenLines) -> Iterator[_Block]:
    for path in paths:
        try:
            yield from _file_blocks(path)
        except OSError as error:
            broken.unreadable.append(f"{path}: cannot be read: {error.strerror}")


def _file_blocks(path: Path) -> Iterator[_Block]:
    """Pieces that end with a line; the rest of a cut line is read again with the next piece."""
    offset = 0
    with path.open("rb") as file:
        while data := file.read(_BLOCK):
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) == _BLOCK:
                data += file.readline(_LONGEST_LINE)
                end = len(data)
            is_last = len(data) < _BLOCK
            stop = len(data) if is_last else end
            yield _Block(path, offset, memoryview(data)[:stop], is_cut=is_last and end < len(data))
            offset += stop
            file.seek(offset)


def _parse(block: _Block, schema: pa.Schema) -> tuple[list[pa.Table], list[int]]:
    """(tables, offsets of broken lines)."""
    table = _table(block.data, schema)
    if table is not None:
        return [table], []
    lines = bytes(block.data).split(b"\n")
    tables, broken = _salvage(lines, block.offset, schema)
    if block.is_cut and broken and broken[-1] == block.offset + len(block.data) - len(lines[-1]):
        broken.pop()
    return tables, broken


def _salvage(lines: list[bytes], offset: int, schema: pa.Schema) -> tuple[list[pa.Table], list[int]]:
    """Halve until the broken lines stand alone."""
    text = b"\n".join(lines)
    table = _table(memoryview(text), schema)
    if table is not None:
        return [table], []
    if len(lines) == 1:
        return [], [offset]
    middle = len(lines) // 2
    tables, broken = _salvage(lines[:middle], offset, schema)
    rest = offset + sum(len(line) + 1 for line in lines[:middle])
    more_tables, more_broken = _salvage(lines[middle:], rest, schema)
    return tables + more_tables, broken + more_broken


def _table(data: memoryview, schema: pa.Schema) -> pa.Table | None:
    """The lines as a table; None when one of them is not what the schema says."""
    import pyarrow as pa
    from pyarrow import json

    start = bytes(data[:64]).lstrip()
    if not start and not bytes(data).strip():
        return schema.empty_table()
    if not start.startswith(b"{"):
        return None  # a block that starts with `null` crashes Arrow (apache/arrow#47409)
    try:
        return json.read_json(
            pa.BufferReader(data),
            read_options=json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None


def _line_number(path: Path, offset: int) -> int:
    """1 is the first; counted only when a line has to be named."""
    count = 1
    with path.open("rb") as file:
        while offset > 0 and (data := file.read(min(offset, _BLOCK))):
            count += data.count(b"\n")
            offset -= len(data)
    return count
