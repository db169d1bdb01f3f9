"""What an index version is, what became of its source since, and what a build of the next one found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from touchstone.errors import BadInput
from touchstone.retrieval_config import EmbeddingEndpoint


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexVersion(_Record):
    """Manifest of one version of one table: what a reader needs to find exactly these chunks again."""

    table: str
    version: int
    config_name: str
    config_version: str
    fingerprint: str = Field(description="`RetrievalConfig.index_fingerprint` that the table was built for")
    embedding_model: str
    documents: int
    chunks: int
    content_digest: str = Field(description="Of the documents as they are stored")
    built_at: str
    parent: str | None = Field(default=None, description="Label of the version that was live when this was built")
    search: str = Field(default="semantic", description="How it is meant to be searched, as its config said")
    top_k: int = 8
    source: str = Field(default="", description="`source.path` of its config")
    embedding: EmbeddingEndpoint = Field(default=EmbeddingEndpoint(), description="Where queries are embedded")

    @property
    def label(self) -> str:
        return f"{self.table}@{self.version}"

    @property
    def has_words(self) -> bool:
        """It can be searched by words, too."""
        return self.search != "semantic"

    def serves_like(self, other: IndexVersion) -> bool:
        """Readers of `other` would find the same here; a clean-up makes such versions."""
        same = self.table == other.table and self.content_digest == other.content_digest
        return same and (self.has_words or not other.has_words)


class IndexedDocument(_Record):
    """One document as a version holds it."""

    id: str
    content_hash: str = Field(description="Of title and text")
    record_hash: str = Field(description="Of all that is stored: a new date changes it, and embeds nothing")
    embedded_at: str
    chunks: int


class UnreadableDocument(_Record):
    """A document that the source holds and nobody can read."""

    where: str = Field(description="file:line")
    id: str | None = Field(description="None: not even that could be read")
    reason: str


class SourceChanges(_Record):
    """A source against what an index holds of it; every list in order of id."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = Field(default=(), description="Title or text differ")
    touched: tuple[str, ...] = Field(default=(), description="Only the date or the address differ")
    deleted: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = Field(default=(), description="(old id, new id), the same title and text")
    unreadable: tuple[UnreadableDocument, ...] = ()
    kept: tuple[str, ...] = Field(default=(), description="Unreadable now, served at their last good version")
    unchanged: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changed or self.touched or self.deleted or self.renamed)


def compare_source(
    indexed: Iterable[IndexedDocument],
    source: Mapping[str, tuple[str, str]],
    unreadable: Collection[UnreadableDocument] = (),
) -> SourceChanges:
    """Tell what changed. `source` gives (content hash, record hash) by document id.

    An indexed document that is unreadable now is kept. When the id of an unreadable one is not known, any document
    that is missing may be it, so all that are missing are kept rather than deleted by mistake.
    """
    held = {document.id: document for document in indexed}
    broken = {document.id for document in unreadable}
    missing = held.keys() - source.keys()
    kept = missing if None in broken else missing & broken
    deleted, added = missing - kept, source.keys() - held.keys()
    renamed = _renamed({id: held[id].content_hash for id in sorted(deleted)}, source, sorted(added))
    # In the mapping's own order: in that of a set, looking up 200,000 ids takes five times as long.
    differ = {
        id
        for id, document in held.items()
        if id in source and source[id] != (document.content_hash, document.record_hash)
    }
    changed = {id for id in differ if held[id].content_hash != source[id][0]}
    touched = differ - changed
    return SourceChanges(
        added=tuple(sorted(added - {new for _, new in renamed})),
        changed=tuple(sorted(changed)),
        touched=tuple(sorted(touched)),
        deleted=tuple(sorted(deleted - {old for old, _ in renamed})),
        renamed=renamed,
        unreadable=tuple(sorted(unreadable, key=lambda document: document.where)),
        kept=tuple(sorted(kept)),
        unchanged=len(held) - len(missing) - len(differ),
    )


def check_shrink(changes: SourceChanges, indexed: int, max_shrink: float, moved_from: str = "") -> None:
    """Raise BadInput when a source lost more of its documents than anybody deletes on purpose.

    `moved_from` is the source that the live index was built from, when that is another one.
    """
    lost = len(changes.deleted)
    if indexed and lost / indexed > max_shrink:
        if moved_from:
            raise BadInput(
                f"the live index of this name was built from {moved_from}, and {lost} of its {indexed} documents are "
                "not in this config's source: nothing was built. Two configs must not share a name; when the source "
                "moved, run with --allow-shrink"
            )
        raise BadInput(
            f"the source lost {lost} of {indexed} documents ({lost / indexed:.0%}; gate.max_shrink is "
            f"{max_shrink:.0%}), {', '.join(changes.deleted[:3])} first among them: nothing was built. "
            "Restore them, or run with --allow-shrink when they are meant to be gone"
        )


