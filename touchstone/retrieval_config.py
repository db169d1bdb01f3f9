"""Retrieval configs: how documents become chunks, and how a question finds them."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.prompts import SEMVER


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Closed):
    """Where the documents are: a folder of .md, .txt and .html, or a .jsonl file."""

    path: str


class FreshnessSla(_Closed):
    """What the index owes its readers; changing it changes no fingerprint."""

    max_age_days: float = Field(default=30, gt=0)
    stale_fraction: float = Field(default=0.20, ge=0, le=1)
    source_lag: float = Field(default=0.05, ge=0, le=1, description="Share of retrieved chunks whose source changed")


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
    index: Literal["flat", "hnsw", "pq"] = "flat"
    freshness: FreshnessSla = FreshnessSla()

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
        content = self.model_dump_json(include={"source", "embedding_model", "chunk_size", "chunk_overlap", "index"})
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """Digest of what decides an answer: the stored chunks and how they are searched."""
        content = self.model_dump_json(exclude={"name", "version", "freshness"})
        return hashlib.sha256(content.encode()).hexdigest()[:16]
