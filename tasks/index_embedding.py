"""The texts of a build to vectors: in this process, or in shards that a task runner takes to its workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tasks.embedding import Embedder, EmbeddingSpend, open_embedder
from tasks.embedding_cache import EmbeddingCache, Vectors, cache_key
from tasks.environment import apply_defaults
from tasks.indexing import Block, BuildPlan, embed_block
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

OnChunks = Callable[[int, int], None]  # (chunks embedded so far, of how many)

_MOST_SHARDS = 64  # a task run costs Prefect's server 33 ms and a row each


@dataclass(frozen=True)
class Shard:
    """Blocks that one worker embeds."""

    number: int
    blocks: tuple[Block, ...]

    @property
    def chunks(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def characters(self) -> int:
        return sum(len(text) for block in self.blocks for _, text in block)


@dataclass
class Embedded:
    """What came back, what it cost elsewhere than in the job's own embedder, and who did it (`host:pid`)."""

    vectors: dict[str, tuple] = field(default_factory=dict)
    spent: EmbeddingSpend = field(default_factory=EmbeddingSpend)
    workers: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class EmbeddingJob:
    """All that embedding a plan needs, wherever it happens."""

    settings: Settings
    config: RetrievalConfig
    plan: BuildPlan
    embedder: Callable[[], Embedder]
    cache: EmbeddingCache
    max_cost_usd: float | None
    on_chunks: OnChunks

    @property
    def shards(self) -> list[Shard]:
        blocks = self.plan.blocks
        size = -(-len(blocks) // _MOST_SHARDS) or 1
        parts = [tuple(blocks[start : start + size]) for start in range(0, len(blocks), size)]
        return [Shard(number, part) for number, part in enumerate(parts, start=1)]

    def share_of(self, shard: Shard) -> float | None:
        """Of the spend cap, by length of text: a worker elsewhere cannot see what the others spend."""
        if self.max_cost_usd is None:
            return None
        return self.max_cost_usd * shard.characters / self._characters

    @cached_property
    def _characters(self) -> int:
        return sum(len(text) for _, text in self.plan.pending)

    @property
    def worker_settings(self) -> Settings:
        """What travels to workers: not the addresses of databases, which may hold passwords."""
        return self.settings.model_copy(update={"ledger_url": "", "mlflow_tracking_uri": ""})


Embed = Callable[[EmbeddingJob], Embedded]


def embed_here(job: EmbeddingJob) -> Embedded:
    """In this process, by one embedder, whose `spent` counts."""
    embedded = Embedded()
    if job.plan.pending:
        for vectors in _embed_blocks(job.plan.blocks, job.embedder(), job.cache, job.settings.task_workers):
            embedded.vectors |= vectors
            job.on_chunks(len(embedded.vectors), len(job.plan.pending))
    return embedded


def embed_in_worker(settings: Settings, config: RetrievalConfig, shard: Shard, max_cost_usd: float | None) -> Embedded:
    """One shard in another process, under its share of the spend cap.

    On this machine every block goes into the cache at once, as on threads; a worker elsewhere has only its return.
    """
    apply_defaults()
    embedder = open_embedder(config, settings, max_cost_usd=max_cost_usd)
    with ExitStack() as stack:
        cache = None
        if not settings.task_runner_address:
            cache = stack.enter_context(closing(EmbeddingCache(settings.embedding_cache, cache_key(config))))
        embedded = embed_shard(shard, embedder, cache)
    embedded.spent = embedder.spent
    return embedded


def embed_shard(shard: Shard, embedder: Embedder, cache: EmbeddingCache | None) -> Embedded:
    """All blocks of a shard; `spent` is left to who opened the embedder."""
    embedded = Embedded(workers={f"{socket.gethostname()}:{os.getpid()}"})
    for vectors in _embed_blocks(shard.blocks, embedder, cache, 1):
        embedded.vectors |= vectors
    return embedded


def _embed_blocks(
    blocks: Sequence[Block], embedder: Embedder, cache: EmbeddingCache | None, workers: int
) -> Iterator[Vectors]:
    """As they are done, each kept in the cache by then. After a failure no block is begun, and the others finish."""
    with ThreadPoolExecutor(max(workers, embedder.requests_at_once)) as pool:
        futures = [pool.submit(embed_block, block, embedder, cache) for block in blocks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def keep(cache: EmbeddingCache, vectors: Vectors) -> None:
    """What a worker elsewhere embedded, into the cache of this machine."""
    for when in {at for _, at in vectors.values()}:
        found = [content for content, (_, at) in vectors.items() if at == when]
        cache.put(found, np.stack([vectors[content][0] for content in found]), when)


def total(spends: Sequence[EmbeddingSpend]) -> EmbeddingSpend:
    """The sum; a price that is unknown once is unknown in all."""
    costs = [spend.cost_usd for spend in spends]
    return EmbeddingSpend(
        calls=sum(spend.calls for spend in spends),
        input_tokens=sum(spend.input_tokens for spend in spends),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        served_models=tuple(dict.fromkeys(model for spend in spends for model in spend.served_models)),
    )
