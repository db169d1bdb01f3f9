"""What an incremental build costs: beside LangChain and CocoIndex on one job, and for corpora of three sizes.

python benchmarks/incremental_build.py [--quick] [--cocoindex-python PATH]

The job: 2,000 documents of five chunks are indexed; then, in each round, 1 % of the documents are edited in one chunk
and 0.5 % are deleted. Limits: as many texts embedded as chunks were edited, no stale chunk left, one commit, and less
wall time than the peers. Every contender has done the full build in the same process before, embeds by the same
function and writes to LanceDB. CocoIndex needs an interpreter of its own: `python -m venv DIR`, `DIR/bin/pip install
cocoindex lancedb`, and `--cocoindex-python DIR/bin/python` or TOUCHSTONE_COCOINDEX_PYTHON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

import tasks.indexing
from benchmarks.build_arena import CountingEmbedder, config, growing, stopwatch
from benchmarks.synthetic import PARTS, UNCHANGED, Change, documents, parts, write_folder, write_jsonl
from tasks.embedding_cache import EmbeddingCache
from tasks.environment import apply_defaults
from tasks.indexing import ensure_index
from touchstone.index import IndexVersion

DOCUMENTS, EDITED, DELETED = 2_000, 20, 10
SIZES, CHANGED = (10_000, 100_000, 1_000_000), 100
STAGES = {  # by the function of tasks.indexing that is timed
    "read_documents": "read",
    "plan_build": "plan",
    "embed_block": "embed",
    "commit": "commit",
    "index_columns": "index",
    "describe": "manifest",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 and 100,000 chunks only")
    parser.add_argument("--only", choices=["peers", "reindex", "sizes"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cocoindex-python", default=os.environ.get("TOUCHSTONE_COCOINDEX_PYTHON", ""))
    options = parser.parse_args()
    apply_defaults()
    if options.only in (None, "peers"):
        peers(options.rounds, options.cocoindex_python)
    if options.only in (None, "reindex"):
        whole_reindex(options.rounds)
    if options.only in (None, "sizes"):
        sizes(SIZES[:2] if options.quick else SIZES, options.rounds)


@dataclass(frozen=True)
class Update:
    """What one contender did in one round, and what its table holds afterwards."""

    embedded: int
    wall_s: float
    cpu_s: float
    commits: int
    texts: list[tuple[str, str]]  # (document id, text) of every row


class Touchstone:
    """`ensure_index`: what `touchstone reindex` does, without what it checks before the switch."""

    def __init__(self, state: Path) -> None:
        self._lance = str(state / "lance")
        self._embedder = CountingEmbedder()
        self._cache = EmbeddingCache(state / "embeddings.db", "synthetic")
        self._index: IndexVersion | None = None

    def update(self, folder: Path) -> int:
        before = self._embedder.count
        self._index = ensure_index(config("bench/docs"), folder, self._lance, self._embedder, cache=self._cache)
        return self._embedder.count - before

    def version(self) -> int:
        return self._index.version if self._index else 0

    def texts(self) -> list[tuple[str, str]]:
        assert self._index is not None
        table = tasks.indexing.open_table(self._lance, self._index.table, self._index.version)
        rows = table.search().select(["document_id", "text"]).limit(None).to_arrow()
        return list(zip(rows["document_id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def in_this_process(contender: Any) -> Callable[[Path], Update]:
    def update(folder: Path) -> Update:
        before = contender.version()
        started, cpu = time.perf_counter(), time.process_time()
        embedded = contender.update(folder)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Update(embedded, wall, cpu, contender.version() - before, contender.texts())

    return update


class CocoIndex:
    """The peer in its own interpreter; it times itself."""

    def __init__(self, python: str, folder: Path, state: Path) -> None:
        command = [python, str(Path(__file__).with_name("peer_cocoindex.py")), str(folder), str(state)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def __call__(self, _: Path) -> Update:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = json.loads(next(line for line in self._process.stdout if line.startswith("{")))
        return Update(**answer | {"texts": [(document, text) for document, text in answer["texts"]]})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def peers(rounds: int, cocoindex_python: str) -> None:
    """The same change, applied by each contender in turn, round by round."""
    from benchmarks.peer_langchain import LanceDB, LangChain, RepairedLanceDB

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        states = [root / str(number) for number in range(4)]
        for state in states:
            state.mkdir()
        whole = DOCUMENTS * PARTS
        contenders: dict[str, Callable[[Path], Update]] = {
            "Touchstone": in_this_process(Touchstone(states[0])),
            "LangChain, as shipped": in_this_process(LangChain(states[1], LanceDB, 100)),
            "LangChain, delete repaired, one batch": in_this_process(LangChain(states[2], RepairedLanceDB, whole)),
        }
        if cocoindex_python:
            peer = stack.enter_context(closing(CocoIndex(cocoindex_python, root / "docs", states[3])))
            contenders["CocoIndex"] = peer
        changes = list(growing(DOCUMENTS, rounds, EDITED, DELETED))
        results = {name: [] for name in contenders}
        for change in (UNCHANGED, *changes):
            write_folder(root / "docs", DOCUMENTS, change)
            for name, update in contenders.items():
                results[name].append(update(root / "docs"))
        _print_peers(results, changes)
    if not cocoindex_python:
        print("CocoIndex                              skipped: see --help for how to install it")
    print(flush=True)


def _print_peers(results: dict[str, list[Update]], changes: Sequence[Change]) -> None:
    print(f"{DOCUMENTS * PARTS:,} chunks; then, in each of {len(changes)} rounds, {EDITED} documents are edited in one")
    print(f"chunk each and {DELETED} deleted. Medians; stale and lost are the most seen. Limit: {EDITED}, 0, 0, 1")
    print("                                       embedded  stale  lost  commits   wall s    CPU s   full build s")
    for name, (full, *updates) in results.items():
        checked = [_wrong(update.texts, change) for update, change in zip(updates, changes, strict=True)]
        stale, lost = (max(counts) for counts in zip(*checked, strict=True))
        columns = [median(getattr(update, field) for update in updates) for field in ("embedded", "commits")]
        seconds = [median(getattr(update, field) for update in updates) for field in ("wall_s", "cpu_s")]
        figures = f"{columns[0]:9.0f}{stale:7}{lost:6}{columns[1]:9.0f}{seconds[0]:9.2f}{seconds[1]:9.2f}"
        print(f"{name:<38}{figures}{full.wall_s:15.1f}", flush=True)


def _wrong(texts: list[tuple[str, str]], change: Change) -> tuple[int, int]:
    """(rows that should not be there, chunks that should)."""
    expected = {(identity, part) for identity, _, text in documents(DOCUMENTS, change) for part in parts(text)}
    found = [(identity, part) for identity, text in texts for part in parts(text)]
    return sum(row not in expected for row in found) + len(found) - len(set(found)), len(expected - set(found))


def whole_reindex(rounds: int) -> None:
    """The same job by `touchstone reindex`, which also validates, evaluates on 100 golden questions, and switches."""
    import flows.reindex
    from tasks.loading import load_settings

    names = {"validate_version": "Great Expectations", "evaluate_version": "evaluation"}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        _write_project(root)
        settings = load_settings(root=root, home=root / "state")
        request = flows.reindex.ReindexRequest(config="bench")
        for number, change in enumerate([UNCHANGED, *growing(DOCUMENTS, rounds, EDITED, DELETED)]):
            write_folder(root / "docs", DOCUMENTS, change)
            with stopwatch(flows.reindex, names) as seconds:
                report = flows.reindex.conduct(settings, request)
            assert report.promoted, report.reason
            parts_of_it = ", ".join(f"{name} {wall:.2f} s" for name, (wall, _) in seconds.items())
            label = f"round {number}" if number else "first build, with all imports"
            print(
                f"touchstone reindex, {label}: {report.embedded_chunks} embedded, {report.wall_s:.2f} s ({parts_of_it})"
            )
    print(flush=True)


def _write_project(root: Path) -> None:
    """A retrieval config on root/docs, and a golden set that quotes 100 documents which no round touches."""
    changed = list(growing(DOCUMENTS, 10, EDITED, DELETED))[-1]
    kept = [one for number, one in enumerate(documents(DOCUMENTS)) if number not in changed.edited | changed.deleted]
    cases = [
        {"id": identity, "question": text.split("\n\n")[3].split(".")[0], "relevant_ids": [identity]}
        for identity, _, text in random.Random(2).sample(kept, 100)
    ]
    dataset = root / "datasets" / "bench"
    dataset.mkdir(parents=True)
    (dataset / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    (root / "retrieval_configs").mkdir()
    fields = config("docs").model_dump(mode="json", exclude_defaults=True) | {"embedding_model": "hashing"}
    (root / "retrieval_configs" / "bench.yaml").write_text(yaml.safe_dump(fields | {"gate": {"dataset": "bench"}}))


def sizes(chunks: Sequence[int], rounds: int) -> None:
    """100 documents are edited in one chunk each, in corpora of different size."""
    print(f"{CHANGED} documents edited in one chunk each; CPU seconds by stage, median of {rounds} rounds")
    heads = "".join(f"{stage:>9}" for stage in STAGES.values())
    print(f"    chunks  embedded{heads}    total   wall s   full build: CPU s  wall s  peak GB", flush=True)
    found = {}
    for size in chunks:
        with tempfile.TemporaryDirectory() as temporary:
            found[size] = _one_size(Path(temporary), size, rounds)
    small, large = found[chunks[0]]["total"], found[chunks[-1]]["total"]
    slope = (large - small) / (chunks[-1] - chunks[0])
    grown = f"corpus x {chunks[-1] / chunks[0]:.0f}: increment x {large / small:.1f}"
    print(f"{grown}; {1e6 * slope:.1f} CPU-us per chunk of the corpus, to read, hash and compare it", flush=True)


def _one_size(root: Path, chunks: int, rounds: int) -> dict[str, float]:
    count, source, lance = chunks // PARTS, root / "corpus.jsonl", str(root / "lance")
    embedder, cache = CountingEmbedder(), EmbeddingCache(root / "embeddings.db", "synthetic")
    seen: list[dict[str, tuple[float, float]]] = []
    for change in (UNCHANGED, *growing(count, rounds, CHANGED, 0)):
        write_jsonl(source, count, change)
        embedder.count = 0
        with stopwatch(tasks.indexing, STAGES) as seconds:
            started, cpu = time.perf_counter(), time.process_time()
            index = ensure_index(config("bench/corpus.jsonl"), source, lance, embedder, cache=cache)
            seconds["total"] = time.perf_counter() - started, time.process_time() - cpu
        assert index.chunks == chunks
        assert embedder.count == (CHANGED if seen else chunks)
        seen.append(seconds)
    cache.close()
    full, *rest = seen
    cpu_s = {stage: median(one[stage][1] for one in rest) for stage in (*STAGES.values(), "total")}
    wall = median(one["total"][0] for one in rest)
    figures = "".join(f"{value:9.2f}" for value in cpu_s.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    whole = f"{full['total'][1]:20.0f}{full['total'][0]:8.0f}{peak:9.1f}"
    print(f"{chunks:10,}{embedder.count:10}{figures}{wall:9.2f}{whole}", flush=True)
    return cpu_s


if __name__ == "__main__":
    main()
