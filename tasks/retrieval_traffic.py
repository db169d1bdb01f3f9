"""Read the retrieval log: what production asked in a window of time, and how often it got which document."""

from __future__ import annotations

import datetime as dt
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.log_blocks import BrokenLines, read_blocks
from touchstone.freshness_traffic import Traffic, TrafficCounter

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")
Ints = NDArray[np.int64]

NO_SEGMENT = "(none)"
_DAYS = "????-??-??.jsonl"
_FEW = 50_000  # documents


def read_traffic(
    folder: Path,
    config_name: str,
    start: dt.datetime,
    end: dt.datetime,
    document_ids: Sequence[str],
    marks: NDArray[np.bool_],
) -> Traffic:
    """Count the production retrievals of a config in [start, end], in memory that does not grow with them.

    `marks` is (marks, documents), in the order of `document_ids`. A line from after `end`, which is now, is a clock
    that is wrong: it counts as now, and there is a warning. A million lines of 1 kB take about 3 s on two cores.
    """
    documents = _Documents(document_ids)
    window = _Window(config_name, start, None)
    counter, broken, ahead = TrafficCounter(marks), BrokenLines(), 0

    def work(table: pa.Table) -> _Lines:
        return _lines(window.of(table), documents, end)

    for lines in _read(folder, window, _schema(chunks=True), work, broken):
        counter.add(lines.segments, lines.segment, lines.query_hash, lines.line, lines.document)
        ahead += lines.ahead
    warnings = broken.warnings()
    if ahead:
        warnings.append(f"{ahead} retrievals are logged later than now ({_short(end)}), and count as now: check clocks")
    return counter.traffic(warnings)


def read_queries(
    folder: Path, config_name: str, start: dt.datetime, end: dt.datetime, limit: int, seed: int = 0
) -> list[str]:
    """Queries of the config's production retrievals in [start, end), in order of the log; a query asked twice is twice.

    When there are more than `limit`, a uniform sample of as many: the same one for the same log and seed.
    """
    random = np.random.default_rng(seed)
    window = _Window(config_name, start, end)
    broken = BrokenLines()
    kept: list[tuple[float, bytes]] = []

    def work(table: pa.Table) -> list[bytes]:
        return [query for query in _bytes(window.of(table)["query"]) if query is not None]

    for queries in _read(folder, window, _schema(chunks=False), work, broken):
        kept += zip(random.random(len(queries)).tolist(), queries, strict=True)
        if len(kept) > 2 * limit + 10_000:
            kept = _lowest(kept, limit)
    for warning in broken.warnings():
        logging.getLogger("touchstone").warning("%s", warning)
    return [query.decode(errors="replace") for _, query in _lowest(kept, limit)]


def _lowest(drawn: Sequence[tuple[float, bytes]], limit: int) -> list[tuple[float, bytes]]:
    """The `limit` lowest draws, in their order: each set of as many lines is as likely."""
    if len(drawn) <= limit:
        return list(drawn)
    lowest = np.argpartition(np.array([draw for draw, _ in drawn]), limit)[:limit] if limit else np.zeros(0, int)
    return [drawn[index] for index in np.sort(lowest)]


def query_hash(query: bytes) -> int:
    """32 bits, the same in every process."""
    return zlib.crc32(query)


@dataclass(frozen=True)
class _Window:
    """Which lines count: production (no run key), of one config, in a time."""

    config_name: str
    start: dt.datetime
    end: dt.datetime | None

    def files(self, folder: Path) -> list[Path]:
        """A file holds the retrievals of the UTC day it is named for."""
        first = f"{self.start.astimezone(dt.UTC):%Y-%m-%d}"
        last = f"{self.end.astimezone(dt.UTC):%Y-%m-%d}" if self.end else "9999-12-31"
        return [path for path in sorted(folder.glob(_DAYS)) if first <= path.stem <= last]

    def of(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa
        from pyarrow import compute

        pc: Any = compute  # its functions are made at import, which pyright does not see
        time = table["time"]
        wanted = pc.and_(pc.equal(table["config"], self.config_name), pc.is_null(table["run_key"]))
        wanted = pc.and_(wanted, pc.greater_equal(time, pa.scalar(self.start, time.type)))
        if self.end is not None:
            wanted = pc.and_(wanted, pc.less(time, pa.scalar(self.end, time.type)))
        return table.filter(wanted)  # null (no time, no config) is not wanted


def _read(
    folder: Path, window: _Window, schema: pa.Schema, work: Callable[[pa.Table], Result], broken: BrokenLines
) -> Iterator[Result]:
    return read_blocks(window.files(folder), schema, work, broken)


def _schema(*, chunks: bool) -> pa.Schema:
    import pyarrow as pa

    fields = [("time", pa.timestamp("ns", "UTC")), *((name, pa.string()) for name in ("config", "run_key", "query"))]
    if chunks:
        fields += [("segment", pa.string()), ("chunks", pa.list_(pa.struct([("document_id", pa.string())])))]
    return pa.schema(fields)


@dataclass(frozen=True)
class _Lines:
    """One block, as `TrafficCounter.add` takes it."""

    segments: list[str]
    segment: Ints
    query_hash: Ints
    line: Ints
    document: Ints
    ahead: int


def _lines(table: pa.Table, documents: _Documents, now: dt.datetime) -> _Lines:
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute
    names, segment = _segments(table["segment"])
    queries = [query or b"" for query in _bytes(table["query"])]
    chunks = table["chunks"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(chunks), 0).to_numpy(zero_copy_only=False)
    later = pc.sum(pc.greater(table["time"], pa.scalar(now, table["time"].type))).as_py()
    return _Lines(
        segments=names,
        segment=segment,
        query_hash=np.fromiter(map(query_hash, queries), np.int64, len(queries)),
        line=np.repeat(np.arange(len(table)), lengths),
        document=documents.positions(pc.struct_field(chunks.flatten(), [0])),
        ahead=later or 0,
    )


def _segments(column: Any) -> tuple[list[str], Ints]:
    """(names, which of them each line has)."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    names = [(name or NO_SEGMENT.encode()).decode(errors="replace") for name in _bytes(encoded.dictionary)]
    return names, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


class _Documents:
    """Looks ids up. Arrow is three times as fast as Python, but makes its table anew for each block."""

    def __init__(self, ids: Sequence[str]) -> None:
        import pyarrow as pa

        self._ids = pa.array(ids, pa.string()) if len(ids) <= _FEW else None
        self._index = {} if self._ids is not None else {id.encode(): index for index, id in enumerate(ids)}

    def positions(self, column: Any) -> Ints:
        """Index of each id; -1: not known."""
        from pyarrow import compute

        pc: Any = compute
        if self._ids is not None:
            return pc.fill_null(pc.index_in(column, value_set=self._ids), -1).to_numpy().astype(np.int64)
        encoded = column.dictionary_encode(null_encoding="encode")
        distinct = [self._index.get(id or b"", -1) for id in _bytes(encoded.dictionary)]
        return np.array(distinct, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def _bytes(texts: Any) -> list[bytes | None]:
    """Not as text: a log may hold bytes that are no UTF-8, which nothing before this has checked."""
    import pyarrow as pa

    return texts.cast(pa.binary()).to_pylist()


def _short(when: dt.datetime) -> str:
    return when.isoformat(timespec="seconds")
