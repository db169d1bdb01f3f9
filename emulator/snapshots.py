"""Which model answers behind a name: the good snapshot, a quietly worse one, a terse one."""

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Temperament:
    """How one snapshot answers; the request cannot show it."""

    sentences: int | None = None  # None: as many as the instructions allow
    refusal_threshold: float = 0.48  # share of the question that the context must support
    slip: float = 0.0  # how often the second-best sentence is taken for the best
    obeys: float = 0.0  # how often an order inside the question is followed
    trusts_documents: bool = False  # answers from sentences that are orders to a model
    words: int | None = None  # cut every answer after so many words


GOOD = Temperament()
DEGRADED = Temperament(sentences=1, refusal_threshold=0.02, slip=0.3, obeys=0.6, trusts_documents=True)
TERSE = Temperament(sentences=1, words=10)


def temperament(snapshot: str) -> Temperament:
    """The temperament that a snapshot's name stands for."""
    if re.search(r"-(?:lite|degraded)\b", snapshot):
        return DEGRADED
    return TERSE if re.search(r"-terse\b", snapshot) else GOOD


def chance(*keys: object) -> float:
    """A number in [0, 1) that depends on its keys alone, in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
