"""The evaluation before a switch on real tables: a ruined build that documents cannot see, and poor vector indexes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tasks.embedding import load_embedder
from tasks.index_table import open_table
from tasks.indexing import ensure_index
from tasks.loading import load_golden_set, load_retrieval_config
from tasks.retrieval import Retriever
from tasks.retrieval_evaluation import evaluate_retrieval, recall_vs_exact
from touchstone.cases import GoldenCase
from touchstone.index import IndexVersion, RetrievalEvaluation
from touchstone.retrieval_config import RetrievalConfig, Source

ROOT = Path(__file__).parents[2]
DOCUMENTS = 400
COMMON = 40  # documents with the same text


@pytest.fixture(scope="module")
def support_lance(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("support") / "lance")


def evaluate_support(lance: str, live: bool = True, **changes: Any) -> RetrievalEvaluation:
    """The shipped config, changed, against the shipped one; both with hashed words, which take no time to embed."""
    config, source = load_retrieval_config(ROOT, "support")
    config = config.model_copy(update={"embedding_model": "hashing"})
    cases = load_golden_set(ROOT, "support").cases
    changed = config.model_copy(update=changes)
    served = Retriever.open(config, ensure_index(config, source, lance), lance) if live else None
    new = Retriever.open(changed, ensure_index(changed, source, lance), lance)
    return evaluate_retrieval(changed, cases, new, served, changed.gate, lance_uri=lance)


def test_chunks_too_small_to_hold_an_answer_fail_though_documents_are_ranked_better(support_lance: str) -> None:
    found = evaluate_support(support_lance, chunk_size=16, chunk_overlap=2)
    assert found.verdict == "fail"
    by_metric = {one.metric: one for one in found.comparisons}
    ndcg, coverage = by_metric["ndcg"], by_metric["coverage"]
    assert ndcg.difference is not None
    assert coverage.difference is not None
    assert ndcg.difference > 0
    assert coverage.difference < -0.1
    assert coverage.not_inferior is False
    assert "coverage" in found.reason
    assert len(found.worst_cases) == 10
    drops = [worst.live - worst.new for worst in found.worst_cases]
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] > 0.3


def test_the_same_index_passes_and_says_of_how_many_cases(support_lance: str) -> None:
    found = evaluate_support(support_lance)
    assert found.verdict == "pass"
    assert {one.difference for one in found.comparisons} == {0.0}
    assert "(n 108 of 150)" in found.reason
    assert found.recall_vs_exact == 1.0


def test_fewer_chunks_per_question_are_compared_down_to_what_readers_had(support_lance: str) -> None:
    recall = next(one for one in evaluate_support(support_lance, top_k=1).comparisons if one.metric == "recall")
    assert recall.live is not None
    assert recall.live > 0.8  # four chunks, as live serves them, not the first of them
    assert recall.new < 0.7


def test_the_first_index_passes_without_anything_to_compare_with(support_lance: str) -> None:
    found = evaluate_support(support_lance, live=False)
    assert found.verdict == "pass"
    assert [(one.live, one.not_inferior) for one in found.comparisons] == [(None, None)] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random words; some have one and the same text."""
    folder = tmp_path_factory.mktemp("random")
    words = [f"word{number}" for number in range(400)]
    rng = random.Random(1)
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(DOCUMENTS)]
    texts[:COMMON] = ["Always the same footer of every page."] * COMMON
    lines = [json.dumps({"id": f"d{number}", "title": "", "text": text}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


def random_config(**changes: Any) -> RetrievalConfig:
    known = {"name": "random", "version": "1.0.0", "source": Source(path="corpus.jsonl"), "embedding_model": "hashing"}
    return RetrievalConfig.model_validate({**known, "index": "flat", "top_k": 3, **changes})


def build(folder: Path, config: RetrievalConfig) -> tuple[IndexVersion, str]:
    lance = str(folder / "lance")
    return ensure_index(config, folder / "corpus.jsonl", lance), lance


@pytest.fixture(scope="module")
def crude(folder: Path) -> tuple[IndexVersion, str]:
    """An index whose vectors were pressed into one byte each."""
    from lancedb.index import IvfPq

    index, lance = build(folder, random_config(search="hybrid"))
    table = open_table(lance, index.table, index.version)
    table.checkout_latest()
    table.create_index("vector", config=IvfPq(distance_type="cosine", num_partitions=1, num_sub_vectors=1))
    return index.model_copy(update={"version": table.version}), lance


def questions(folder: Path, count: int = 30) -> list[str]:
    """A third of the words of a document, each."""
    lines = (folder / "corpus.jsonl").read_text().splitlines()[COMMON : COMMON + count]
    return [" ".join(json.loads(line)["text"].split()[:10]) for line in lines]


def test_without_a_vector_index_search_is_exact(folder: Path) -> None:
    index, lance = build(folder, random_config())
    assert recall_vs_exact(random_config(), index, lance, []) == 1.0


def test_keyword_search_has_no_recall_against_exact_search(crude: tuple[IndexVersion, str]) -> None:
    assert recall_vs_exact(random_config(search="keyword"), *crude, ["word1"]) is None


@pytest.mark.parametrize("search", ["semantic", "hybrid"])
def test_a_crude_vector_index_is_found_out_and_fails(
    folder: Path, crude: tuple[IndexVersion, str], search: str
) -> None:
    index, lance = crude
    config = random_config(search=search)
    cases = [GoldenCase(id=f"c{n}", question=question) for n, question in enumerate(questions(folder))]
    new = Retriever.open(config, index, lance)
    found = evaluate_retrieval(config, cases, new, None, config.gate, lance_uri=lance)
    assert found.verdict == "fail"
    assert found.recall_vs_exact is not None
    assert 0 < found.recall_vs_exact < 0.9
    assert "gate.minimum_recall is 0.95" in found.reason


def test_without_questions_stored_texts_are_asked(crude: tuple[IndexVersion, str]) -> None:
    index, lance = crude
    config = random_config()
    found = evaluate_retrieval(config, [], Retriever.open(config, index, lance), None, config.gate, lance_uri=lance)
    assert found.verdict == "fail"
    assert found.recall_vs_exact is not None
    assert 0 < found.recall_vs_exact < 0.95


def test_a_good_vector_index_passes_also_where_many_chunks_are_equally_near(folder: Path) -> None:
    config = random_config(index="hnsw")
    index, lance = build(folder, config)
    asked = [*questions(folder), "the footer of every page", "the same footer"]
    assert recall_vs_exact(config, index, lance, asked) == 1.0
    assert recall_vs_exact(config, index, lance, ["the same footer"]) == 1.0


def test_recall_is_the_same_every_time_and_takes_the_embedder_it_is_given(
    folder: Path, crude: tuple[IndexVersion, str]
) -> None:
    index, lance = crude
    asked = questions(folder, 300)
    first = recall_vs_exact(random_config(), index, lance, asked, load_embedder("hashing"))
    assert recall_vs_exact(random_config(), index, lance, asked) == first
