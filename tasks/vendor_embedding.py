"""A vendor's embedding model for callers on threads: batches in flight at once, under one spend cap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tasks.embedding import Embedder, EmbeddingSpend, Floats, about_tokens
from tasks.vendor import Vendor
from tasks.vendor_endpoint import most_input_tokens
from tasks.vendor_errors import RequestRefused
from tasks.vendor_library import litellm_module
from tasks.vendor_loop import wait_for
from touchstone.bundle import Endpoint
from touchstone.cost import Budget
from touchstone.errors import BadInput, InvalidAnswer
from touchstone.results import Call

_BATCH_TEXTS = 96  # the smallest limit among vendors
_BATCH_BYTES = 48_000  # about 12,000 tokens: vendors bound the sum too, the strictest at 16,000
_COMPARED = 3


class VendorEmbedder:
    """An embedding model behind LiteLLM; the dimension is what its first answer has.

    All threads share its limit of calls in flight, its circuit breaker and its budget, which live on one event loop.
    A copy in another process starts with the cap that is left here, and counts for itself.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrency: int = 32,
        deadline_s: float = 60.0,
        attempts: int = 4,
        max_cost_usd: float | None = None,
    ) -> None:
        self.name = endpoint.model
        self._endpoint = endpoint
        self._vendor = Vendor(concurrency, deadline_s, attempts, Budget(max_cost_usd))
        self._dimension: int | None = None
        self._spent = EmbeddingSpend()

    def __reduce__(self) -> tuple[Any, ...]:  # its event loop's locks cannot travel
        return _copied, (self._endpoint, self._vendor.concurrency, self._vendor.deadline_s, self._vendor.attempts,
                         self._cap_left)  # fmt: skip

    @property
    def dimension(self) -> int:
        """Asks the vendor when no text was embedded yet."""
        if self._dimension is None:
            self.embed(["dimension"])
        assert self._dimension is not None  # embed() has set it or raised
        return self._dimension

    @property
    def max_tokens(self) -> int | None:
        return most_input_tokens(self.name)

    @property
    def spent(self) -> EmbeddingSpend:
        return self._spent

    @property
    def requests_at_once(self) -> int:
        return self._vendor.concurrency

    def embed(self, texts: Sequence[str]) -> Floats:
        """One unit row per text. Raises a CaseFailure, or BadInput when the vendor refuses model, key or text.

        When one batch fails those in flight are dropped, and may have been billed.
        """
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        litellm_module()  # imported here: on the loop it would hold up the calls of others
        return wait_for(self._embed_all(texts))

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        return about_tokens(text)

    async def _embed_all(self, texts: Sequence[str]) -> Floats:
        try:
            async with asyncio.TaskGroup() as group:
                batches = [group.create_task(self._embed_batch(batch)) for batch in _batches(texts)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return np.vstack([batch.result() for batch in batches])

    async def _embed_batch(self, texts: Sequence[str]) -> Floats:
        try:
            rows, call = await self._vendor.embed(self._endpoint, texts)
        except RequestRefused as refused:
            raise BadInput(f"embedding_model {self.name}: {refused}") from None
        self._spent = _with_call(self._spent, call)
        if self._dimension is None:
            self._dimension = rows.shape[1]
        if rows.shape[1] != self._dimension:
            raise InvalidAnswer(f"{self.name} changed its dimension from {self._dimension} to {rows.shape[1]}")
        return rows

    @property
    def _cap_left(self) -> float | None:
        budget = self._vendor.budget
        return None if budget.cap_usd is None else max(0.0, budget.cap_usd - budget.spent_usd)


def check_same_model(
    embedder: Embedder, texts: Sequence[str], vectors: Sequence[Floats] | Floats, tolerance: float = 1e-3
) -> None:
    """Embed up to 3 indexed texts again; raise BadInput when the vendor's model is not the one that embedded them.

    `vectors` are the stored rows of `texts`. A cosine below 1 - tolerance is another space: distances between the
    two mean nothing, so an index must not hold both. Local models cannot move and are not asked.
    """
    if not isinstance(embedder, VendorEmbedder) or not texts:
        return
    stored = np.asarray(vectors[:_COMPARED], dtype=np.float64)
    again = embedder.embed(list(texts[:_COMPARED])).astype(np.float64)
    if stored.shape[1] != again.shape[1]:
        found = f"its vectors have {again.shape[1]} numbers, the index holds vectors of {stored.shape[1]}"
    else:
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(again, axis=1)
        nearest = float(((stored * again).sum(axis=1) / np.where(lengths > 0, lengths, 1)).min())
        if nearest >= 1 - tolerance:
            return
        found = f"a text that is already indexed now has a vector of cosine {nearest:.4f} to its stored one"
    raise BadInput(
        f"embedding_model {embedder.name} moved: {found}. New chunks would not be comparable with old ones. "
        "Pin another embedding_model (it gets an index and a cache of its own); to stay with this one as it is now, "
        "delete the index's table and the embedding cache, and build all of it again"
    )


def _copied(
    endpoint: Endpoint, concurrency: int, deadline_s: float, attempts: int, max_cost_usd: float | None
) -> VendorEmbedder:
    return VendorEmbedder(
        endpoint, concurrency=concurrency, deadline_s=deadline_s, attempts=attempts, max_cost_usd=max_cost_usd
    )


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many texts as a request may hold, in their order; a text that is too long goes alone."""
    start, size = 0, 0
    for place, text in enumerate(texts):
        length = len(text.encode())
        if place > start and (place - start == _BATCH_TEXTS or size + length > _BATCH_BYTES):
            yield texts[start:place]
            start, size = place, 0
        size += length
    yield texts[start:]


def _with_call(spent: EmbeddingSpend, call: Call) -> EmbeddingSpend:
    known = spent.cost_usd is not None and call.cost_usd is not None
    models = spent.served_models
    if call.served_model and call.served_model not in models:
        models = (*models, call.served_model)
    return replace(
        spent,
        calls=spent.calls + 1,
        input_tokens=spent.input_tokens + call.input_tokens,
        cost_usd=(spent.cost_usd or 0.0) + (call.cost_usd or 0.0) if known else None,
        served_models=models,
    )
