"""Deterministic embeddings: hashed words, word pairs and letter triples, on the unit sphere."""

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import orjson

from emulator.language import STOP_WORDS, stem, words
from emulator.wire import BadRequest, read_object

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 8192


@dataclass(frozen=True)
class EmbeddingRequest:
    """One embeddings call, whichever vendor it was sent to."""

    model: str
    texts: tuple[str, ...]
    dimensions: int
    encoding: str

    @property
    def tokens(self) -> int:
        """What the vendor bills."""
        return sum(len(text) // 4 + 1 for text in self.texts)


@lru_cache(maxsize=10_000)
def embed(text: str, dimensions: int, snapshot: str = "") -> np.ndarray:
    """The vector of a text: texts that share words are near, the same text is always the same vector.

    Each snapshot has a space of its own: between two of them the same text is nowhere near itself.
    """
    vector, space = np.zeros(dimensions, dtype=np.float32), zlib.crc32(snapshot.encode())
    for feature, weight in _features(text).items():
        code = zlib.crc32(feature.encode() + space.to_bytes(4, "big"))
        vector[(code >> 1) % dimensions] += weight if code & 1 else -weight
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        vector[zlib.crc32(text.encode(), space) % dimensions] = length = 1.0
    vector /= length
    vector.setflags(write=False)
    return vector


def read_embedding(raw: bytes, gemini_model: str | None = None) -> EmbeddingRequest:
    """Read an embeddings request in OpenAI's shape, or in Gemini's, whose path names the model."""
    data = read_object(raw)
    if gemini_model is not None:
        try:
            texts = ["".join(part["text"] for part in each["content"]["parts"]) for each in data["requests"]]
            dimensions = data["requests"][0].get("outputDimensionality") or DEFAULT_DIMENSIONS
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise BadRequest(f"the request does not have the vendor's shape: {error}") from None
        return EmbeddingRequest(gemini_model, _texts(texts), _size(dimensions), "float")
    encoding = data.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise BadRequest(f"'encoding_format' must be float or base64, not {encoding!r}", "encoding_format")
    dimensions = _size(data.get("dimensions", DEFAULT_DIMENSIONS))
    return EmbeddingRequest(str(data.get("model", "")), _texts(data.get("input")), dimensions, encoding)


def write_vectors(request: EmbeddingRequest, vectors: Sequence[np.ndarray], places: Sequence[int], shown: str) -> bytes:
    """The answer in OpenAI's shape; `places` are the indexes that the vectors claim."""
    rows = [
        {"object": "embedding", "index": place, "embedding": _as_json(vector, request.encoding)}
        for place, vector in zip(places, vectors, strict=True)
    ]
    usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
    return _dumped({"object": "list", "data": rows, "model": shown, "usage": usage}, vectors)


def write_gemini_vectors(vectors: Sequence[np.ndarray]) -> bytes:
    """The answer in Gemini's shape, which tells neither model nor usage."""
    return _dumped({"embeddings": [{"values": vector.tolist()} for vector in vectors]}, vectors)


def damaged(vectors: Sequence[np.ndarray], kind: str) -> tuple[list[np.ndarray], list[int]]:
    """What a fault of this kind leaves of an answer: its vectors, and the indexes that they claim."""
    found, places = list(vectors), list(range(len(vectors)))
    if kind == "missing_vector":
        return found[:-1], places[:-1]
    if kind == "shuffled_vectors":  # each still says which text it is of
        return found[::-1], places[::-1]
    if kind == "ragged_vectors":
        found[-1] = found[-1][:-1]
    elif kind == "nan_vector":
        found[-1] = np.where(np.arange(len(found[-1])) == 0, np.nan, found[-1])
    elif kind == "zero_vector":
        found[-1] = np.zeros_like(found[-1])
    return found, places


def _texts(given: object) -> tuple[str, ...]:
    rows = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if not all(isinstance(row, str | list) and row for row in rows):
        raise BadRequest("'input' must be a non-empty string or a list of them", "input")
    # Lists of token numbers are embedded as such: no tokenizer is at hand to turn them back.
    return tuple(" ".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)


def _size(dimensions: object) -> int:
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadRequest(f"'dimensions' must be a whole number from 1 to {MAX_DIMENSIONS}", "dimensions")
    return dimensions


def _as_json(vector: np.ndarray, encoding: str) -> object:
    """A vector as OpenAI sends it: a list of numbers, or base64 of float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _dumped(answer: Mapping[str, Any], vectors: Sequence[np.ndarray]) -> bytes:
    if all(np.isfinite(vector).all() for vector in vectors):
        return orjson.dumps(answer)
    return json.dumps(answer).encode()  # writes NaN, as some servers do; orjson would write null


def _features(text: str) -> dict[str, float]:
    tokens = words(text)
    features: defaultdict[str, float] = defaultdict(float)
    stems = [stem(token) for token in tokens]
    for token, root in zip(tokens, stems, strict=True):
        common = token in STOP_WORDS
        features[root] += 0.2 if common else 1.0
        if not common:
            padded = f"<{root}>"
            for start in range(len(padded) - 2):
                features["#" + padded[start : start + 3]] += 0.25
    for first, second in pairwise(stems):
        features[f"{first} {second}"] += 0.3
    # Square roots: a word said ten times is not ten times as much what the text is about.
    return {feature: weight**0.5 for feature, weight in features.items()}
