"""The retrieval log, read as it really is: other configs, evals, old days, torn and broken lines, wrong clocks."""

from __future__ import annotations

import datetime as dt
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import log_blocks, retrieval_traffic
from tasks.retrieval_log import log_retrieval
from tasks.retrieval_traffic import read_queries, read_traffic
from touchstone.freshness_traffic import Traffic
from touchstone.results import Retrieval, RetrievedChunk

NOW = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
WEEK = dt.timedelta(days=7)
IDS = ["refunds", "shipping", "hours"]
MARKS = np.array([[True, False, False]])


def line(
    query: Any = "When?", documents: list[str] | None = None, at: dt.datetime = NOW - dt.timedelta(hours=1), **f: Any
) -> str:
    chunks = [{"document_id": id, "chunk_id": f"{id}#0", "rank": 1, "score": 0.5} for id in documents or ["refunds"]]
    record = {"time": at.isoformat(timespec="milliseconds"), "run_key": None, "config": "support", "segment": None}
    return json.dumps(record | {"query": query, "chunks": chunks, "latency_ms": 1.5} | f, ensure_ascii=False)


def write(folder: Path, *lines: str, day: str = "2026-11-20", end: str = "\n") -> Path:
    path = folder / f"{day}.jsonl"
    path.write_bytes(("\n".join(lines) + end).encode(errors="surrogateescape"))
    return path


def traffic(folder: Path) -> Traffic:
    return read_traffic(folder, "support", NOW - WEEK, NOW, IDS, MARKS)


