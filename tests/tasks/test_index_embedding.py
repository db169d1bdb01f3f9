"""What a shard is, what it may spend, and what of the settings travels with it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from tasks.embedding import EmbeddingSpend, load_embedder
from tasks.embedding_cache import EmbeddingCache
from tasks.index_embedding import EmbeddingJob, embed_here, embed_in_worker, keep, total
from tasks.indexing import BuildPlan
from tasks.pieces import Scanned
from touchstone.index import SourceChanges
from touchstone.retrieval_config import RetrievalConfig, Source
from touchstone.settings import Settings

CONFIG = RetrievalConfig(name="many", version="1.0.0", source=Source(path="docs"), embedding_model="hashing")


def job(folder: Path, texts: int, max_cost_usd: float | None = None, **settings: str) -> EmbeddingJob:
    """Texts of growing length, as a plan has them."""
    known = Settings.model_validate({"root": folder, **settings})
    pending = tuple((hashlib.sha256(str(n).encode()).hexdigest(), f"word{n} " * (1 + n // 10)) for n in range(texts))
    plan = BuildPlan(CONFIG, "many", SourceChanges(), texts, Scanned(), frozenset(), pending=pending)
    cache = EmbeddingCache(known.embedding_cache, "hashing")
    return EmbeddingJob(
        known, CONFIG, plan, lambda: load_embedder("hashing"), cache, max_cost_usd, lambda done, of: None
    )


@pytest.mark.parametrize("texts", [1, 96, 97, 1000, 20_000])
def test_shards_hold_every_text_once_and_are_few(tmp_path: Path, texts: int) -> None:
    work = job(tmp_path, texts)
    held = [item for shard in work.shards for block in shard.blocks for item in block]
    assert tuple(held) == work.plan.pending
    assert sum(shard.chunks for shard in work.shards) == texts
    assert len(work.shards) <= 64
    assert [shard.number for shard in work.shards] == list(range(1, len(work.shards) + 1))


def test_the_spend_cap_is_shared_by_length_of_text(tmp_path: Path) -> None:
    work = job(tmp_path, 1000, max_cost_usd=2.0)
    shares = [work.share_of(shard) or 0 for shard in work.shards]
    assert sum(shares) == pytest.approx(2.0)
    assert shares[0] < shares[1] < shares[-2]
    assert shares[0] / shares[1] == pytest.approx(work.shards[0].characters / work.shards[1].characters)
    uncapped = job(tmp_path, 10)
    assert uncapped.share_of(uncapped.shards[0]) is None


def test_addresses_of_databases_do_not_travel_to_workers(tmp_path: Path) -> None:
    ledger, mlflow = "postgresql://me:hunter2@db/ledger", "http://me:hunter2@mlflow"
    work = job(tmp_path, 1, ledger_url=ledger, mlflow_tracking_uri=mlflow)
    assert b"hunter2" in pickle.dumps(work.settings)
    assert b"hunter2" not in pickle.dumps(work.worker_settings)


@pytest.mark.parametrize("address", ["", "tcp://elsewhere:8786"])
def test_a_shard_is_cached_by_a_worker_here_and_brought_home_from_elsewhere(tmp_path: Path, address: str) -> None:
    work = job(tmp_path, 100, task_runner_address=address)
    hashes = [content for content, _ in work.plan.pending]
    for shard in work.shards:
        done = pickle.loads(pickle.dumps(embed_in_worker(work.worker_settings, CONFIG, shard, None)))
        assert len(work.cache.get([content for block in shard.blocks for content, _ in block])) == (
            0 if address else shard.chunks
        )
        keep(work.cache, done.vectors)
    cached, expected = work.cache.get(hashes), embed_here(job(tmp_path / "alone", 100)).vectors
    assert all(np.array_equal(cached[content][0], expected[content][0]) for content in hashes)


def test_without_texts_no_model_is_loaded(tmp_path: Path) -> None:
    work = job(tmp_path, 0)

    def never():
        raise AssertionError("loaded")

    assert embed_here(EmbeddingJob(**{**vars(work), "embedder": never})).vectors == {}


def test_a_price_that_is_unknown_once_is_unknown_in_all() -> None:
    paid = EmbeddingSpend(calls=2, input_tokens=30, cost_usd=0.5, served_models=("a",))
    free = EmbeddingSpend(calls=1, input_tokens=4, cost_usd=0.0, served_models=("b", "a"))
    unknown = EmbeddingSpend(calls=1, input_tokens=1, cost_usd=None)
    assert total([paid, free]) == EmbeddingSpend(3, 34, 0.5, ("a", "b"))
    assert total([paid, unknown]).cost_usd is None
    assert total([]) == EmbeddingSpend()
