"""One embedding call in LiteLLM's words: the request built, its vectors read under a strict contract."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.vendor_endpoint import access, price_of, provider
from touchstone.bundle import Endpoint
from touchstone.cost import call_cost, most_tokens
from touchstone.errors import InvalidAnswer
from touchstone.results import Call

Floats = NDArray[np.float32]

# LiteLLM takes a text that begins so for a file, and fetches it or sends another kind of request.
_TAKEN_FOR_FILES = ("data:", "files/", "gs://", "https://generativelanguage.googleapis.com/")


def vector_request(endpoint: Endpoint, texts: Sequence[str]) -> dict[str, Any]:
    """LiteLLM's arguments for the vectors of some texts."""
    request = access(endpoint) | {"input": [_as_text(text) for text in texts]}
    if provider(endpoint.model) == "openai":
        request["encoding_format"] = "base64"  # as its own client asks by default; floats cost 4 times the CPU to read
    return request


def most_vector_cost(endpoint: Endpoint, texts: Sequence[str]) -> float | None:
    """USD that one attempt can cost at most; None: the price is unknown."""
    return call_cost(price_of(endpoint, "embedding"), sum(map(most_tokens, texts)), 0)


def read_vectors(response: Any, endpoint: Endpoint, n_texts: int, about: Call) -> tuple[Floats, Call]:
    """One unit row per text, and `about` completed by what the answer says of itself.

    Raises InvalidAnswer unless there is one vector per text, all of one dimension, finite and not zero.
    """
    rows = _rows([dict(item) for item in response.data or ()], n_texts)
    into = getattr(getattr(response, "usage", None), "prompt_tokens", 0) or 0
    told = {
        "served_model": response.model or None,
        "input_tokens": into,
        "cost_usd": call_cost(price_of(endpoint, "embedding"), into, 0) if into else None,
    }
    return rows, about.model_copy(update=told)


def _as_text(text: str) -> str:
    return f" {text}" if text.startswith(_TAKEN_FOR_FILES) else text


def _rows(items: Sequence[dict[str, Any]], n_texts: int) -> Floats:
    if len(items) != n_texts:
        raise InvalidAnswer(f"{len(items)} vectors were sent for {n_texts} texts")
    by_place = {item.get("index"): item.get("embedding") for item in items}
    if by_place.keys() != set(range(n_texts)):
        raise InvalidAnswer(f"the vectors do not say which text each is of: their indexes are {list(by_place)[:5]}")
    vectors = [_vector(by_place[place]) for place in range(n_texts)]
    dimensions = {len(vector) for vector in vectors}
    if len(dimensions) > 1 or dimensions == {0}:
        raise InvalidAnswer(f"the vectors of one answer have {' or '.join(map(str, sorted(dimensions)))} numbers")
    rows = np.stack(vectors)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise InvalidAnswer("a vector is zero or not finite")
    return (rows / lengths).astype(np.float32)


def _vector(sent: object) -> Floats:
    """As numbers, or as base64 of little-endian float32."""
    try:
        if isinstance(sent, str):
            return np.frombuffer(base64.b64decode(sent, validate=True), dtype="<f4")
        return np.asarray(sent, dtype=np.float32).reshape(-1)
    except (ValueError, TypeError, binascii.Error):
        raise InvalidAnswer(f"a vector cannot be read: {str(sent)[:60]!r}") from None
