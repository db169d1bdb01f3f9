"""What a new index version must show before readers are switched to it, measured on the real tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from tasks.embedding import Embedder
from tasks.index_builds import build_folder
from tasks.index_table import open_latest, open_table
from tasks.indexing import BuildPlan, indexed_documents
from tasks.live_index import LivePointer
from tasks.retrieval import Retriever
from tasks.retrieval_evaluation import evaluate_retrieval
from tasks.sources import SourceSnapshot
from tasks.validation import BuildFacts, chunk_frame, validate_build
from tasks.vendor_embedding import VendorEmbedder, check_same_model
from touchstone.cases import GoldenCase
from touchstone.errors import TouchstoneError, Unmeasurable
from touchstone.index import (
    IndexedDocument,
    IndexVersion,
    RetrievalEvaluation,
    SourceChanges,
    Validation,
    compare_source,
)
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

_PROBES = 3


def reader_changes(settings: Settings, live: LivePointer | None, source: SourceSnapshot) -> SourceChanges:
    """The source against what readers are served now; a new date alone is no change to them."""
    held = _readable(settings, live)
    changes = compare_source(held, source.hashes, source.unreadable)
    return changes.model_copy(update={"touched": (), "unchanged": changes.unchanged + len(changes.touched)})


def lost_documents(settings: Settings, index: IndexVersion, kept: Collection[str]) -> set[str]:
    """Unreadable documents that readers are served now and a version has not: it was built after they were deleted."""
    return set(kept) - {document.id for document in indexed_documents(settings.lance, index)} if kept else set()


def _readable(settings: Settings, live: LivePointer | None) -> Sequence[IndexedDocument]:
    """Nothing, with a warning, when the live version is damaged: a re-index is the way to repair that."""
    try:
        return indexed_documents(settings.lance, live.index) if live else ()
    except Unmeasurable as error:
        logging.getLogger("touchstone").warning("%s; building without a comparison", error)
        return ()


def check_embedding_model(
    settings: Settings, config: RetrievalConfig, plan: BuildPlan, embedder: Callable[[], Embedder]
) -> None:
    """A vendor may have moved its embedding model: re-embed a few stored texts before new ones are mixed with them."""
    table = open_latest(settings.lance, plan.table) if plan.pending else None
    if table is None:
        return
    model = embedder()
    if isinstance(model, VendorEmbedder):
        rows = table.search().select(["indexed_text", "vector"]).limit(_PROBES).to_list()
        check_same_model(model, [row["indexed_text"] for row in rows], [row["vector"] for row in rows])


def validate_version(
    settings: Settings,
    config: RetrievalConfig,
    build_key: str,
    index: IndexVersion,
    chunks_before: int | None,
    plan: BuildPlan,
    cases: Sequence[GoldenCase],
) -> Validation:
    """Great Expectations on all chunks of the version; the data docs are kept with the build.

    `chunks_before` is of the live version, None when their number may change at will.
    """
    table = open_table(settings.lance, index.table, index.version)
    facts = BuildFacts(
        expected_dimension=plan.dimension or table.schema.field("vector").type.list_size,
        chunks_before=chunks_before,
        max_chunk_change=config.gate.max_chunk_change,
        golden_ids=frozenset(id for case in cases for id in case.relevant_ids or ()),
        quarantined=tuple(plan.scanned.quarantined),
        written=len(plan.scanned.pieces),
    )
    folder = build_folder(settings.state, build_key) / "validation"
    validation = validate_build(chunk_frame(table), facts, folder)
    page = (folder / (validation.report_path or "")).relative_to(settings.state)
    return validation.model_copy(update={"report_path": str(page)})


def evaluate_version(
    settings: Settings,
    config: RetrievalConfig,
    index: IndexVersion,
    live: LivePointer | None,
    cases: Sequence[GoldenCase],
    embedder: Callable[[], Embedder],
) -> RetrievalEvaluation:
    """The golden questions on the new version and on the live one, each searched as its config says.

    The build's embedder answers for the new version, so that its questions are part of the build's spend.
    """
    own = embedder() if config.search != "keyword" else None
    new = Retriever.open(config, index, settings.lance, own)
    old = _live_retriever(settings, config, live) if live and cases else None
    return evaluate_retrieval(config, cases, new, old, config.gate, lance_uri=settings.lance, embedder=own)


def _live_retriever(settings: Settings, config: RetrievalConfig, live: LivePointer) -> Retriever | None:
    """Searched as it was meant to be when it was promoted. Raises Unmeasurable when its embedding model is gone."""
    index = live.index
    served = {
        "embedding_model": index.embedding_model,
        "embedding": index.embedding,
        "search": index.search,
        "top_k": index.top_k,
    }
    if not _readable(settings, live):
        return None
    try:
        return Retriever.open(config.model_copy(update=served), index, settings.lance)
    except TouchstoneError as error:
        raise Unmeasurable(
            f"{index.label} cannot be searched to compare with: {error}. Without `gate.dataset` a build is promoted "
            "without a comparison"
        ) from error
