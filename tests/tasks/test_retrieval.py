"""Retrieval in its three modes from a real index."""

from __future__ import annotations

import asyncio
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.indexing import ensure_index
from tasks.retrieval import Retriever
from touchstone.errors import Unmeasurable
from touchstone.results import Retrieval
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


def configured(**changes: object) -> RetrievalConfig:
    known = {"name": "help", "version": "1.0.0", "source": Source(path="corpus.jsonl"), "embedding_model": "hashing"}
    return RetrievalConfig.model_validate({**known, "top_k": 2, **changes})


def retriever(folder: Path, search: str, embedding_model: str = "hashing") -> Retriever:
    config = configured(search=search, embedding_model=embedding_model)
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


def test_headings_are_told_by_chunk(tmp_path: Path) -> None:
    config, lance = configured(source=Source(path="docs")), str(tmp_path / "lance")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "it's here.md").write_text("# Parcels\n\nA duty may be due.")
    opened = Retriever.open(config, ensure_index(config, tmp_path / "docs", lance), lance)
    found = opened.search("duty")
    assert opened.headings(found) == {"it's here#0": "Parcels"}
    assert opened.headings(found.model_copy(update={"chunks": ()})) == {}


def test_whether_distances_are_refined_is_decided_by_the_table_and_not_by_the_config(tmp_path: Path) -> None:
    topics = [f"subject{number} detail{number * 7 % 300}" for number in range(300)]
    lines = [json.dumps({"id": f"d{number}", "title": topic, "text": topic}) for number, topic in enumerate(topics)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    lance = str(tmp_path / "lance")
    approximate = ensure_index(configured(index="pq"), tmp_path / "corpus.jsonl", lance)
    for index in ("flat", "auto"):
        answers = Retriever.open(configured(index=index), approximate, lance).search_many(topics[:20])
        assert [answer.chunks[0].score for answer in answers] == pytest.approx([1] * 20, abs=1e-5)


def test_searching_for_words_without_a_word_index_says_what_to_do(tmp_path: Path, folder: Path) -> None:
    lance = str(tmp_path / "lance")
    index = ensure_index(configured(), folder / "corpus.jsonl", lance)
    with pytest.raises(Unmeasurable, match=r"no word index.*touchstone reindex --config help"):
        Retriever.open(configured(search="hybrid"), index, lance)
