"""Retrieval configs: how documents become chunks, and how a question finds them."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.prompts import SEMVER


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Closed):
    """Where the documents are: a folder of .md, .txt and .html, or a .jsonl file."""

    path: str
    max_document_mb: float = Field(default=10, gt=0, description="A longer document counts as unreadable")


class FreshnessSla(_Closed):
    """What the index owes its readers; changing it changes no fingerprint. Shares are of retrieved chunks."""

    max_age_days: float = Field(default=30, gt=0, description="Days since a document was last seen equal to its source")
    stale_fraction: float = Field(default=0.20, ge=0, le=1, description="Share that may be older than that")
    source_lag: float = Field(default=0.05, ge=0, le=1, description="Share whose source changed since embedding")
    ghosts: float = Field(default=0.02, ge=0, le=1, description="Share whose source is gone")
    never_embedded: float = Field(default=0.10, ge=0, le=1, description="Share of the source's documents not indexed")
    persistence: int = Field(default=1, ge=1, le=100, description="Checks in a row before a breach is announced")
    window_days: float = Field(default=7, gt=0, description="Production retrievals that count")


class EmbeddingEndpoint(_Closed):
    """Where a vendor's embedding model is called, when LiteLLM's own defaults do not say it."""

    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="Variable that holds the key")
    usd_per_million_tokens: float | None = Field(default=None, ge=0, description="When LiteLLM does not know the price")


class BuildGate(_Closed):
    """What a build must show before readers are switched to it."""

    dataset: str = Field(default="", description="Golden set to evaluate on: a name in datasets/, or a folder")
    margin: float = Field(default=0.05, gt=0, lt=1, description="Loss per retrieval metric that is still not inferior")
    minimum_recall: float = Field(default=0.95, ge=0, le=1, description="Recall@k of the index against exact search")
    max_shrink: float = Field(default=0.30, ge=0, le=1, description="Share of documents a source may lose at once")
    max_chunk_change: float = Field(default=0.50, ge=0, description="Allowed relative change of the number of chunks")
    max_cost_usd: float | None = Field(default=None, gt=0, description="Spend cap for embedding one build")


class IngestScan(_Closed):
    """What happens to chunks that look like prompt injection, or hold personal data."""

    injection: Literal["quarantine", "report", "off"] = "quarantine"
    pii: Literal["quarantine", "report", "off"] = "report"
    allow: tuple[str, ...] = Field(default=(), description="Ids of documents that are indexed whatever is found")


class QueryDriftPolicy(_Closed):
    """When production queries count as moved away from the reference window."""

    centroid_flag: float = Field(default=0.90, ge=-1, le=1, description="Cosine of the two centroids below this")
    centroid_act: float = Field(default=0.85, ge=-1, le=1)
    psi_flag: float = Field(default=0.10, ge=0, description="Population stability index above this")
    psi_act: float = Field(default=0.20, ge=0)
    windows: int = Field(default=3, ge=1, le=100, description="Windows in a row before it is announced")
    window_days: float = Field(default=1, gt=0)
    reference_days: float = Field(default=14, gt=0)
    minimum_queries: int = Field(default=100, ge=2, description="In each of the two; fewer are unmeasurable")


class RetrievalConfig(_Closed):
    """retrieval_configs/<name>.yaml"""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    version: str
    source: Source
    embedding_model: str = Field(default="minilm", description="`minilm`, `hashing`, or a LiteLLM id")
    chunk_size: int = Field(default=512, ge=16, le=8192, description="Tokens of the embedding model")
    chunk_overlap: int = Field(default=64, ge=0)
    top_k: int = Field(default=8, ge=1, le=1000)
    search: Literal["semantic", "keyword", "hybrid"] = "semantic"
    index: Literal["auto", "flat", "hnsw", "pq"] = Field(default="auto", description="auto: by the number of chunks")
    embedding: EmbeddingEndpoint = EmbeddingEndpoint()
    freshness: FreshnessSla = FreshnessSla()
    gate: BuildGate = BuildGate()
    scan: IngestScan = IngestScan()
    query_drift: QueryDriftPolicy = QueryDriftPolicy()

    @field_validator("version")
    @classmethod
    def version_is_semver(cls, version: str) -> str:
        if not SEMVER.fullmatch(version):
            raise ValueError(f"{version!r} is not a semantic version such as 1.0.0")
        return version

    @model_validator(mode="after")
    def overlap_is_smaller(self) -> RetrievalConfig:
        if self.chunk_overlap >= self.chunk_size:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) must be smaller than chunk_size ({self.chunk_size})"
            )
        return self

    @property
    def index_fingerprint(self) -> str:
        """Digest of what decides the stored chunks: configs that differ only in the search share a table."""
        content = self.model_dump_json(include=_fields("embedding_model", "chunk_size", "chunk_overlap", "index"))
        content += self.embedding.api_base or ""  # one model name behind two addresses may be two models
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """Digest of what decides an answer: the stored chunks and how they are searched."""
        content = self.model_dump_json(
            include=_fields("embedding_model", "chunk_size", "chunk_overlap", "top_k", "search", "index")
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _fields(*names: str) -> dict[str, Any]:
    """What a fingerprint is made of: these fields, and of the source only its path."""
    return {"source": {"path"}} | dict.fromkeys(names, True)
