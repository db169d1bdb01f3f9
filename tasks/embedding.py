"""Texts to unit vectors: the embedded MiniLM, a hashing stand-in for fast tests, or a vendor through LiteLLM."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from touchstone.bundle import Endpoint, Judge
from touchstone.retrieval_config import EmbeddingEndpoint, RetrievalConfig
from touchstone.settings import Settings

Floats = NDArray[np.float32]

_LOCAL = ("minilm", "hashing")
_ABOUT_A_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")
_loading = threading.RLock()


@dataclass(frozen=True)
class EmbeddingSpend:
    """What an embedder's finished vendor calls came to; local models call nobody and cost nothing."""

    calls: int = 0
    input_tokens: int = 0
    cost_usd: float | None = 0.0  # None: the price is unknown, not free
    served_models: tuple[str, ...] = ()  # as the vendor names them, in order of appearance


class Embedder(Protocol):
    """What an index and a retriever need of an embedding model."""

    @property
    def name(self) -> str:
        """As `embedding_model` of a retrieval config gives it."""
        ...

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int | None:
        """What the model reads of a text; None: not known."""
        ...

    @property
    def spent(self) -> EmbeddingSpend:
        """So far, by all threads."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """One unit row per text; safe to call from several threads."""
        ...

    @property
    def requests_at_once(self) -> int:
        """How many calls of `embed` go on beside each other; 1 for a model that has all cores to itself."""
        ...

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the tokens."""
        ...


def load_embedder(name: str, *, endpoint: EmbeddingEndpoint | None = None) -> Embedder:
    """`minilm`, `hashing`, or a LiteLLM id; one object per process and set of arguments, without a spend cap.

    Raises BadInput when the vendor is not known or its key is missing.
    """
    with _loading:  # functools.cache alone would let two threads load the weights twice
        where = endpoint or EmbeddingEndpoint()
        return _embedder(name, where.api_base, where.api_key_env, where.usd_per_million_tokens)


def open_embedder(config: RetrievalConfig, settings: Settings, *, max_cost_usd: float | None = None) -> Embedder:
    """An embedder that counts for one build: its own spend, under `max_cost_usd` or else the config's own cap.

    Local models are heavy and spend nothing: they stay shared by the process. Raises BadInput before any call when
    the vendor is not known, its key is missing, or the cap cannot be kept because the price is unknown.
    """
    endpoint = vendor_of(config.embedding_model, config.embedding)
    if endpoint is None:
        return load_embedder(config.embedding_model)
    from tasks.vendor_embedding import VendorEmbedder
    from tasks.vendor_endpoint import check_cap, check_endpoint

    cap_usd = config.gate.max_cost_usd if max_cost_usd is None else max_cost_usd
    check_endpoint(endpoint, "embedding_model")
    check_cap(endpoint, cap_usd, "add `embedding: {usd_per_million_tokens: ...}` to the retrieval config", "embedding")
    return VendorEmbedder(
        endpoint,
        concurrency=settings.concurrency,
        deadline_s=settings.deadline_s,
        attempts=settings.attempts,
        max_cost_usd=cap_usd,
    )


def vendor_of(name: str, where: EmbeddingEndpoint, section: str = "embedding") -> Endpoint | None:
    """Where a vendor's model is called; None for a local one. Raises BadInput when field `section` is no good."""
    if name in _LOCAL:
        return None
    from tasks.vendor_endpoint import embedding_endpoint

    return embedding_endpoint(name, where, section)


def judge_embedding(judge: Judge) -> Endpoint | None:
    """The vendor's embedding model that a judge uses; None for a local one. Raises BadInput."""
    return vendor_of(judge.embedding_model, judge.embedding, "judge.embedding")


def usd_per_million_tokens(config: RetrievalConfig) -> float | None:
    """What embedding costs with this config: 0 for local models; None: the price is unknown, not free."""
    endpoint = vendor_of(config.embedding_model, config.embedding)
    if endpoint is None:
        return 0.0
    from tasks.vendor_endpoint import price_of

    price = price_of(endpoint, "embedding")
    return price.input_per_million if price else None


@functools.cache
def _embedder(name: str, api_base: str | None, api_key_env: str | None, usd: float | None) -> Embedder:
    if name == "minilm":
        from tasks.minilm import load_minilm

        return load_minilm()
    where = EmbeddingEndpoint(api_base=api_base, api_key_env=api_key_env, usd_per_million_tokens=usd)
    endpoint = vendor_of(name, where)
    if endpoint is None:
        return HashingEmbedder()
    from tasks.vendor_embedding import VendorEmbedder
    from tasks.vendor_endpoint import check_endpoint

    check_endpoint(endpoint, "embedding_model")
    return VendorEmbedder(endpoint)


class HashingEmbedder:
    """Words hashed to 384 buckets: needs no model, knows no synonyms; for fast tests, never for a quality claim."""

    name = "hashing"
    dimension = 384
    max_tokens = None
    requests_at_once = 1
    spent = EmbeddingSpend()

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(n_features=self.dimension, stop_words="english")

    def embed(self, texts: Sequence[str]) -> Floats:
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        counts: Any = self._vectorizer.transform(texts)
        return _unit_rows(counts.toarray())

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        return about_tokens(text)


def about_tokens(text: str) -> list[tuple[int, int]]:
    """At most six letters, or one mark: near enough to size chunks by, where the model's own tokens are not known."""
    return [match.span() for match in _ABOUT_A_TOKEN.finditer(text)]


def _unit_rows(rows: Floats) -> Floats:
    """Rows of length one; a row of zeros (no known word) points along the first axis, so that cosine is defined."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(norms > 0, rows / np.where(norms > 0, norms, 1), 0)
    rows[norms[:, 0] == 0, 0] = 1
    return rows.astype(np.float32)
