"""The texts of a build to vectors: in this process, or in shards that a task runner takes to its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from tasks.embedding import Embedder, EmbeddingSpend, open_embedder
from tasks.embedding_cache import EmbeddingCache, Vectors
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


@dataclass
class Embedded:
    """What came back, and what it cost."""

    vectors: dict[str, tuple] = field(default_factory=dict)
    spent: EmbeddingSpend = field(default_factory=EmbeddingSpend)


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


Embed = Callable[[EmbeddingJob], Embedded]


def embed_here(job: EmbeddingJob) -> Embedded:
    """On threads of this process, which share one embedder, its spend cap and the cache."""
    embedder, embedded = job.embedder(), Embedded()
    with ThreadPoolExecutor(job.settings.task_workers) as pool:
        futures = [pool.submit(embed_block, block, embedder, job.cache) for block in job.plan.blocks]
        try:
            for future in as_completed(futures):
                embedded.vectors |= future.result()
                job.on_chunks(len(embedded.vectors), len(job.plan.pending))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    embedded.spent = embedder.spent
    return embedded


def embed_in_worker(
    settings: Settings, config: RetrievalConfig, shard: Shard, max_cost_usd: float | None
) -> tuple[Vectors, EmbeddingSpend]:
    """One shard in a process that shares nothing with ours: it gets its share of the spend cap."""
    apply_defaults()
    embedder = open_embedder(config, settings, max_cost_usd=max_cost_usd)
    vectors: dict[str, tuple] = {}
    for block in shard.blocks:
        vectors |= embed_block(block, embedder, None)
    return vectors, embedder.spent


def keep(cache: EmbeddingCache, vectors: Vectors) -> None:
    """What a worker elsewhere embedded, into the cache of this machine."""
    if vectors:
        import numpy as np

        times = {when for _, when in vectors.values()}
        for when in times:
            found = [content for content, (_, at) in vectors.items() if at == when]
            cache.put(found, np.stack([vectors[content][0] for content in found]), when)


def total(spends: Iterable[EmbeddingSpend] | Sequence[EmbeddingSpend]) -> EmbeddingSpend:
    """The sum; a price that is unknown once is unknown in all."""
    spends = list(spends)
    costs = [spend.cost_usd for spend in spends]
    return EmbeddingSpend(
        calls=sum(spend.calls for spend in spends),
        input_tokens=sum(spend.input_tokens for spend in spends),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
    )
