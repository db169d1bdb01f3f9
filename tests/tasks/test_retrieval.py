"""Retrieval in its three modes from a real index, and the log of it."""

from __future__ import annotations

import asyncio
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.indexing import ensure_index
from tasks.retrieval import Retriever, log_retrieval, used_chunks
from touchstone.results import Retrieval, RetrievedChunk
from touchstone.retrieval_config import RetrievalConfig, Source

DOCUMENTS = [
    {"id": "refunds", "title": "Refund window", "text": "A refund is paid within fourteen days of the return."},
    {"id": "shipping", "title": "Shipping", "text": "Parcels leave the warehouse on weekdays before noon."},
    {"id": "passwords", "title": "Passwords", "text": "Reset a forgotten password from the login page."},
    {"id": "hours", "title": "Opening hours", "text": "The desk is open from nine to five, error code E-4711 aside."},
]
MODES = ("semantic", "keyword", "hybrid")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(document) for document in DOCUMENTS))
    return folder


def retriever(folder: Path, search: str, embedding_model: str = "hashing", top_k: int = 2) -> Retriever:
    config = RetrievalConfig.model_validate(
        {
            "name": search,
            "version": "1.0.0",
            "source": Source(path="corpus.jsonl"),
            "embedding_model": embedding_model,
            "search": search,
            "top_k": top_k,
        }
    )
    lance = str(folder / "lance")
    return Retriever.open(config, ensure_index(config, folder / "corpus.jsonl", lance), lance)


@pytest.mark.parametrize("embedding_model", ["hashing", "minilm"])
@pytest.mark.parametrize("search", MODES)
def test_the_right_document_is_first_in_every_mode(folder: Path, search: str, embedding_model: str) -> None:
    found = retriever(folder, search, embedding_model).search("When is my refund paid?")
    assert found.chunks[0].document_id == "refunds"
    assert [chunk.rank for chunk in found.chunks] == list(range(1, len(found.chunks) + 1))
    assert sorted((chunk.score for chunk in found.chunks), reverse=True) == [chunk.score for chunk in found.chunks]
    assert (found.search, found.embedding_model) == (search, embedding_model)
    assert found.latency_ms > 0
    assert "@" in found.index_version


def test_semantic_search_finds_by_meaning_what_keywords_cannot(folder: Path) -> None:
    question = "I cannot sign in to my account any more"
    assert retriever(folder, "semantic", "minilm").search(question).chunks[0].document_id == "passwords"
    assert "passwords" not in {c.document_id for c in retriever(folder, "keyword", "minilm").search(question).chunks}


def test_semantic_scores_are_cosine_similarities(folder: Path) -> None:
    found = retriever(folder, "semantic", "minilm").search("A refund is paid within fourteen days of the return.")
    assert 0.8 < found.chunks[0].score <= 1 + 1e-6


@pytest.mark.parametrize("search", ["keyword", "hybrid"])
@pytest.mark.parametrize(
    "question",
    [
        'What does "refund" mean: paid (within) days?',
        "refund AND NOT (paid",
        "refund^2 +paid -return ~fourteen",
        "it's the refund's *window* [paid] {days} \\ / | &",
        "refund\n\t paid \x00 'fourteen\"",
    ],
)
def test_questions_are_words_not_a_query_language(folder: Path, search: str, question: str) -> None:
    assert retriever(folder, search).search(question).chunks[0].document_id == "refunds"


def test_a_code_is_found_by_keyword(folder: Path) -> None:
    assert retriever(folder, "keyword").search("what is E-4711?").chunks[0].document_id == "hours"


@pytest.mark.parametrize("question", ["", "?!", "the of and", "zzzunknown"])
def test_a_question_without_a_known_word_finds_nothing_by_keyword(folder: Path, question: str) -> None:
    assert retriever(folder, "keyword").search(question).chunks == ()