def queries(folder: Path, limit: int = 1000, seed: int = 0) -> list[str]:
    return read_queries(folder, "support", NOW - WEEK, NOW, limit, seed)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few kB are cut into many blocks, in the middle of lines."""
    monkeypatch.setattr(log_blocks, "_BLOCK", 700)
    monkeypatch.setattr(log_blocks, "_LONGEST_LINE", 2000)


def test_what_the_log_writes_is_what_is_read(tmp_path: Path) -> None:
    def chunk(document_id: str, rank: int) -> RetrievedChunk:
        return RetrievedChunk(
            chunk_id=f"{document_id}#{rank}", document_id=document_id, text="t", rank=rank, score=1 / rank
        )

    found = Retrieval(
        query='Wann "öffnet" ihr?\n🙂',
        chunks=(chunk("refunds", 1), chunk("hours", 2), chunk("refunds", 3)),
        latency_ms=1.5,
        embedding_model="hashing",
        index_version="t@3",
        search="hybrid",
    )
    for segment, run_key in (("billing", None), ("shipping", None), ("billing", "an-eval")):
        log_retrieval(tmp_path, found, config="support", segment=segment, run_key=run_key)
    log_retrieval(tmp_path, found, config="other")
    now = dt.datetime.now(dt.UTC)
    seen = read_traffic(tmp_path, "support", now - WEEK, now + dt.timedelta(minutes=1), IDS, MARKS)
    assert (seen.overall.retrievals, seen.queries, seen.warnings) == (2, 1, ())
    assert seen.overall.documents.tolist() == [4, 0, 2]
    assert set(seen.segments) == {"billing", "shipping"}
    share = seen.overall.share(0)
    assert share is not None
    assert share.value == 4 / 6
    assert read_queries(tmp_path, "support", now - WEEK, now + WEEK, 10) == [found.query, found.query]


def test_only_production_of_this_config_and_window_counts(tmp_path: Path) -> None:
    start = NOW - WEEK
    ahead, tick = dt.timedelta(hours=5), dt.timedelta(milliseconds=1)
    write(tmp_path, line("old"), day="2026-11-12")
    write(tmp_path, line("before", at=start - tick), line("first", at=start), day="2026-11-13")
    write(
        tmp_path,
        line("counts"),
        line("eval", run_key="r"),
        line("other", config="support-fast"),
        line("older format", config=None),
        line("elsewhere", at=NOW.astimezone(dt.timezone(ahead)) - tick),
    )
    write(tmp_path, line("notes are no log"), day="notes")
    assert queries(tmp_path) == ["first", "counts", "elsewhere"]
    assert traffic(tmp_path).overall.retrievals == 3


@pytest.mark.parametrize(
    "written", ["2026-11-20T09:00:00Z", "2026-11-20 09:00:00.5+00:00", "2026-11-20T11:00:00.123456789+02:00"]
)
def test_times_are_read_as_other_writers_write_them(tmp_path: Path, written: str) -> None:
    write(tmp_path, line(time=written))
    assert (traffic(tmp_path).overall.retrievals, traffic(tmp_path).warnings) == (1, ())


def test_no_log_is_no_traffic(tmp_path: Path) -> None:
    assert queries(tmp_path / "missing") == []
    write(tmp_path, end="")
    nothing = traffic(tmp_path)
    assert (nothing.overall.retrievals, nothing.queries, nothing.overall.share(0)) == (0, 0, None)
    assert nothing.warnings == ()


def test_documents_that_are_not_live_any_more_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, line(documents=["refunds", "gone", "gone"]), line("b", documents=["gone"]))
    seen = traffic(tmp_path)
    assert (seen.left_out, seen.overall.chunks, seen.overall.retrievals) == (3, 1, 2)


def test_a_retrieval_without_chunks_or_query_is_counted_as_that(tmp_path: Path) -> None:
    write(tmp_path, line(chunks=[]), line("b", chunks=None), line(query=None), line("c", chunks=[{}, None]))
    seen = traffic(tmp_path)
    assert (seen.overall.retrievals, seen.overall.chunks, seen.queries) == (4, 1, 4)
    assert queries(tmp_path) == ["When?", "b", "c"]


def test_a_clock_in_the_future_counts_as_now_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, line("fine"), line("ahead", at=NOW + dt.timedelta(minutes=3)))
    write(tmp_path, line("far ahead", at=NOW + dt.timedelta(days=400)), day="2027-12-25")
    seen = traffic(tmp_path)
    assert seen.overall.retrievals == 3
    assert [warning.split(":")[0][:30] for warning in seen.warnings] == ["2 retrievals are logged later "]
    assert queries(tmp_path) == ["fine"]


def test_a_torn_last_line_is_being_written(tmp_path: Path, small_blocks: None) -> None:
    for keep in range(0, len(line()), 7):
        write(tmp_path, *(line(f"q{number}") for number in range(9)), line()[:keep], end="")
        seen = traffic(tmp_path)
        assert (seen.overall.retrievals, seen.warnings) == (9, ()), keep
    write(tmp_path, line("a"), line("whole but for its newline"), end="")
    assert traffic(tmp_path).overall.retrievals == 2


BROKEN = {
    "torn, then written on": line()[:80] + line(),
    "not JSON": "garbage",
    "a number": "3",
    "a list": "[1]",
    "null": "null",
    "zero bytes after a power cut": "\0" * 50,
    "time is no time": line(time="yesterday"),
    "time is a number": line(time=1764000000),
    "chunks is an object": line(chunks={}),
    "a document id is a number": line(chunks=[{"document_id": 3}]),
    "the query is a list": line(query=["a"]),
    "half a surrogate pair": line().replace("When?", "\\ud800"),
    "too deep": '{"x":' + "[" * 1000,
    "twice the same field": line()[:-1] + ',"query":"again"}',
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("position", [0, 3, 9])
def test_a_broken_line_is_skipped_and_named_with_its_file_and_line(tmp_path: Path, name: str, position: int) -> None:
    lines = [line(f"q{number}") for number in range(9)]
    lines.insert(position, BROKEN[name])
    path = write(tmp_path, *lines)
    seen = traffic(tmp_path)
    assert seen.overall.retrievals == 9
    if name != "null" or position == 0:  # Arrow takes `null` for an empty record where it does not crash on it
        assert seen.warnings == (f"a broken line was skipped: {path}:{position + 1}",)


def test_broken_lines_in_many_blocks_are_counted_and_the_first_ones_named(tmp_path: Path, small_blocks: None) -> None:
    lines = [line(f"q{number}") if number % 10 else "garbage" for number in range(300)]
    path = write(tmp_path, *lines)
    seen = traffic(tmp_path)
    assert seen.overall.retrievals == 270
    assert seen.warnings == (f"30 broken lines were skipped: {path}:1, {path}:11, {path}:21 and 27 more",)


def test_a_file_of_nothing_but_garbage_is_no_reason_to_stop(tmp_path: Path, small_blocks: None) -> None:
    write(tmp_path, "x" * 10_000, *["y"] * 50, day="2026-11-18")
    write(tmp_path, line("fine"))
    seen = traffic(tmp_path)
    assert seen.overall.retrievals == 1
    assert "broken lines were skipped" in seen.warnings[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "2026-11-19.jsonl").mkdir()
    write(tmp_path, line("fine"))
    seen = traffic(tmp_path)
    assert seen.overall.retrievals == 1
    assert "2026-11-19.jsonl: cannot be read: Is a directory" in seen.warnings[0]


def test_bytes_that_are_no_text_are_still_counted(tmp_path: Path) -> None:
    write(tmp_path, line("caf\udce9", documents=["refunds", "\udcff"]), line(segment="\udcff"))
    seen = traffic(tmp_path)
    assert (seen.overall.retrievals, seen.overall.chunks, seen.left_out) == (2, 2, 1)
    assert queries(tmp_path) == ["caf\N{REPLACEMENT CHARACTER}", "When?"]


def test_blank_lines_and_line_ends_of_other_systems_are_fine(tmp_path: Path) -> None:
    write(tmp_path, "", line("a") + "\r", "", "  ", line("b"), "", "")
    assert queries(tmp_path) == ["a", "b"]
    assert traffic(tmp_path).warnings == ()


def test_blocks_and_many_documents_count_the_same_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    for day in range(14, 20):
        lines = [
            line(
                f"question {draw.randrange(40)} " + "long " * draw.randrange(200),
                documents=draw.choices([*IDS, "gone"], k=draw.randrange(1, 6)),
                at=dt.datetime(2026, 11, day, draw.randrange(24), tzinfo=dt.UTC),
                segment=draw.choice(["a", "b", None]),
            )
            for _ in range(120)
        ]
        write(tmp_path, *lines, day=f"2026-11-{day}")
    whole, whole_queries = traffic(tmp_path), queries(tmp_path, limit=50)
    monkeypatch.setattr(log_blocks, "_BLOCK", 3000)
    monkeypatch.setattr(retrieval_traffic, "_FEW", 2)  # as if these were many documents
    parts = traffic(tmp_path)
    assert parts.overall.clusters.tolist() == whole.overall.clusters.tolist()
    assert parts.overall.documents.tolist() == whole.overall.documents.tolist()
    assert {k: v.retrievals for k, v in parts.segments.items()} == {k: v.retrievals for k, v in whole.segments.items()}
    assert (parts.queries, parts.left_out) == (whole.queries, whole.left_out)
    assert set(whole.segments) == {"a", "b", "(none)"}
    assert queries(tmp_path, limit=50) == whole_queries


def test_a_sample_of_queries_is_uniform_in_order_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    asked = [f"q{number:04}" for number in range(2000)]
    write(tmp_path, *(line(query) for query in asked))
    sample = queries(tmp_path, limit=500)
    assert len(sample) == len(set(sample)) == 500
    assert sample == sorted(sample) == queries(tmp_path, limit=500)
    assert sample != queries(tmp_path, limit=500, seed=1)
    assert 200 < sum(query < "q1000" for query in sample) < 300
    assert queries(tmp_path, limit=2000) == asked
    assert queries(tmp_path, limit=0) == []


def test_a_sample_of_many_is_as_the_sample_of_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are thinned out on the way; that must not change what is drawn."""
    write(tmp_path, *(line(f"q{number}") for number in range(12_000)))
    at_once = queries(tmp_path, limit=100)
    monkeypatch.setattr(log_blocks, "_BLOCK", 100_000)
    assert queries(tmp_path, limit=100) == at_once


def test_broken_lines_are_logged_when_queries_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, line("a"), "garbage", line("b"))
    log = logging.getLogger("touchstone")
    log.addHandler(caplog.handler)
    try:
        assert queries(tmp_path) == ["a", "b"]
    finally:
        log.removeHandler(caplog.handler)
    assert "2026-11-20.jsonl:2" in caplog.text
