"""Build index versions: tell what changed, embed only what is new, commit once; readers see nothing of it.

There is one table per `RetrievalConfig.index_fingerprint`. All is embedded first, then one atomic commit makes the
next version. A reader checks out the version it was given; a crash leaves the version before as it was, and what
was embedded in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tasks.embedding import Embedder, load_embedder
from tasks.embedding_cache import EmbeddingCache, Vectors
from tasks.index_table import (
    commit,
    create_table,
    describe,
    documents_in,
    index_columns,
    open_latest,
    open_table,
    stored_hash,
    table_name,
    vectors_in,
    writer_lock,
)
from tasks.pieces import Scanned, cut, scan, scan_stamp
from tasks.sources import Document, SourceSnapshot, read_documents
from touchstone.errors import BadInput
from touchstone.index import IndexedDocument, IndexVersion, SourceChanges, compare_source
from touchstone.retrieval_config import RetrievalConfig

Progress = Callable[[int, int], None]
Block = tuple[tuple[str, str], ...]  # (content hash, text) that are embedded together

_EMBEDDED_AT_ONCE = 96  # chunks of one vendor request, between two reports of progress; at most lost by a crash


@dataclass
class BuildPlan:
    """What a build will do; nothing is embedded or written yet."""

    config: RetrievalConfig
    table: str
    changes: SourceChanges  # against the table's last version
    documents: int
    scanned: Scanned
    gone: frozenset[str]  # documents whose stored chunks are replaced or deleted
    vectors: dict[str, tuple] = field(default_factory=dict)  # known ones, by content hash
    pending: tuple[tuple[str, str], ...] = ()  # (content hash, text) to embed, each once, shortest first

    @property
    def is_empty(self) -> bool:
        """The table's last version holds the source as it is."""
        return not self.scanned.pieces and not self.gone

    @property
    def blocks(self) -> list[Block]:
        """In order of length, so that batches pad little."""
        starts = range(0, len(self.pending), _EMBEDDED_AT_ONCE)
        return [self.pending[start : start + _EMBEDDED_AT_ONCE] for start in starts]

    @property
    def dimension(self) -> int | None:
        """Of the vectors to write; None when there are none."""
        return max((len(self.vectors[piece.content_hash][0]) for piece in self.scanned.pieces), default=None)


def plan_build(
    config: RetrievalConfig,
    source: SourceSnapshot,
    lance_uri: str,
    embedder: Callable[[], Embedder],
    cache: EmbeddingCache | None,
) -> BuildPlan:
    """Compare the source with the table's last version, and cut and scan what differs. Needs the writer lock.

    `embedder` is called only when there is something to cut: loading a model takes longer than finding no change.
    """
    table = open_latest(lance_uri, table_name(config))
    held = [] if table is None else documents_in(table)
    stamped = _stamped(source.documents, config)
    changes = compare_source(held, stamped, source.unreadable)
    fresh = {*changes.added, *changes.changed, *changes.touched, *(new for _, new in changes.renamed)}
    documents = [document for document in source.documents if document.id in fresh]
    scanned = scan(cut(documents, config, embedder()), config.scan) if documents else Scanned()
    gone = {*changes.deleted, *changes.changed, *changes.touched, *(old for old, _ in changes.renamed)}
    plan = BuildPlan(config, table_name(config), changes, len(source.documents), scanned, frozenset(gone))
    texts = {piece.content_hash: piece.indexed_text for piece in scanned.pieces}
    if cache is not None:
        plan.vectors |= cache.get(list(texts))
    if table is not None:
        plan.vectors |= vectors_in(table, [content for content in texts if content not in plan.vectors])
    new = [(content, text) for content, text in texts.items() if content not in plan.vectors]
    plan.pending = tuple(sorted(new, key=lambda item: len(item[1])))
    return plan


def embed_block(block: Block, embedder: Embedder, cache: EmbeddingCache | None) -> Vectors:
    """Embed the texts of a block and keep the vectors at once."""
    rows = embedder.embed([text for _, text in block])
    hashes, now = [content for content, _ in block], datetime.now(UTC).isoformat(timespec="seconds")
    if cache is not None:
        cache.put(hashes, rows, now)
    return {content: (row, now) for content, row in zip(hashes, rows, strict=True)}


def write_version(plan: BuildPlan, lance_uri: str, parent: str | None = None) -> IndexVersion:
    """Commit a plan whose pending texts are all embedded; an empty one writes nothing. Needs the writer lock."""
    dimensions = {len(plan.vectors[piece.content_hash][0]) for piece in plan.scanned.pieces}
    table = open_latest(lance_uri, plan.table)
    if table is None:  # not `table or`: an empty table is falsy
        if not dimensions:
            raise BadInput(f"{plan.config.name}: every chunk was quarantined, nothing is left to index; see scan.allow")
        table = create_table(lance_uri, plan.table, max(dimensions))
    _check_dimensions(plan, table.schema.field("vector").type.list_size, dimensions)
    if not plan.is_empty:
        commit(table, plan.config, plan.scanned.pieces, plan.vectors, plan.gone)
    index_columns(plan.config, table)  # another config's search may need an index that this table has not yet
    return describe(plan.config, table, parent)


def ensure_index(
    config: RetrievalConfig,
    source: Path,
    lance_uri: str,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    cache: EmbeddingCache | None = None,
) -> IndexVersion:
    """The version that holds the corpus as it is now; nothing is built, or even embedded, when there is one.

    It is neither validated nor made live: that is `touchstone reindex`. Raises BadInput on any unreadable document.
    """
    documents = tuple(read_documents(source, config.source.max_document_mb))
    load = functools.cache(lambda: embedder or load_embedder(config.embedding_model, endpoint=config.embedding))
    with writer_lock(lance_uri, table_name(config), wait=True):  # two evals may start together
        plan = plan_build(config, SourceSnapshot(documents, (), ""), lance_uri, load, cache)
        done = 0
        for block in plan.blocks:
            plan.vectors |= embed_block(block, load(), cache)
            done += len(block)
            if progress:
                progress(done, len(plan.pending))
        return write_version(plan, lance_uri)


def indexed_documents(lance_uri: str, index: IndexVersion) -> list[IndexedDocument]:
    """What a version holds, document by document, in order of id."""
    return documents_in(open_table(lance_uri, index.table, index.version))


def _stamped(documents: Sequence[Document], config: RetrievalConfig) -> Mapping[str, tuple[str, str]]:
    return {
        document.id: (document.content_hash, stored_hash(document.record_hash, scan_stamp(document, config.scan)))
        for document in documents
    }


def _check_dimensions(plan: BuildPlan, stored: int, found: set[int]) -> None:
    if found - {stored}:
        raise BadInput(
            f"embedding_model {plan.config.embedding_model} makes vectors of {max(found - {stored})} numbers, index "
            f"{plan.table} holds vectors of {stored}: the vendor changed it; nothing was written. Pin another model "
            "(its index is built beside this one)"
        )