def test_many_queries_find_what_they_find_one_by_one(folder: Path) -> None:
    questions = ["refund paid", "parcels on weekdays", "forgotten password"]
    for search in MODES:
        one = retriever(folder, search)
        together = [[c.chunk_id for c in found.chunks] for found in one.search_many(questions)]
        assert together == [[c.chunk_id for c in one.search(question).chunks] for question in questions]
    assert retriever(folder, "semantic").search_many([]) == []


def test_threads_and_coroutines_share_a_retriever(folder: Path) -> None:
    shared = retriever(folder, "hybrid")
    questions = ["refund paid", "parcels on weekdays", "forgotten password", "opening hours desk"] * 8
    expected = [found.chunks[0].chunk_id for found in shared.search_many(questions)]
    with ThreadPoolExecutor(8) as pool:
        assert [found.chunks[0].chunk_id for found in pool.map(shared.search, questions)] == expected

    async def all_at_once() -> list[Retrieval]:
        return await asyncio.gather(*(asyncio.to_thread(shared.search, question) for question in questions))

    assert [found.chunks[0].chunk_id for found in asyncio.run(all_at_once())] == expected


def test_searching_prints_no_warning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    searchers = [retriever(folder, search) for search in MODES]
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for searcher in searchers:
            searcher.search("refund")
    assert capfd.readouterr() == ("", "")


def chunk(identity: str, text: str) -> RetrievedChunk:
    return RetrievedChunk(chunk_id=f"{identity}#0", document_id=identity, text=text, rank=1, score=0.5)


def test_the_log_holds_what_was_found_and_used(tmp_path: Path) -> None:
    chunks = (chunk("refunds", "A refund takes days."), chunk("shipping", "Parcels leave."))
    retrieval = Retrieval(
        query="Refund?\nWhen?",
        chunks=chunks,
        latency_ms=1.5,
        embedding_model="hashing",
        index_version="t@3",
        search="hybrid",
    )
    log_retrieval(tmp_path / "log", retrieval, bundle="b", case_id="c1", run_key=None, used_chunk_ids=["refunds#0"])
    (day,) = (tmp_path / "log").glob("????-??-??.jsonl")
    record = json.loads(day.read_text())
    assert record["query"] == "Refund?\nWhen?"
    assert record["chunks"][0] == {"chunk_id": "refunds#0", "document_id": "refunds", "rank": 1, "score": 0.5}
    assert (record["used_chunk_ids"], record["case_id"], record["run_key"]) == (["refunds#0"], "c1", None)
    assert (record["embedding_model"], record["index_version"], record["latency_ms"]) == ("hashing", "t@3", 1.5)
    assert record["time"].endswith("+00:00")


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    chunks = tuple(chunk(f"document-{number}", "text") for number in range(50))

    def write(number: int) -> None:
        retrieval = Retrieval(
            query=f"q{number} " + "long " * 2000,
            chunks=chunks,
            latency_ms=1,
            embedding_model="hashing",
            index_version="t@1",
            search="semantic",
        )
        log_retrieval(tmp_path, retrieval, bundle="b", case_id=None, run_key="r", used_chunk_ids=[])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    lines = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert {line["query"].split()[0] for line in lines} == {f"q{number}" for number in range(200)}


def test_a_chunk_was_used_when_a_sentence_rests_on_it_or_it_is_cited() -> None:
    refunds = chunk("refunds", "A refund is paid within fourteen days of the return, to the card that was charged.")
    shipping = chunk("shipping", "Parcels leave the warehouse on weekdays before noon.")
    answer = "Sure! Your refund is paid within fourteen days. Anything else?"
    assert used_chunks(answer, [refunds, shipping]) == ["refunds#0"]
    assert used_chunks("See [shipping] for more.", [refunds, shipping]) == ["shipping#0"]
    assert used_chunks("I do not know.", [refunds, shipping]) == []
    assert used_chunks("", [refunds]) == []
