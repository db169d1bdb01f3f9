"""Build LanceDB indexes: documents become chunks with vectors, and every content is a version that readers pin.

There is one table per `RetrievalConfig.index_fingerprint`, and a change of the corpus is one `merge_insert`: all is
embedded first, then one atomic commit makes the next version. A reader checks out the version it was given, so it
never sees a build; a crash leaves the version before as it was. What a version holds is not written down
beside it, where the two could disagree: its digest is computed from its own rows (`document_id`, `document_hash`).
"""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.embedding import Embedder, load_embedder
from tasks.sources import Document, corpus_digest, digest_records, digest_text, read_documents
from touchstone.chunking import Chunk, split_markdown
from touchstone.errors import Unmeasurable
from touchstone.retrieval_config import RetrievalConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

Progress = Callable[[int, int], None]
Vectors = Mapping[str, tuple[NDArray[np.float32], str]]  # by content hash, with the time of embedding

_FORMAT = 1  # of tables: a change of columns, chunking or embedded text needs the next number
_EMBEDDED_AT_ONCE = 256  # chunks between two reports of progress
_TEXTS = ("document_id", "title", "heading", "text", "indexed_text", "updated_at", "source")
_TEXTS += ("content_hash", "document_hash", "embedded_at")


class IndexVersion(BaseModel):
    """One version of one table: what a reader needs to find exactly these chunks again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    version: int
    fingerprint: str
    embedding_model: str
    documents: int
    chunks: int
    content_digest: str
    built_at: str
    embedded_chunks: int = 0
    wall_s: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.table}@{self.version}"


def ensure_index(
    config: RetrievalConfig,
    source: Path,
    lance_uri: str,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> IndexVersion:
    """The version that holds the corpus as it is now; nothing is built, or even embedded, when there is one."""
    started = time.monotonic()
    documents = read_documents(source)
    with _writer_lock(lance_uri, table_name(config)):  # two evals may start together
        return _current(config, documents, lance_uri, started) or _build(
            config, documents, lance_uri, embedder, progress, started
        )


def build_index(
    config: RetrievalConfig,
    source: Path,
    lance_uri: str,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> IndexVersion:
    """Chunk, embed what is new, commit once; always makes a version, also when nothing changed."""
    started = time.monotonic()
    documents = read_documents(source)
    with _writer_lock(lance_uri, table_name(config)):
        return _build(config, documents, lance_uri, embedder, progress, started)


def table_name(config: RetrievalConfig) -> str:
    """Configs that differ only in the search share a table, so the config's own name is not in it."""
    parts = Path(config.source.path).with_suffix("").parts[-2:]
    words = re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower()).strip("_")
    return f"{words or 'corpus'}_{config.index_fingerprint}_{_FORMAT}"


def open_table(lance_uri: str, name: str, version: int) -> Table:
    """A table at one version; it stays there whatever is built."""
    try:
        table = _connect(lance_uri).open_table(name)
        table.checkout(version)
    except (ValueError, RuntimeError, OSError) as error:
        message = f"index {name}@{version} cannot be read from {lance_uri}: {error}; build it again"
        raise Unmeasurable(message) from None
    return table


def _current(
    config: RetrievalConfig, documents: Sequence[Document], lance_uri: str, started: float
) -> IndexVersion | None:
    table = _open_latest(lance_uri, table_name(config))
    if table is None:
        return None
    index = _describe(config, table, embedded=0, started=started)
    if index.content_digest != corpus_digest(documents):
        return None
    _index_columns(config, table)  # another config's search may need an index that this table has not yet
    return index if table.version == index.version else _describe(config, table, embedded=0, started=started)


def _build(
    config: RetrievalConfig,
    documents: Sequence[Document],
    lance_uri: str,
    embedder: Embedder | None,
    progress: Progress | None,
    started: float,
) -> IndexVersion:
    embedder = embedder or load_embedder(config.embedding_model)
    pieces = [piece for document in documents for piece in _pieces(document, config, embedder)]
    table = _open_latest(lance_uri, table_name(config))
    known = {} if table is None else _known_vectors(table)
    new = list({piece.content_hash: piece for piece in pieces if piece.content_hash not in known}.values())
    known = {**known, **_embedded(new, embedder, progress)}

    if table is None:  # not `table or`: an empty table is falsy
        table = _create(lance_uri, table_name(config), embedder.dimension)
    _commit(table, _rows(pieces, known, table.schema))
    _index_columns(config, table)
    return _describe(config, table, embedded=len(new), started=started)


@dataclass(frozen=True)
class _Piece:
    """A chunk with its document."""

    document: Document
    chunk: Chunk

    @property
    def chunk_id(self) -> str:
        return f"{self.document.id}#{self.chunk.ordinal}"

    @property
    def indexed_text(self) -> str:
        """What is embedded and searched for words: the title says what the text is about, once."""
        title = self.document.title
        return self.chunk.text if self.chunk.text.lstrip("# ").startswith(title) else f"{title}\n{self.chunk.text}"

    @property
    def content_hash(self) -> str:
        return digest_text(self.indexed_text)


