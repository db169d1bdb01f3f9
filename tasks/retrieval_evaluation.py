"""A new index version under test: the golden questions beside the live one, the vector index beside exact search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.embedding import Embedder, load_embedder
from tasks.index_table import open_table
from tasks.retrieval import Retriever
from touchstone.cases import GoldenCase
from touchstone.index import IndexVersion, RetrievalEvaluation
from touchstone.results import Retrieval
from touchstone.retrieval_config import BuildGate, RetrievalConfig
from touchstone.retrieval_gate import decide_retrieval, score_retrievals

if TYPE_CHECKING:
    from lancedb.table import Table

_MOST_QUESTIONS = 200
_SAMPLED_CHUNKS = 100
_TIES = 50  # neighbours behind the k-th, which may be as near: equal texts have equal vectors
_EQUALLY_NEAR = 1e-5  # of two cosine distances in float32


def evaluate_retrieval(
    config: RetrievalConfig,
    cases: Sequence[GoldenCase],
    new: Retriever,
    live: Retriever | None,
    gate: BuildGate,
    *,
    lance_uri: str,
    embedder: Embedder | None = None,
) -> RetrievalEvaluation:
    """Retrieval of the new version beside the live one, and the verdict with its reason.

    Documents are compared down to the longest list that either gives its readers, at least `config.top_k`. `embedder`
    is the new version's, for `recall_vs_exact`; None loads it where it is needed.
    """
    questions = [case.question for case in cases]
    recall = recall_vs_exact(config, new.index, lance_uri, questions, embedder)
    found = new.search_many(questions)
    served = None if live is None else live.search_many(questions)
    k = _longest(config.top_k, found, served or [])
    return decide_retrieval(
        len(cases),
        score_retrievals(cases, found, k),
        None if served is None else score_retrievals(cases, served, k),
        recall,
        gate,
    )


def recall_vs_exact(
    config: RetrievalConfig,
    index: IndexVersion,
    lance_uri: str,
    questions: Sequence[str],
    embedder: Embedder | None = None,
) -> float | None:
    """Share of the `top_k` nearest chunks that the vector search of this config finds; None for keyword search.

    Without a vector index the search is exact: 1.0. Asked are at most 200 of the questions or, when there are none,
    the texts of 100 stored chunks. A chunk that is as near as the last of the exact ones counts as found.
    """
    if config.search == "keyword":
        return None
    table = open_table(lance_uri, index.table, index.version)
    if not any("vector" in found.columns for found in table.list_indices()):
        return 1.0
    asked = _sample(list(dict.fromkeys(questions)), _MOST_QUESTIONS) or _stored_texts(table)
    embedder = embedder or load_embedder(index.embedding_model, endpoint=config.embedding)
    semantic = config.model_copy(update={"search": "semantic"})  # the vector half of a hybrid search
    found = Retriever.open(semantic, index, lance_uri, embedder).search_many(asked)
    nearest = _exact(table, embedder, asked, config.top_k)
    shares = [
        len({chunk.chunk_id for chunk in retrieval.chunks} & exact) / min(config.top_k, len(exact))
        for retrieval, exact in zip(found, nearest, strict=True)
    ]
    return float(np.mean(shares))


def _exact(table: Table, embedder: Embedder, questions: Sequence[str], k: int) -> list[set[str]]:
    """Ids of the k nearest chunks per question, with those that are as near; one scan answers all questions."""
    search: Any = table.search(embedder.embed(questions), vector_column_name="vector", query_type="vector")
    search = search.distance_type("cosine").bypass_vector_index().select(["chunk_id", "_distance"]).limit(k + _TIES)
    neighbours: list[list[tuple[float, str]]] = [[] for _ in questions]
    for row in search.to_list():
        neighbours[row.get("query_index", 0)].append((row["_distance"], row["chunk_id"]))  # no such column for one
    return [_as_near_as_the_last(sorted(found), k) for found in neighbours]


def _as_near_as_the_last(neighbours: Sequence[tuple[float, str]], k: int) -> set[str]:
    farthest = neighbours[:k][-1][0] + _EQUALLY_NEAR if neighbours else 0.0
    return {chunk_id for distance, chunk_id in neighbours if distance <= farthest}


def _stored_texts(table: Table) -> list[str]:
    rows = _sample(range(table.count_rows()), _SAMPLED_CHUNKS)
    return table.take_offsets(rows).select(["indexed_text"]).to_arrow()["indexed_text"].to_pylist()


def _sample(items: Sequence[Any], most: int) -> list[Any]:
    """All of them, or `most` of them, the same ones every time."""
    if len(items) <= most:
        return list(items)
    chosen = np.random.default_rng(0).choice(len(items), most, replace=False)
    return [items[place] for place in sorted(chosen)]


def _longest(top_k: int, *found: Sequence[Retrieval]) -> int:
    return max([top_k, *(len(retrieval.chunks) for retrievals in found for retrieval in retrievals)])
