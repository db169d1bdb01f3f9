"""The retrieval log: what a line holds, that writers share a file, and what counts as used."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.retrieval_log import log_retrieval, used_chunks
from touchstone.results import Retrieval, RetrievedChunk


def chunk(identity: str, text: str) -> RetrievedChunk:
    return RetrievedChunk(chunk_id=f"{identity}#0", document_id=identity, text=text, rank=1, score=0.5)


def retrieval(query: str, *chunks: RetrievedChunk) -> Retrieval:
    return Retrieval(
        query=query, chunks=chunks, latency_ms=1.5, embedding_model="hashing", index_version="t@3", search="hybrid"
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob("????-??-??.jsonl") for line in path.read_bytes().splitlines()]


def test_the_log_holds_what_was_found_and_used(tmp_path: Path) -> None:
    found = retrieval("Refund?\nWhen?", chunk("refunds", "A refund takes days."), chunk("shipping", "Parcels leave."))
    used = ["refunds#0"]
    log_retrieval(
        tmp_path / "log", found, config="help", bundle="b", case_id="c1", segment="billing", used_chunk_ids=used
    )
    (record,) = logged(tmp_path / "log")
    assert record["query"] == "Refund?\nWhen?"
    assert record["chunks"][0] == {"chunk_id": "refunds#0", "document_id": "refunds", "rank": 1, "score": 0.5}
    assert (record["config"], record["segment"], record["bundle"]) == ("help", "billing", "b")
    assert (record["used_chunk_ids"], record["case_id"]) == (used, "c1")
    assert (record["embedding_model"], record["index_version"], record["latency_ms"]) == ("hashing", "t@3", 1.5)
    assert record["time"].endswith("+00:00")


def test_production_traffic_is_told_from_evals_by_the_start_of_a_line(tmp_path: Path) -> None:
    log_retrieval(tmp_path, retrieval("asked by a user"), config="help")
    log_retrieval(tmp_path, retrieval("asked by an eval"), config="help", run_key="run-1")
    assert [record["run_key"] for record in logged(tmp_path)] == [None, "run-1"]
    (day,) = tmp_path.glob("*.jsonl")
    starts = [line.split(b',"config":"help"')[0] for line in day.read_bytes().splitlines()]
    assert [start.endswith(b'"run_key":null') for start in starts] == [True, False]


def test_a_question_that_is_no_valid_text_is_logged_all_the_same(tmp_path: Path) -> None:
    log_retrieval(tmp_path, retrieval("half a pair: \ud83d, a separator: \u2028, quotes: '\"\\"), config="help")
    log_retrieval(tmp_path, retrieval("the next"), config="help")
    assert [record["query"][:4] for record in logged(tmp_path)] == ["half", "the "]


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    chunks = tuple(chunk(f"document-{number}", "text") for number in range(50))

    def write(number: int) -> None:
        log_retrieval(tmp_path, retrieval(f"q{number} " + "long " * 2000, *chunks), config="help", run_key="r")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert {record["query"].split()[0] for record in logged(tmp_path)} == {f"q{number}" for number in range(200)}


def test_a_chunk_was_used_when_a_sentence_rests_on_it_or_it_is_cited() -> None:
    refunds = chunk("refunds", "A refund is paid within fourteen days of the return, to the card that was charged.")
    shipping = chunk("shipping", "Parcels leave the warehouse on weekdays before noon.")
    answer = "Sure! Your refund is paid within fourteen days. Anything else?"
    assert used_chunks(answer, [refunds, shipping]) == ["refunds#0"]
    assert used_chunks("See [shipping] for more.", [refunds, shipping]) == ["shipping#0"]
    assert used_chunks("I do not know.", [refunds, shipping]) == []
    assert used_chunks("", [refunds]) == []