def _renamed(
    gone: Mapping[str, str], source: Mapping[str, tuple[str, str]], added: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """A new id with the content of one that is gone; each old id is used once, equal documents in order of id."""
    left: dict[str, list[str]] = {}
    for old, content in reversed(list(gone.items())):
        left.setdefault(content, []).append(old)
    pairs = [(left[content].pop(), new) for new in added if left.get(content := source[new][0])]
    return tuple(sorted(pairs))


class QuarantinedChunk(_Record):
    """A chunk that was kept out of the index, and why; its text is quoted nowhere."""

    chunk_id: str
    document_id: str
    rules: tuple[str, ...] = Field(description="Names of the injection rules or kinds of personal data that matched")


class Expectation(_Record):
    """One check of a build before the switch."""

    name: str
    passed: bool
    detail: str


class Validation(_Record):
    """All checks of a build; `report_path` is the data docs page, relative to the state folder."""

    passed: bool
    expectations: tuple[Expectation, ...]
    report_path: str | None = None

    @property
    def failures(self) -> tuple[Expectation, ...]:
        return tuple(expectation for expectation in self.expectations if not expectation.passed)


class MetricComparison(_Record):
    """One retrieval metric of the new version against the live one, on the same golden cases."""

    metric: str
    live: float | None = Field(description="None: there is no live version to compare with")
    new: float
    difference: float | None = None
    lower_bound: float | None = Field(default=None, description="One-sided 95 % bound of the mean paired difference")
    margin: float
    n: int
    not_inferior: bool | None


class WorstCase(_Record):
    """A golden case that the new version serves worse than the live one."""

    case_id: str
    metric: str
    live: float
    new: float


class RetrievalEvaluation(_Record):
    """May readers be switched to the new version, as far as retrieval tells?"""

    verdict: str = Field(description="pass | fail | unmeasurable | skipped")
    reason: str
    recall_vs_exact: float | None = Field(default=None, description="Recall@k of the search against exact search")
    comparisons: tuple[MetricComparison, ...] = ()
    worst_cases: tuple[WorstCase, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        recall = {} if self.recall_vs_exact is None else {"recall_vs_exact": self.recall_vs_exact}
        return recall | {comparison.metric: comparison.new for comparison in self.comparisons}


class Outcome(StrEnum):
    """What became of a build."""

    PROMOTED = "promoted"
    CURRENT = "current"  # the live index already holds the source as it is
    HELD_BACK = "held back"  # it is what somebody rolled back from
    READY = "ready"  # nothing speaks against it, but promotion was not asked for
    REJECTED = "rejected"
    UNMEASURABLE = "unmeasurable"
    FAILED = "failed"  # it stopped before there was anything to judge


def decide_switch(
    validation: Validation, retrieval: RetrievalEvaluation | None, lost: Collection[str]
) -> tuple[Outcome, str]:
    """READY, or why readers may not be switched. Absence of evidence is no pass; having no golden set is a choice.

    `lost` are unreadable documents that readers are served now and the new version has not.
    """
    if lost:
        names = ", ".join(sorted(lost)[:5])
        return Outcome.REJECTED, f"unreadable documents would be lost: {names}; repair them, or delete them"
    if not validation.passed or retrieval is None:
        failed = "; ".join(f"{expectation.name}: {expectation.detail}" for expectation in validation.failures)
        return Outcome.REJECTED, f"validation failed: {failed}"
    if retrieval.verdict in {"pass", "skipped"}:
        return Outcome.READY, retrieval.reason
    return (Outcome.UNMEASURABLE if retrieval.verdict == "unmeasurable" else Outcome.REJECTED), retrieval.reason


class BuildReport(_Record):
    """All that is known of one build; the ledger keeps it, MLflow and Prefect show it."""

    build_key: str
    config_name: str
    config_version: str
    started_at: str
    trigger: str = Field(description="Who asked: hand, schedule, or an event's name")
    index: IndexVersion | None = Field(default=None, description="None: the build stopped before there was one")
    live_before: str | None = None
    outcome: Outcome = Outcome.FAILED
    reason: str = ""
    changes: SourceChanges = SourceChanges()
    documents: int = 0
    chunks: int = 0
    embedded_chunks: int = 0
    reused_chunks: int = 0
    quarantined: tuple[QuarantinedChunk, ...] = ()
    suspicious: tuple[QuarantinedChunk, ...] = Field(default=(), description="Indexed all the same, by policy")
    pii: dict[str, int] = Field(default_factory=dict, description="Chunks by kind of personal data found")
    validation: Validation | None = None
    retrieval: RetrievalEvaluation | None = None
    embedding_calls: int = 0
    cost_usd: float | None = Field(default=0.0, description="None: the price is unknown, not free")
    embed_s: float = 0.0
    wall_s: float = 0.0
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None

    @property
    def promoted(self) -> bool:
        return self.outcome is Outcome.PROMOTED

    @property
    def is_fine(self) -> bool:
        """Nobody has to look at it."""
        return self.outcome in {Outcome.PROMOTED, Outcome.CURRENT, Outcome.HELD_BACK, Outcome.READY}

    def summary(self) -> dict[str, Any]:
        """The object that `touchstone reindex --json` prints."""
        full = self.model_dump(mode="json", exclude={"index", "changes", "retrieval"})
        return full | {
            "promoted": self.promoted,
            "index_version": self.index.label if self.index else None,
            "added_documents": len(self.changes.added),
            "changed_documents": len(self.changes.changed),
            "deleted_documents": len(self.changes.deleted),
            "renamed_documents": len(self.changes.renamed),
            "unreadable": [document.model_dump() for document in self.changes.unreadable],
            "kept_documents": list(self.changes.kept),
            "retrieval_metrics": self.retrieval.metrics if self.retrieval else {},
            "retrieval_evaluation": self.retrieval.model_dump(mode="json") if self.retrieval else None,
        }
