"""Find the chunks that answer a question: in one pinned index version, or in whichever is live."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.embedding import Embedder, Floats, load_embedder
from tasks.index_table import open_table
from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from touchstone.errors import Unmeasurable
from touchstone.index import IndexVersion
from touchstone.ranking import reciprocal_rank_fusion
from touchstone.results import Retrieval, RetrievedChunk
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

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
_log = logging.getLogger("touchstone")


class Retriever:
    """Searches one version of one table; safe to share between threads."""

    def __init__(
        self,
        config: RetrievalConfig,
        index: IndexVersion,
        table: Table,
        embedder: Embedder | None,
        approximate: bool,
    ) -> None:
        self.index = index
        self._config = config
        self._table = table
        self._embedder = embedder
        self._approximate = approximate

    @classmethod
    def open(
        cls, config: RetrievalConfig, index: IndexVersion, lance_uri: str, embedder: Embedder | None = None
    ) -> Retriever:
        """Check the version out; keyword search needs no embedder and loads none.

        Questions are embedded as the index's chunks were, whatever model the config names by now. Raises Unmeasurable
        when the version is gone, or has no word index and the config searches for words.
        """
        table = open_table(lance_uri, index.table, index.version)
        indexed = {column for found in table.list_indices() for column in found.columns}
        if config.search != "semantic" and "indexed_text" not in indexed:
            raise Unmeasurable(
                f"index {index.label} has no word index, which `search: {config.search}` needs; "
                f"run `touchstone reindex --config {config.name}`"
            )
        if embedder is None and config.search != "keyword":
            embedder = load_embedder(index.embedding_model, endpoint=config.embedding)
        return cls(config, index, table, embedder, approximate="vector" in indexed)

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

    def headings(self, retrieval: Retrieval) -> dict[str, str]:
        """Heading path of each chunk found, by chunk id; people want it, a model does not."""
        ids = ", ".join("'" + chunk.chunk_id.replace("'", "''") + "'" for chunk in retrieval.chunks)
        if not ids:
            return {}
        rows = self._table.search().where(f"chunk_id IN ({ids})").select(["chunk_id", "heading"]).to_list()
        return {row["chunk_id"]: row["heading"] or "" for row in rows}

    def _search(self, query: str, vector: Floats | None, embedding_s: float) -> Retrieval:
        started = time.perf_counter()
        found = self._found(query, vector)
        seconds = embedding_s + time.perf_counter() - started
        return Retrieval(
            query=query,
            chunks=tuple(_chunk(row, rank, score) for rank, (row, score) in enumerate(found, start=1)),
            latency_ms=1000 * seconds,
            embedding_model=self.index.embedding_model,
            index_version=self.index.label,
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
        if self._approximate:
            search = search.refine_factor(_REFINE).ef(max(_SEARCHED, limit * _REFINE))
        return [(row, 1 - row["_distance"]) for row in search.to_list()]

    def _keyword(self, query: str, limit: int) -> list[tuple[Row, float]]:
        """By BM25. A MatchQuery is words, not a query language: quotes and colons in a question mean nothing."""
        from lancedb import query as lance

        match: Any = lance.MatchQuery  # a dataclass of pydantic's, whose defaults pyright does not see
        search: Any = self._table.search(match(query, "indexed_text"), query_type="fts")
        found = search.select([*_COLUMNS, "_score"]).limit(limit).to_list()
        return [(row, row["_score"]) for row in found]


class LiveRetriever:
    """Searches the version that is live, and follows the pointer without a restart; safe to share between threads.

    Each call is answered wholly from one version. While the pointer cannot be read, or what it names cannot be
    opened, the version before is served on. Raises Unmeasurable when there is none.
    """

    def __init__(
        self, settings: Settings, config: RetrievalConfig, ledger: Ledger | None = None, poll_s: float = 1.0
    ) -> None:
        """The pointer is read before a query, at most every `poll_s` seconds."""
        self._config = config
        self._lance_uri = settings.lance
        self._ledger = ledger or Ledger(settings.ledger, settings.environment)
        self._poll_s = poll_s
        self._poll_at = 0.0
        self._polling = threading.Lock()
        self._retriever: Retriever | None = None
        self._warned = False

    @property
    def index(self) -> IndexVersion:
        """What is served now."""
        return self.current().index

    def search(self, query: str) -> Retrieval:
        return self.current().search(query)

    def search_many(self, queries: Sequence[str]) -> list[Retrieval]:
        return self.current().search_many(queries)

    def current(self) -> Retriever:
        """The retriever of the live version: for several calls that belong together."""
        # One thread looks while the others go on with what there is; only before the first version they wait.
        if time.monotonic() >= self._poll_at and self._polling.acquire(blocking=self._retriever is None):
            try:
                if time.monotonic() >= self._poll_at:
                    self._follow()
            finally:
                self._polling.release()
        assert self._retriever is not None  # or _follow() has raised
        return self._retriever

    def _follow(self) -> None:
        try:
            pointer = live_pointer(self._ledger, self._config.name)
            if pointer is None:
                raise _no_live_index(self._config)
            if self._retriever is None or self._retriever.index != pointer.index:
                self._retriever = Retriever.open(self._served(pointer.index), pointer.index, self._lance_uri)
                _log.debug("%s: served from %s", self._config.name, pointer.index.label)
            self._warned = False
        except Exception as error:  # whatever it is, queries can still be answered from what is open
            if self._retriever is None:
                raise
            if not self._warned:
                _log.warning("%s: serving %s on: %s", self._config.name, self._retriever.index.label, error)
            self._warned = True
        self._poll_at = time.monotonic() + self._poll_s

    def _served(self, index: IndexVersion) -> RetrievalConfig:
        """The config as this version can serve it: it may be older than the config."""
        changes: dict[str, Any] = {}
        if index.embedding_model != self._config.embedding_model:
            changes["embedding"] = index.embedding
        if self._config.search != "semantic" and not index.has_words:
            _log.warning("%s: %s has no word index, searched semantically", self._config.name, index.label)
            changes["search"] = "semantic"
        return self._config.model_copy(update=changes)


def _no_live_index(config: RetrievalConfig) -> Unmeasurable:
    return Unmeasurable(f"{config.name} has no live index; run `touchstone reindex --config {config.name}`")


def _embedded(embedder: Embedder, queries: Sequence[str]) -> list[Floats]:
    """Query vectors. A golden set asks the same questions run after run, so the last ones are remembered."""
    with _LOCK:
        known = {query: _VECTORS[embedder, query] for query in queries if (embedder, query) in _VECTORS}
    missing = [query for query in dict.fromkeys(queries) if query not in known]
    if missing:  # without the lock: a vendor that is slow to embed one thread's question must not stop the others
        known |= zip(missing, embedder.embed(missing), strict=True)
        with _LOCK:
            _VECTORS.update({(embedder, query): known[query] for query in missing})
            for key in list(_VECTORS)[: max(0, len(_VECTORS) - _MOST_VECTORS)]:
                del _VECTORS[key]
    return [known[query] for query in queries]


def _fused(*rankings: Sequence[tuple[Row, float]]) -> list[tuple[Row, float]]:
    rows = {row["chunk_id"]: row for ranking in rankings for row, _ in ranking}
    fused = reciprocal_rank_fusion([[row["chunk_id"] for row, _ in ranking] for ranking in rankings])
    return [(rows[chunk_id], score) for chunk_id, score in fused]


def _chunk(row: Row, rank: int, score: float) -> RetrievedChunk:
    return RetrievedChunk(**{name: row[name] for name in _COLUMNS}, rank=rank, score=score)
