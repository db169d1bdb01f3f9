"""What a new index version must show before readers are switched to it, measured on the real tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from touchstone.index import IndexVersion, RetrievalEvaluation, SourceChanges, Validation, compare_source
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

_PROBES = 3


def reader_changes(settings: Settings, live: LivePointer | None, source: SourceSnapshot) -> SourceChanges:
    """The source against what readers are served now; a new date alone is no change to them."""
    held = indexed_documents(settings.lance, live.index) if live else []
    changes = compare_source(held, source.hashes, source.unreadable)
    return changes.model_copy(update={"touched": (), "unchanged": changes.unchanged + len(changes.touched)})


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
    live: LivePointer | None,
    plan: BuildPlan,
    cases: Sequence[GoldenCase],
) -> Validation:
    """Great Expectations on all chunks of the version; the data docs are kept with the build."""
    table = open_table(settings.lance, index.table, index.version)
    facts = BuildFacts(
        expected_dimension=plan.dimension or table.schema.field("vector").type.list_size,
        chunks_before=live.index.chunks if live and live.index.table == index.table else None,
        max_chunk_change=config.gate.max_chunk_change,
        golden_ids=frozenset(id for case in cases for id in case.relevant_ids or ()),
        quarantined=tuple(plan.scanned.quarantined),
        written=len(plan.scanned.pieces),
    )
    return validate_build(chunk_frame(table), facts, build_folder(settings.state, build_key) / "validation")


def evaluate_version(
    settings: Settings,
    config: RetrievalConfig,
    index: IndexVersion,
    live: LivePointer | None,
    cases: Sequence[GoldenCase],
) -> RetrievalEvaluation:
    """The golden questions on the new version and on the live one, each searched as its config says."""
    new = Retriever.open(config, index, settings.lance)
    if live is None:
        return evaluate_retrieval(config, cases, new, None, config.gate, lance_uri=settings.lance)
    served = config.model_copy(
        update={"embedding_model": live.index.embedding_model, "search": live.index.search, "top_k": live.index.top_k}
    )
    old = Retriever.open(served, live.index, settings.lance)
    return evaluate_retrieval(config, cases, new, old, config.gate, lance_uri=settings.lance)
