"""Embedding shards on the flow's task runner: threads, Dask or Ray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.embedding import EmbeddingSpend
from tasks.embedding_cache import Vectors
from tasks.index_embedding import Embedded, EmbeddingJob, Shard, embed_in_worker, keep, total
from tasks.indexing import embed_block
from touchstone.errors import BadInput
from touchstone.settings import Settings


def task_runner(settings: Settings) -> TaskRunner[Any]:
    """The runner that `task_runner` of the settings names, on this machine or at `task_runner_address`."""
    address = settings.task_runner_address or None
    try:
        if settings.task_runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            local = {"n_workers": settings.task_workers, "threads_per_worker": 1, "dashboard_address": None}
            return DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=local)
        if settings.task_runner == "ray":
            from prefect_ray.task_runners import RayTaskRunner

            return RayTaskRunner(address=address, init_kwargs={} if address else {"num_cpus": settings.task_workers})
    except ImportError:
        raise BadInput(
            f"task_runner: {settings.task_runner} needs prefect-{settings.task_runner}: "
            f"install touchstone[{settings.task_runner}]"
        ) from None
    return ThreadPoolTaskRunner(max_workers=settings.task_workers)


def embed_as_tasks(job: EmbeddingJob) -> Embedded:
    """One Prefect task per shard, wherever the flow's task runner runs it."""
    shards, embedded = job.shards, Embedded()
    if not shards:
        return embedded
    here = job.settings.task_runner == "threads"
    spends = []
    with task_runner(job.settings) as runner:
        for future in as_completed([_submit(runner, job, shard, len(shards), here=here) for shard in shards]):
            vectors, spent = future.result()
            if not here:
                keep(job.cache, vectors)
            embedded.vectors |= vectors
            spends.append(spent)
            job.on_chunks(len(embedded.vectors), len(job.plan.pending))
    embedded.spent = job.embedder().spent if here else total(spends)
    return embedded


@task(task_run_name="embed shard {number}: {n_chunks} chunks", cache_policy=NO_CACHE)
def embed_shard(
    number: int, n_chunks: int, run: Callable[[], tuple[Vectors, EmbeddingSpend]]
) -> tuple[Vectors, EmbeddingSpend]:
    """Embed one shard. `run` is a function, so that Prefect does not walk through the texts."""
    return run()


def _submit(runner: TaskRunner[Any], job: EmbeddingJob, shard: Shard, shards: int, *, here: bool) -> PrefectFuture[Any]:
    cap = job.max_cost_usd and job.max_cost_usd / shards  # a worker elsewhere cannot see what the others spend
    run = partial(_embed, job, shard) if here else partial(embed_in_worker, job.settings, job.config, shard, cap)
    return runner.submit(embed_shard, {"number": shard.number, "n_chunks": shard.chunks, "run": run})


def _embed(job: EmbeddingJob, shard: Shard) -> tuple[Vectors, EmbeddingSpend]:
    vectors: dict[str, tuple] = {}
    for block in shard.blocks:
        vectors |= embed_block(block, job.embedder(), job.cache)
    return vectors, EmbeddingSpend()
