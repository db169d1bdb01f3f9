"""Texts to unit vectors: the embedded MiniLM, a hashing stand-in for fast tests, or a vendor through LiteLLM."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.environment import apply_defaults
from touchstone.errors import BadInput, InvalidAnswer, VendorTimeout, VendorUnavailable
from touchstone.privacy import redact_secrets

Floats = NDArray[np.float32]

_VENDOR_BATCH = 96
_VENDOR_ATTEMPTS = 4
_VENDOR_DEADLINE_S = 60.0
_ABOUT_A_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")
_loading = threading.RLock()


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

    def embed(self, texts: Sequence[str]) -> Floats:
        """One unit row per text; safe to call from several threads."""
        ...

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        """Character offsets of the tokens."""
        ...


def load_embedder(name: str, *, api_base: str | None = None, api_key: str | None = None) -> Embedder:
    """`minilm`, `hashing`, or a LiteLLM id; one object per process and set of arguments."""
    with _loading:  # functools.cache alone would let two threads load the weights twice
        return _embedder(name, api_base, api_key)


@functools.cache
def _embedder(name: str, api_base: str | None, api_key: str | None) -> Embedder:
    if name == "minilm":
        from tasks.minilm import load_minilm

        return load_minilm()
    if name == "hashing":
        return HashingEmbedder()
    return VendorEmbedder(name, api_base, api_key)


class HashingEmbedder:
    """Words hashed to 384 buckets: needs no model, knows no synonyms; for fast tests, never for a quality claim."""

    name = "hashing"
    dimension = 384
    max_tokens = None

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


class VendorEmbedder:
    """An embedding model behind LiteLLM; the dimension is what its first answer has."""

    max_tokens = None

    def __init__(self, name: str, api_base: str | None, api_key: str | None) -> None:
        self.name = name
        self._api_base = api_base
        self._api_key = api_key
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        if self._dimension is None:
            self.embed(["dimension"])
        assert self._dimension is not None  # embed() has set it or raised
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Floats:
        batches = [texts[start : start + _VENDOR_BATCH] for start in range(0, len(texts), _VENDOR_BATCH)]
        if not batches:
            return np.zeros((0, self.dimension), dtype=np.float32)
        rows = _unit_rows(np.vstack([self._embed_batch(batch) for batch in batches]))
        return rows

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        return about_tokens(text)

    def _embed_batch(self, texts: Sequence[str]) -> Floats:
        data = self._ask(texts)
        if len(data) != len(texts):
            raise InvalidAnswer(f"{self.name} sent {len(data)} vectors for {len(texts)} texts")
        ordered = sorted(data, key=lambda item: item["index"])
        try:
            rows = np.array([item["embedding"] for item in ordered], dtype=np.float32)
        except ValueError as error:  # ragged, or no numbers
            raise InvalidAnswer(f"{self.name} sent vectors that cannot be read: {error}") from None
        self._check(rows)
        return rows

    def _check(self, rows: Floats) -> None:
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise InvalidAnswer(f"{self.name} sent vectors that are empty or not finite")
        if self._dimension is None:
            self._dimension = rows.shape[1]
        if rows.shape[1] != self._dimension:
            raise InvalidAnswer(f"{self.name} changed its dimension from {self._dimension} to {rows.shape[1]}")

    def _ask(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One call with bounded retries; only what may pass is tried again."""
        litellm = _litellm()
        passing = (litellm.Timeout, litellm.RateLimitError, litellm.APIConnectionError, litellm.InternalServerError)
        passing = (*passing, litellm.ServiceUnavailableError)
        for attempt in range(1, _VENDOR_ATTEMPTS + 1):
            try:
                return self._call(litellm, texts)
            except passing as error:
                if attempt == _VENDOR_ATTEMPTS:
                    kind = VendorTimeout if isinstance(error, litellm.Timeout) else VendorUnavailable
                    raise kind(self._message(error, attempt)) from None
                time.sleep(min(2.0**attempt / 4, 4.0))
            except (litellm.NotFoundError, litellm.BadRequestError, litellm.AuthenticationError) as error:
                raise BadInput(f"embedding_model: {self._message(error, attempt)}") from None
            except Exception as error:  # LiteLLM's tree is wide: whatever else it raises is the vendor's failure
                raise VendorUnavailable(self._message(error, attempt)) from None
        raise AssertionError("unreachable")

    def _call(self, litellm: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
        response = litellm.embedding(
            model=self.name,
            input=list(texts),
            api_base=self._api_base,
            api_key=self._api_key,
            timeout=_VENDOR_DEADLINE_S,
            max_retries=0,
        )
        return [dict(item) for item in response.data or []]

    def _message(self, error: Exception, attempts: int) -> str:
        """LiteLLM's exceptions echo the vendor's body, which may echo the key."""
        text = redact_secrets(" ".join(str(error).split()), (self._api_key or "",))[:300]
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        return f"{self.name} could not embed{tries}: {type(error).__name__}: {text}"


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


def _litellm() -> Any:
    """Imported late (4 s), and never before it is told not to fetch its price list."""
    apply_defaults()
    import litellm

    return litellm
