"""Embedding shards as Prefect tasks, on threads, Dask or Ray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner

from flows.task_runners import running_tasks
from tasks.index_embedding import Embedded, EmbeddingJob, Shard, embed_in_worker, embed_shard, keep, total
from touchstone.errors import TouchstoneError, Unmeasurable


def embed_as_tasks(job: EmbeddingJob) -> Embedded:
    """One Prefect task per shard, wherever `task_runner` of the settings takes it. The first failure ends the rest.

    Raises what a shard raised on purpose; Unmeasurable when a worker elsewhere could not run it at all.
    """
    shards, embedded, spends = job.shards, Embedded(), []
    if not shards:
        return embedded
    here = job.settings.task_runner == "threads"
    with running_tasks(job.settings) as runner:
        for future in as_completed([_submit(runner, job, shard, here=here) for shard in shards]):
            shard = future.result() if here else _result_from_afar(future, job)
            if job.settings.task_runner_address:
                keep(job.cache, shard.vectors)
            embedded.vectors |= shard.vectors
            embedded.workers |= shard.workers
            spends.append(shard.spent)
            job.on_chunks(len(embedded.vectors), len(job.plan.pending))
    embedded.spent = total(spends)
    get_run_logger().info(
        "%d chunks embedded in %d shards by %s", len(embedded.vectors), len(shards), ", ".join(sorted(embedded.workers))
    )
    return embedded


@task(task_run_name="embed shard {number}: {n_chunks} chunks", cache_policy=NO_CACHE)
def embed(number: int, n_chunks: int, run: Callable[[], Embedded]) -> Embedded:
    """Embed one shard. `run` is a function, so that Prefect does not walk through the texts."""
    return run()


def _submit(runner: TaskRunner[Any], job: EmbeddingJob, shard: Shard, *, here: bool) -> PrefectFuture[Embedded]:
    if here:
        run = partial(embed_shard, shard, job.embedder(), job.cache)
    else:
        run = partial(embed_in_worker, job.worker_settings, job.config, shard, job.share_of(shard))
    return runner.submit(embed, {"number": shard.number, "n_chunks": shard.chunks, "run": run})


def _result_from_afar(future: PrefectFuture[Embedded], job: EmbeddingJob) -> Embedded:
    """A worker may be gone, or have another touchstone installed than we."""
    try:
        return future.result()
    except TouchstoneError:
        raise
    except Exception as error:
        raise Unmeasurable(
            f"a {job.settings.task_runner} worker could not embed its shard: {type(error).__name__}: {error}; "
            "the live index is as it was"
        ) from error
