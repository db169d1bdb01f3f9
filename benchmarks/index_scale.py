"""A million vectors on two cores: write, vector index, recall and latency of queries; and whose time a full build is.

python benchmarks/index_scale.py [--chunks N] [--only scale|share]

The vectors follow a law that was fitted to MiniLM's embeddings of 2,500 SciFact abstracts (a tree of topics in a
decaying spectrum): share of variance in the first 10 / 50 / 100 directions .27 / .62 / .77 (there .29 / .60 / .78),
cosine to the 1st / 10th neighbour .60 / .43 (.62 / .46), intrinsic dimension 20 (19), queries 10 / 100 neighbours away
.43 / .30 (.42 / .29). They are written, indexed and searched by the project's own code. Limits: 24 GB, two cores,
recall@10 >= 0.95 against exact search. The peer is LanceDB with its defaults on the same table. A million chunks need
8 GB of memory and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.build_arena import config, stopwatch
from benchmarks.synthetic import DIMENSION, PARTS, Floats
from tasks.embedding import EmbeddingSpend, about_tokens
from tasks.environment import apply_defaults
from tasks.index_table import open_table
from tasks.indexing import BuildPlan, write_version
from tasks.pieces import Piece, Scanned
from tasks.retrieval import Retriever
from tasks.sources import Document
from touchstone.chunking import Chunk
from touchstone.index import IndexVersion, SourceChanges

QUERIES, K = 200, 10
MEMORY_GB, RECALL, SHARE = 24, 0.95, 0.90
DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", "../shared/data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["scale", "share"])
    options = parser.parse_args()
    apply_defaults()
    if options.only != "share":
        scale(options.chunks)
    if options.only != "scale":
        embedder_share()


class EmbeddingLaw:
    """Draws unit vectors like those of an embedding model: documents below a tree of topics, and questions about them.

    Every level of the tree moves a vector by a Gaussian step in a spectrum that decays as (rank + 14)^-1.2; children
    are chosen with probability proportional to rank^-0.8; all share a mean of length 1/3, and are rotated at last.
    """

    _branches, _depth, _mean = 8, 5, 0.33
    _steps = (0.12, 0.12, 0.14, 0.16, 0.18, 0.28)  # share of the variance per level; the last one is the document's

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        spectrum = (np.arange(DIMENSION) + 14.0) ** -1.2
        self._scale = np.sqrt(spectrum / spectrum.sum()).astype(np.float32)
        self._levels = [
            self._step(self._branches**depth, share) for depth, share in enumerate(self._steps[:-1], start=1)
        ]
        weights = (np.arange(self._branches) + 1.0) ** -0.8
        self._weights = weights / weights.sum()
        self._rotation = np.linalg.qr(self._random.standard_normal((DIMENSION, DIMENSION)))[0].astype(np.float32)

    def draw(self, count: int) -> Floats:
        """`count` unit rows."""
        rows = np.empty((count, DIMENSION), dtype=np.float32)
        for start in range(0, count, 20_000):
            rows[start : start + 20_000] = self._block(min(20_000, count - start))
        return rows

    def _block(self, count: int) -> Floats:
        topic = np.zeros(count, dtype=np.int64)
        rows = self._step(count, self._steps[-1])
        for level in self._levels:
            topic = topic * self._branches + self._random.choice(self._branches, count, p=self._weights)
            rows += level[topic]
        rows *= np.float32(np.sqrt(1 - self._mean**2))
        rows[:, -1] += self._mean
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) @ self._rotation

    def _step(self, count: int, share: float) -> Floats:
        steps = self._random.standard_normal((count, DIMENSION), dtype=np.float32)
        return steps * (self._scale * np.float32(np.sqrt(share)))


class QuestionEmbedder:
    """Knows the vectors of its questions, which are numbers."""

    name = "synthetic"
    dimension = DIMENSION
    max_tokens = None
    spent = EmbeddingSpend()

    def __init__(self, rows: Floats) -> None:
        self._rows = rows

    def embed(self, texts: Sequence[str]) -> Floats:
        return self._rows[[int(text) for text in texts]]

    def tokenize(self, text: str) -> list[tuple[int, int]]:
        return about_tokens(text)


def scale(chunks: int) -> None:
    """Write, index and query `chunks` vectors."""
    law = EmbeddingLaw()
    with tempfile.TemporaryDirectory() as temporary:
        room = shutil.disk_usage(temporary).free / 1e9
        if room < 10 * chunks / 1e6:
            raise SystemExit(f"{temporary} has {room:.0f} GB free, {10 * chunks / 1e6:.0f} are needed; set TMPDIR")
        print(f"{chunks:,} x {DIMENSION} vectors, {os.cpu_count()} cores, limit {MEMORY_GB} GB", flush=True)
        rows, questions = law.draw(chunks), law.draw(QUERIES)
        index = _build(rows, temporary)
        exact = _exact(rows, questions)
        del rows
        _measure(index, temporary, questions, exact)


def _build(rows: Floats, lance: str) -> IndexVersion:
    import tasks.indexing

    plan = _plan(rows)
    print(f"(documents, chunks and vectors in memory: peak {_peak_gb():.1f} GB)", flush=True)
    with stopwatch(tasks.indexing, {"commit": "write", "index_columns": "vector index"}) as seconds:
        index = write_version(plan, lance)
    for name, (wall, cpu) in seconds.items():
        print(f"{name:<40}{wall:8.1f} s wall{cpu:9.1f} CPU s", flush=True)
    held = sum(path.stat().st_size for path in Path(lance).rglob("*") if path.is_file()) / 1e9
    kind = {found.index_type for found in open_table(lance, index.table, index.version).list_indices()}
    print(f"peak memory {_peak_gb():.1f} GB, on disk {held:.2f} GB, index {', '.join(kind) or 'flat'}", flush=True)
    return index


def _plan(rows: Floats) -> BuildPlan:
    """What `plan_build` would return for as many chunks, all of them embedded."""
    pieces = [_piece(number) for number in range(len(rows))]
    documents = -(-len(rows) // PARTS)
    plan = BuildPlan(config("bench/scale"), "scale", SourceChanges(), documents, Scanned(pieces), frozenset())
    plan.vectors = {piece.content_hash: (row, "2026-01-01") for piece, row in zip(pieces, rows, strict=True)}
    return plan


def _piece(number: int) -> Piece:
    text = f"Paragraph {number} of the handbook. " * 8  # as long as a short paragraph
    ordinal, identity = number % PARTS, f"doc-{number // PARTS:07}"
    digest = f"{number // PARTS:064x}"
    document = Document(
        id=identity, title=identity, text="", updated_at="", declares_date=False, source="", content_hash=digest
    )
    return Piece(document, Chunk(ordinal, 0, text, ""), text, f"{number:064x}")


def _exact(rows: Floats, questions: Floats) -> list[set[str]]:
    """Chunk ids of the nearest neighbours, by brute force."""
    best: list[list[tuple[float, int]]] = [[] for _ in questions]
    for start in range(0, len(rows), 50_000):
        cosines = questions @ rows[start : start + 50_000].T
        nearest = np.argpartition(-cosines, K - 1, axis=1)[:, :K]
        for number, places in enumerate(nearest):
            best[number] += [(float(cosines[number, place]), start + int(place)) for place in places]
    ranked = [sorted(found, reverse=True)[:K] for found in best]
    return [{f"doc-{number // PARTS:07}#{number % PARTS}" for _, number in found} for found in ranked]


def _measure(index: IndexVersion, lance: str, questions: Floats, exact: Sequence[set[str]]) -> None:
    """Questions one by one: by the project's retriever, and on the same table with LanceDB's defaults and exactly."""
    semantic = config("bench/scale").model_copy(update={"top_k": K})
    retriever = Retriever.open(semantic, index, lance, QuestionEmbedder(questions))
    table = open_table(lance, index.table, index.version)

    def ours(number: int) -> set[str]:
        return {chunk.chunk_id for chunk in retriever.search(str(number)).chunks}

    def lancedb(number: int, *, exactly: bool = False) -> set[str]:
        search: Any = table.search(questions[number], vector_column_name="vector", query_type="vector")
        search = search.distance_type("cosine").select(["chunk_id", "_distance"]).limit(K)
        found = (search.bypass_vector_index() if exactly else search).to_list()
        return {row["chunk_id"] for row in found}

    recall = _questions(f"Retriever, top {K}", ours, exact)
    _questions("peer: LanceDB, default search", lancedb, exact)
    _questions("peer: LanceDB, exact search", lambda number: lancedb(number, exactly=True), exact[:20])
    print(f"recall@{K} {recall:.3f} ({_judged(recall >= RECALL)}: >= {RECALL}), ", end="")
    print(f"memory {_peak_gb():.1f} GB ({_judged(_peak_gb() <= MEMORY_GB)}: <= {MEMORY_GB})\n", flush=True)


def _judged(reached: bool) -> str:
    return "limit reached" if reached else "limit MISSED"


def _questions(name: str, search: Any, exact: Sequence[set[str]]) -> float:
    """Mean recall; latencies are printed, the first and cold one apart."""
    shares, milliseconds = [], []
    cpu = time.process_time()
    for number, nearest in enumerate(exact):
        started = time.perf_counter()
        found = search(number)
        milliseconds.append(1000 * (time.perf_counter() - started))
        shares.append(len(found & nearest) / K)
    cpu = 1000 * (time.process_time() - cpu) / len(exact)
    recall = float(np.mean(shares))
    p50, p95 = np.percentile(milliseconds[1:], [50, 95])
    figures = f"recall@{K} {recall:.3f}  p50 {p50:6.1f} ms  p95 {p95:6.1f} ms  {cpu:6.1f} CPU-ms"
    print(f"{name:<32}{len(exact):4} questions: {figures}  (first {milliseconds[0]:.0f} ms)", flush=True)
    return recall


def embedder_share() -> None:
    """How much of a full build's wall time is the embedding model's own."""
    support, claude = Path("datasets/support/corpus"), DATA / "claude-docs" / "corpus.jsonl"
    print(f"full build with MiniLM: share of the wall time that is the embedder's own, limit {SHARE:.0%}")
    for name, source in (("datasets/support", support), ("claude-docs", claude)):
        if source.exists():
            _share(name, source)
        else:
            print(f"{name}: skipped, no data at {source}; set TOUCHSTONE_SHARED_DATA")


def _share(name: str, source: Path) -> None:
    import flows.reindex
    from tasks.loading import load_settings
    from tasks.minilm import load_minilm

    load_minilm()
    names = {"plan_build": "plan", "write_version": "write", "validate_version": "Great Expectations"}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _write_project(root, source)
        settings = load_settings(root=root, home=root / "state")
        for module in ("great_expectations", "lancedb", "sqlalchemy"):
            import_module(module)  # as in a worker that has built before
        with stopwatch(flows.reindex, names) as seconds:
            report = flows.reindex.conduct(settings, flows.reindex.ReindexRequest(config="bench"))
    assert report.promoted, report.reason
    build_s = report.embed_s + seconds["plan"][0] + seconds["write"][0]
    rest = ", ".join(f"{stage} {wall:.1f} s" for stage, (wall, _) in seconds.items())
    print(
        f"{name}: {report.documents} documents, {report.chunks} chunks; embedding {report.embed_s:.1f} s, {rest}, "
        f"all {report.wall_s:.1f} s: {report.embed_s / build_s:.1%} of planning, embedding and writing, "
        f"{report.embed_s / report.wall_s:.1%} of the whole re-index",
        flush=True,
    )


def _write_project(root: Path, source: Path) -> None:
    target = root / "docs" if source.is_dir() else root / "docs.jsonl"
    target.symlink_to(source.resolve())
    (root / "retrieval_configs").mkdir()
    text = f"name: bench\nversion: 1.0.0\nsource: {{path: {target.name}}}\n"
    (root / "retrieval_configs" / "bench.yaml").write_text(text)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
