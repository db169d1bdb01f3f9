"""What the index benchmarks share: a retrieval config, an embedder that counts, growing changes, and a stopwatch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.synthetic import CHUNK_SIZE, DIMENSION, Change, Floats, embed
from tasks.embedding import EmbeddingSpend, about_tokens
from touchstone.retrieval_config import RetrievalConfig


def config(source: str, index: str = "auto") -> RetrievalConfig:
    fields = {"chunk_size": CHUNK_SIZE, "chunk_overlap": 0, "index": index, "embedding_model": "synthetic"}
    return RetrievalConfig.model_validate({"name": "bench", "version": "1.0.0", "source": {"path": source}} | fields)


class CountingEmbedder:
    """Costs next to nothing, and counts."""

    name = "synthetic"
    dimension = DIMENSION
    max_tokens = None
    spent = EmbeddingSpend()

    def __init__(self) -> None:
        self.count = 0

    def embed(self, texts: Sequence[str]) -> Floats:
        self.count += len(texts)
        return embed(texts)

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        return about_tokens(text)


def growing(count: int, rounds: int, edited: int, deleted: int) -> Iterator[Change]:
    """One change per round, each on top of those before."""
    order = random.Random(1).sample(range(count), rounds * (edited + deleted))
    edits, deletions = order[: rounds * edited], order[rounds * edited :]
    for number in range(1, rounds + 1):
        yield Change(frozenset(edits[: number * edited]), frozenset(deletions[: number * deleted]))


@contextmanager
def stopwatch(module: Any, names: dict[str, str]) -> Iterator[dict[str, tuple[float, float]]]:
    """(wall, CPU) seconds spent in functions of a module, by the name that `names` gives them."""
    seconds = dict.fromkeys(names.values(), (0.0, 0.0))
    before = {name: getattr(module, name) for name in names}

    def timed(name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started, cpu = time.perf_counter(), time.process_time()
            try:
                return before[name](*arguments, **options)
            finally:
                wall, used = seconds[names[name]]
                seconds[names[name]] = wall + time.perf_counter() - started, used + time.process_time() - cpu

        return run

    try:
        for name in names:
            setattr(module, name, timed(name))
        yield seconds
    finally:
        for name, function in before.items():
            setattr(module, name, function)
