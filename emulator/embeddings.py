"""Deterministic embeddings: hashed words, word pairs and letter triples, on the unit sphere."""

import base64
import zlib
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise

import numpy as np

from emulator.language import STOP_WORDS, stem, words

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 8192


@lru_cache(maxsize=10_000)
def embed(text: str, dimensions: int) -> np.ndarray:
    """The vector of a text: texts that share words are near, the same text is always the same vector."""
    vector = np.zeros(dimensions, dtype=np.float32)
    for feature, weight in _features(text).items():
        code = zlib.crc32(feature.encode())
        vector[(code >> 1) % dimensions] += weight if code & 1 else -weight
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        vector[zlib.crc32(text.encode()) % dimensions] = length = 1.0
    vector /= length
    vector.setflags(write=False)
    return vector


def as_json(vector: np.ndarray, encoding: str) -> object:
    """A vector as OpenAI sends it: a list of numbers, or base64 of float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


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
