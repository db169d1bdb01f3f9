"""Find the chunks that answer a question, from one pinned index version."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.embedding import Embedder, Floats, load_embedder
from tasks.indexing import IndexVersion, open_table
from touchstone.ranking import reciprocal_rank_fusion
from touchstone.results import Retrieval, RetrievedChunk
from touchstone.retrieval_config import RetrievalConfig

if TYPE_CHECKING:
    from lancedb.table import Table

Row = Mapping[str, Any]

_COLUMNS = ["chunk_id", "document_id", "text", "title", "updated_at", "source"]
_CANDIDATES = 50  # per list that hybrid search fuses, at least
_REFINE = 10  # approximate candidates per answer that are ranked again by their exact distance
_SEARCHED = 300  # neighbours an HNSW search keeps in view; with its default, one in ten best answers was missed
_VECTORS: dict[tuple[Embedder, str], Floats] = {}
_MOST_VECTORS = 10_000
_LOCK = threading.Lock()


class Retriever:
    """Searches one version of one table; safe to share between threads."""

    def __init__(self, config: RetrievalConfig, index: IndexVersion, table: Table, embedder: Embedder | None) -> None:
        self._config = config
        self._index = index
        self._table = table
        self._embedder = embedder

    @classmethod
    def open(
        cls, config: RetrievalConfig, index: IndexVersion, lance_uri: str, embedder: Embedder | None = None
    ) -> Retriever:
        """Check the version out; keyword search needs no embedder and loads none."""
        table = open_table(lance_uri, index.table, index.version)
        if embedder is None and config.search != "keyword":
            embedder = load_embedder(config.embedding_model)
        return cls(config, index, table, embedder)

    def search(self, query: str) -> Retrieval:
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[str]) -> list[Retrieval]:
        """All queries are embedded together; a query's latency is its share of that and its own search."""
        if not queries:
            return []
        started = time.perf_counter()
        vectors = _embedded(self._embedder, queries) if self._embedder else [None] * len(queries)
        share = (time.perf_counter() - started) / len(queries)
        return [self._search(query, vector, share) for query, vector in zip(queries, vectors, strict=True)]

    def _search(self, query: str, vector: Floats | None, embedding_s: float) -> Retrieval:
        started = time.perf_counter()
        found = self._found(query, vector)
        seconds = embedding_s + time.perf_counter() - started
        return Retrieval(
            query=query,
            chunks=tuple(_chunk(row, rank, score) for rank, (row, score) in enumerate(found, start=1)),
            latency_ms=1000 * seconds,
            embedding_model=self._index.embedding_model,
            index_version=self._index.label,
            search=self._config.search,
        )

    def _found(self, query: str, vector: Floats | None) -> list[tuple[Row, float]]:
        top_k = self._config.top_k
        if self._config.search == "keyword" or vector is None:
            return self._keyword(query, top_k)
        if self._config.search == "semantic":
            return self._semantic(vector, top_k)
        candidates = max(_CANDIDATES, top_k)
        return _fused(self._semantic(vector, candidates), self._keyword(query, candidates))[:top_k]

    def _semantic(self, vector: Floats, limit: int) -> list[tuple[Row, float]]:
        """By cosine similarity: exact on a flat index, refined on an approximate one."""
        search: Any = self._table.search(vector, vector_column_name="vector", query_type="vector")
        search = search.distance_type("cosine").select([*_COLUMNS, "_distance"]).limit(limit)
        if self._config.index != "flat":
            search = search.refine_factor(_REFINE).ef(max(_SEARCHED, limit * _REFINE))
        return [(row, 1 - row["_distance"]) for row in search.to_list()]

    def _keyword(self, query: str, limit: int) -> list[tuple[Row, float]]:
        """By BM25. A MatchQuery is words, not a query language: quotes and colons in a question mean nothing."""
        from lancedb import query as lance

        match: Any = lance.MatchQuery  # a dataclass of pydantic's, whose defaults pyright does not see
        search: Any = self._table.search(match(query, "indexed_text"), query_type="fts")
        found = search.select([*_COLUMNS, "_score"]).limit(limit).to_list()
        return [(row, row["_score"]) for row in found]


def _embedded(embedder: Embedder, queries: Sequence[str]) -> list[Floats]:
    """Query vectors. A golden set asks the same questions run after run, so the last ones are remembered."""
    with _LOCK:
        missing = [query for query in dict.fromkeys(queries) if (embedder, query) not in _VECTORS]
        if missing:
            vectors = zip(missing, embedder.embed(missing), strict=True)
            _VECTORS.update({(embedder, query): vector for query, vector in vectors})
        found = [_VECTORS[embedder, query] for query in queries]
        for key in list(_VECTORS)[: max(0, len(_VECTORS) - _MOST_VECTORS)]:
            del _VECTORS[key]
        return found


def _fused(*rankings: Sequence[tuple[Row, float]]) -> list[tuple[Row, float]]:
    rows = {row["chunk_id"]: row for ranking in rankings for row, _ in ranking}
    fused = reciprocal_rank_fusion([[row["chunk_id"] for row, _ in ranking] for ranking in rankings])
    return [(rows[chunk_id], score) for chunk_id, score in fused]


def _chunk(row: Row, rank: int, score: float) -> RetrievedChunk:
    return RetrievedChunk(**{name: row[name] for name in _COLUMNS}, rank=rank, score=score)
