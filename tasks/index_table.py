"""LanceDB tables of chunks: opened at a version, written by one atomic commit, indexed, described from their own rows.

What a version holds is not written down beside it, where the two could disagree: its manifest is computed from its
rows (`document_id`, `document_content`, `document_hash`).
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.embedding import Floats
from tasks.embedding_cache import Vectors
from tasks.pieces import Piece, scan_stamp
from tasks.sources import digest_records, digest_text
from touchstone.errors import LedgerConflict, Unmeasurable
from touchstone.index import IndexedDocument, IndexVersion
from touchstone.retrieval_config import RetrievalConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

_FORMAT = 2  # of tables: a change of columns, chunking or embedded text needs the next number
_TEXTS = ("document_id", "title", "heading", "text", "indexed_text", "updated_at", "source")
_TEXTS += ("content_hash", "document_content", "document_hash", "embedded_at")
_MOST_FLAT, _MOST_HNSW = 50_000, 200_000  # chunks up to which `index: auto` compares with every vector, builds HNSW
_NEVER = timedelta(days=36_500)  # optimize() would otherwise drop versions of last week, which a pointer may name
_IDS_AT_ONCE = 2_000


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


def open_latest(lance_uri: str, name: str) -> Table | None:
    """The table as its last writer left it, which no reader may have seen; None: there is none yet.

    Raises Unmeasurable when that cannot be told, as with a bucket or an address that does not exist.
    """
    try:
        return _connect(lance_uri).open_table(name)
    except (ValueError, RuntimeError, OSError) as error:
        if f"'{name}' was not found" in str(error):
            return None
        raise Unmeasurable(f"index {name} cannot be read from {lance_uri}: {error}") from None


def create_table(lance_uri: str, name: str, dimension: int) -> Table:
    """Without the primary key, writers that merge the same new chunk at once would both insert it."""
    import pyarrow as pa

    key = {"lance-schema:unenforced-primary-key:position": "1"}  # as set_unenforced_primary_key, but from the start
    fields = [pa.field("chunk_id", pa.string(), nullable=False, metadata=key), pa.field("ordinal", pa.int32())]
    fields += [pa.field(name, pa.string()) for name in _TEXTS]
    fields.append(pa.field("vector", pa.list_(pa.float32(), dimension)))
    return _connect(lance_uri).create_table(name, schema=pa.schema(fields))


@contextmanager
def writer_lock(lance_uri: str, name: str, *, wait: bool) -> Iterator[None]:
    """One writer per table and machine, over merge, optimize and clean-up. Raises LedgerConflict without `wait`.

    On an object store other machines are kept out by the deployment's concurrency limit, and by Lance's commit check.
    """
    with _lock_file(lance_uri, name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            message = f"another build of index {name} is running: this one built nothing; wait for it, or run it again"
            raise LedgerConflict(message) from None
        yield


def vectors_in(table: Table, hashes: Sequence[str]) -> Vectors:
    """Vectors that the table already holds for these content hashes."""
    found: dict[str, tuple[Floats, str]] = {}
    for start in range(0, len(hashes), _IDS_AT_ONCE):
        where = f"content_hash IN ({_quoted(hashes[start : start + _IDS_AT_ONCE])})"
        rows = table.search().where(where).select(["content_hash", "embedded_at", "vector"]).limit(None).to_arrow()
        if len(rows):
            vectors = rows["vector"].combine_chunks()
            vectors = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
            keys, times = rows["content_hash"].to_pylist(), rows["embedded_at"].to_pylist()
            found |= {key: (vector, when) for key, vector, when in zip(keys, vectors, times, strict=True)}
    return found


def commit(
    table: Table, config: RetrievalConfig, pieces: Sequence[Piece], vectors: Vectors, gone: Collection[str]
) -> None:
    """One atomic commit: the chunks of `pieces` are stored, all others of the documents `gone` disappear.

    `gone` names deleted documents and those whose chunks are replaced. Raises Unmeasurable when Lance cannot write.
    """
    rows = _rows(config, pieces, vectors, table.schema)
    try:
        if table.count_rows() == 0:
            table.add(rows)
        else:
            merge = table.merge_insert("chunk_id").when_matched_update_all().when_not_matched_insert_all()
            if gone:
                merge = merge.when_not_matched_by_source_delete(f"document_id IN ({_quoted(sorted(gone))})")
            merge.execute(rows)
    except (RuntimeError, OSError) as error:
        raise Unmeasurable(f"index {table.name} cannot be written: {error}; the live index is as it was") from None
    _check_keys(table)


def index_columns(config: RetrievalConfig, table: Table) -> None:
    """Search indexes, built after loading; each is a version of its own, and the last one is handed out."""
    from lancedb.index import FTS, HnswSq, IvfPq

    kind = _vector_index(config, table.count_rows())
    indices = list(table.list_indices())
    kinds = {index.columns[0]: str(index.index_type) for index in indices}
    try:
        if any(index.num_unindexed_rows for index in indices):
            table.optimize(cleanup_older_than=_NEVER)
        if config.search != "semantic" and "indexed_text" not in kinds:
            table.create_index("indexed_text", config=FTS())
        if kind != "flat" and kind not in kinds.get("vector", "").lower():  # `auto` outgrows HNSW
            dimension = table.schema.field("vector").type.list_size
            # The default of dimension / 16 sub-vectors loses a third of the neighbours; four numbers each loses none.
            pq = IvfPq(distance_type="cosine", num_sub_vectors=max(1, dimension // 4))
            table.create_index("vector", config=HnswSq(distance_type="cosine") if kind == "hnsw" else pq)
    except (RuntimeError, OSError) as error:
        raise Unmeasurable(f"index {table.name} cannot be written: {error}; the live index is as it was") from None


def describe(config: RetrievalConfig, table: Table, parent: str | None = None) -> IndexVersion:
    """The manifest of the version that is checked out."""
    stored = _by_document(table, ["document_hash"])
    records = zip(stored["document_id"].to_pylist(), stored["document_hash"].to_pylist(), strict=True)
    built_at = next(entry["timestamp"] for entry in table.list_versions() if entry["version"] == table.version)
    return IndexVersion(
        table=table.name,
        version=table.version,
        config_name=config.name,
        config_version=config.version,
        fingerprint=config.index_fingerprint,
        embedding_model=config.embedding_model,
        documents=len(stored),
        chunks=table.count_rows(),
        content_digest=digest_records(records),
        built_at=built_at.astimezone(UTC).isoformat(),
        parent=parent,
        search=config.search,
        top_k=config.top_k,
        source=config.source.path,
        embedding=config.embedding,
    )


def documents_in(table: Table) -> list[IndexedDocument]:
    """What a version holds, document by document, in order of id."""
    stored = _by_document(table, ["document_content", "document_hash"]).sort_by("document_id")
    columns = [stored[name].to_pylist() for name in stored.column_names]
    return [
        IndexedDocument.model_construct(id=key, content_hash=content, record_hash=record, embedded_at=at, chunks=chunks)
        for key, content, record, at, chunks in zip(*columns, strict=True)
    ]


def stored_hash(document_record: str, stamp: str) -> str:
    """`document_hash` of a row: what is stored of the document, and by which rules it was scanned."""
    return digest_text(document_record, stamp)


def _by_document(table: Table, columns: Sequence[str]) -> pa.Table:
    """One row per document, with `columns`, which are equal in all its chunks."""
    rows = table.search().select(["document_id", *columns, "embedded_at"]).limit(None).to_arrow()
    wanted = [*((name, "one") for name in columns), ("embedded_at", "min"), ("embedded_at", "count")]
    # By one short key and without threads: a third of the CPU time, which every build pays for the whole table.
    grouped = rows.group_by("document_id", use_threads=False).aggregate(wanted)
    grouped = grouped.select(["document_id", *(f"{name}_{how}" for name, how in wanted)])
    return grouped.rename_columns(["document_id", *columns, "embedded_at", "chunks"])


def _rows(config: RetrievalConfig, pieces: Sequence[Piece], vectors: Vectors, schema: pa.Schema) -> pa.Table:
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
        "document_content": [piece.document.content_hash for piece in pieces],
        "document_hash": [
            stored_hash(piece.document.record_hash, scan_stamp(piece.document, config.scan)) for piece in pieces
        ],
        "source": [piece.document.source for piece in pieces],
    }
    found = [vectors[content_hash] for content_hash in columns["content_hash"]]
    columns["embedded_at"] = [when for _, when in found]
    flat = np.concatenate([vector for vector, _ in found]) if found else np.zeros(0, dtype=np.float32)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.field("vector").type.list_size)
    return pa.table({**columns, "vector": vector}, schema=schema)


def _check_keys(table: Table) -> None:
    """Two writers that Lance does not know of each other could both insert one chunk."""
    keys = table.search().select(["chunk_id"]).limit(None).to_arrow()["chunk_id"]
    distinct = len(keys.unique())
    if distinct != len(keys):
        raise Unmeasurable(
            f"index {table.name}@{table.version}: {len(keys)} rows for {distinct} chunk ids; "
            "somebody else wrote to it: delete the table and build it again"
        )


def _vector_index(config: RetrievalConfig, chunks: int) -> str:
    if config.index != "auto":
        return config.index
    return "flat" if chunks <= _MOST_FLAT else "hnsw" if chunks <= _MOST_HNSW else "pq"


def _quoted(values: Collection[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _connect(lance_uri: str) -> Any:
    import lancedb

    return lancedb.connect(lance_uri)


def _lock_file(lance_uri: str, name: str) -> Path:
    if "://" not in lance_uri:
        folder = Path(lance_uri)
    else:
        folder = Path(tempfile.gettempdir()) / f"touchstone-{hashlib.sha256(lance_uri.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"