def _pieces(document: Document, config: RetrievalConfig, embedder: Embedder) -> Iterator[_Piece]:
    """A chunk is never longer than the model reads: text behind that would be stored and never found."""
    size = config.chunk_size
    if embedder.max_tokens is not None:
        room = embedder.max_tokens - len(embedder.tokenize(document.title))
        size = min(size, max(room, embedder.max_tokens // 2))
    for chunk in split_markdown(document.text, embedder.tokenize, size, min(config.chunk_overlap, size // 2)):
        yield _Piece(document, chunk)


def _embedded(pieces: Sequence[_Piece], embedder: Embedder, progress: Progress | None) -> Vectors:
    """In order of length, so that the embedder's batches pad little and the progress starts optimistic."""
    pieces = sorted(pieces, key=lambda piece: len(piece.chunk.text))
    vectors: dict[str, tuple[NDArray[np.float32], str]] = {}
    for start in range(0, len(pieces), _EMBEDDED_AT_ONCE):
        batch = pieces[start : start + _EMBEDDED_AT_ONCE]
        rows = embedder.embed([piece.indexed_text for piece in batch])
        now = _now()
        vectors |= {piece.content_hash: (row, now) for piece, row in zip(batch, rows, strict=True)}
        if progress:
            progress(start + len(batch), len(pieces))
    return vectors


def _known_vectors(table: Table) -> Vectors:
    stored = table.search().select(["content_hash", "embedded_at", "vector"]).limit(None).to_arrow()
    vectors = stored["vector"].combine_chunks()
    vectors = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
    hashes, times = stored["content_hash"].to_pylist(), stored["embedded_at"].to_pylist()
    return {key: (row, when) for key, row, when in zip(hashes, vectors, times, strict=True)}


def _rows(pieces: Sequence[_Piece], vectors: Vectors, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "chunk_id": [piece.chunk_id for piece in pieces],
        "document_id": [piece.document.id for piece in pieces],
        "ordinal": [piece.chunk.ordinal for piece in pieces],
        "title": [piece.document.title for piece in pieces],
        "heading": [piece.chunk.heading for piece in pieces],
        "text": [piece.chunk.text for piece in pieces],
        "indexed_text": [piece.indexed_text for piece in pieces],
        "updated_at": [piece.document.updated_at for piece in pieces],
        "content_hash": [piece.content_hash for piece in pieces],
        "document_hash": [piece.document.record_hash for piece in pieces],
        "source": [piece.document.source for piece in pieces],
    }
    found = [vectors[content_hash] for content_hash in columns["content_hash"]]
    columns["embedded_at"] = [when for _, when in found]
    flat = pa.array(np.concatenate([row for row, _ in found]))
    vector = pa.FixedSizeListArray.from_arrays(flat, schema.field("vector").type.list_size)
    return pa.table({**columns, "vector": vector}, schema=schema)


def _commit(table: Table, rows: pa.Table) -> None:
    """One atomic commit: changed documents are replaced, new ones added, deleted ones gone."""
    (
        table.merge_insert("chunk_id")
        .when_matched_update_all(
            where="target.document_hash != source.document_hash OR target.content_hash != source.content_hash"
        )
        .when_not_matched_insert_all()
        .when_not_matched_by_source_delete()
        .execute(rows)
    )
    if table.count_rows() != len(rows):
        raise Unmeasurable(f"index {table.name}: {table.count_rows()} rows for {len(rows)} chunks; delete the table")


def _index_columns(config: RetrievalConfig, table: Table) -> None:
    """Search indexes, built after loading; each is a version of its own, and the last one is handed out."""
    from lancedb.index import FTS, HnswSq, IvfPq

    if config.search != "semantic" and not _is_indexed(table, "indexed_text"):
        table.create_index("indexed_text", config=FTS(), replace=True)
    if config.index != "flat" and not _is_indexed(table, "vector"):
        dimension = table.schema.field("vector").type.list_size
        # The default of dimension / 16 sub-vectors loses a third of the neighbours; four numbers each loses none.
        pq = IvfPq(distance_type="cosine", num_sub_vectors=max(1, dimension // 4))
        table.create_index("vector", config=HnswSq(distance_type="cosine") if config.index == "hnsw" else pq)


def _is_indexed(table: Table, column: str) -> bool:
    found = [index for index in table.list_indices() if index.columns == [column]]
    return bool(found) and found[0].num_unindexed_rows == 0


def _describe(config: RetrievalConfig, table: Table, embedded: int, started: float) -> IndexVersion:
    stored = table.search().select(["document_id", "document_hash"]).limit(None).to_arrow()
    records = set(zip(stored["document_id"].to_pylist(), stored["document_hash"].to_pylist(), strict=True))
    return IndexVersion(
        table=table.name,
        version=table.version,
        fingerprint=config.index_fingerprint,
        embedding_model=config.embedding_model,
        documents=len(records),
        chunks=len(stored),
        content_digest=digest_records(records),
        built_at=max(entry["timestamp"] for entry in table.list_versions()).astimezone(UTC).isoformat(),
        embedded_chunks=embedded,
        wall_s=time.monotonic() - started,
    )


def _create(lance_uri: str, name: str, dimension: int) -> Table:
    """Without the primary key, writers that merge the same new chunk at once would both insert it."""
    import pyarrow as pa

    key = {"lance-schema:unenforced-primary-key:position": "1"}  # as set_unenforced_primary_key, but from the start
    fields = [pa.field("chunk_id", pa.string(), nullable=False, metadata=key), pa.field("ordinal", pa.int32())]
    fields += [pa.field(name, pa.string()) for name in _TEXTS]
    fields.append(pa.field("vector", pa.list_(pa.float32(), dimension)))
    return _connect(lance_uri).create_table(name, schema=pa.schema(fields))


def _open_latest(lance_uri: str, name: str) -> Table | None:
    connection = _connect(lance_uri)
    try:
        return connection.open_table(name)
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise


def _connect(lance_uri: str) -> Any:
    import lancedb

    return lancedb.connect(lance_uri)


@contextmanager
def _writer_lock(lance_uri: str, name: str) -> Iterator[None]:
    """One builder per table and machine; on an object store Lance's own commit check is what there is."""
    if "://" in lance_uri:
        yield
        return
    folder = Path(lance_uri)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
