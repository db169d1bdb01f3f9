"""A freshness check over 1,000,000 logged retrievals of 8 chunks: wall (limit 5 s), CPU, and memory that stays bounded.

Timed is what depends on the log: reading a week of it, counting by document, query and segment, and the decision. The
imports are over before. Beside it, on one day of the log, a loop over its lines with json.loads that counts the same;
the two have to agree.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAYS, CHUNKS, DOCUMENTS, QUERIES = 7, 8, 10_000, 300_000
LIMIT_S = 5.0
END = datetime(2026, 11, 21, tzinfo=UTC)
IDS = [f"refund-policy-{number:05}" for number in range(DOCUMENTS)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--lines", type=int, default=1_000_000)
    options = arguments.parse_args()
    _import_all()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_log(folder, options.lines)
        print(f"{options.lines:,} retrievals x {CHUNKS} chunks, {size / options.lines:.0f} bytes a line, {DAYS} days")
        before = _peak_mb()
        check(folder, days=1)
        day = _peak_mb()
        started, cpu = time.perf_counter(), time.process_time()
        report = check(folder, days=DAYS)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        whole = _peak_mb()
        seconds, lines = naive_day(folder)
    lag = report.measures["source_lag"]
    assert lag.value is not None
    print(
        f"check: wall {wall:.1f} s (limit {LIMIT_S:g}), {cpu:.1f} CPU-s in threads, so {cpu / 2:.1f} s where two cores "
        f"are free; peak memory {before:.0f} MB before, {day:.0f} MB after one day, {whole:.0f} MB after {DAYS}"
    )
    print(
        f"{report.level}: {report.n_retrievals:,} retrievals, {report.n_queries:,} distinct queries, "
        f"source_lag {lag.value:.4f} (at least {lag.lower_bound:.4f})"
    )
    naive = seconds * options.lines / lines
    print(
        f"json.loads line by line: {1e6 * seconds / lines:.1f} CPU-us a line, {naive:.1f} CPU-s for all (from "
        f"{lines:,} lines, with the same counts): {naive / cpu:.1f} x the check's, and on one core"
    )


def check(folder: Path, days: int):
    """The part of the real check that depends on the log, for documents of which 2 % lag and 1 % are gone."""
    from tasks.retrieval_traffic import read_traffic
    from touchstone.freshness import decide_freshness
    from touchstone.freshness_records import FreshnessState
    from touchstone.retrieval_config import FreshnessSla

    sla = FreshnessSla(window_days=days)
    found = inspection()
    start = END - timedelta(days=days)
    traffic = read_traffic(folder, "support", start, END, IDS, found.marks(sla.max_age_days))
    assert not traffic.warnings, traffic.warnings
    if days == 1:
        assert dict(zip(IDS, traffic.overall.documents.tolist(), strict=True)) == count_day(folder)
    state = FreshnessState()
    report, _ = decide_freshness("support", "t@1", found, traffic, "production", sla, state, announce=False)
    return report


def inspection():
    from touchstone.freshness_documents import SourceNow, inspect
    from touchstone.index import IndexedDocument

    at = (END - timedelta(days=90)).isoformat()
    indexed = [IndexedDocument(id=id, content_hash=id, record_hash="", embedded_at=at, chunks=3) for id in IDS]
    kept = [id for number, id in enumerate(IDS) if number % 100]
    hashes = {id: (f"{id} changed" if int(id[-5:]) % 100 in (1, 2) else id, "") for id in kept}
    return inspect(indexed, SourceNow(hashes, dict.fromkeys(hashes, 3000)), {}, END)


def write_log(folder: Path, lines: int) -> int:
    """Lines as `tasks.retrieval_log` writes them; a few documents and queries are asked for far more than others."""
    draw = random.Random(11)
    weights = [1 / (number + 10) for number in range(DOCUMENTS)]
    found = [
        ",".join(
            f'{{"document_id":"{id}","chunk_id":"{id}#{draw.randrange(4)}","rank":{rank},"score":{draw.random()}}}'
            for rank, id in enumerate(draw.choices(IDS, weights, k=CHUNKS), start=1)
        )
        for _ in range(50_000)
    ]
    size = 0
    for day in range(DAYS):
        start, part = END - timedelta(days=DAYS - day), lines // DAYS + (day < lines % DAYS)
        path = folder / f"{start:%Y-%m-%d}.jsonl"
        with path.open("w") as file:
            for number in range(part):
                at = start + timedelta(milliseconds=number * 86_400_000 // part)
                query = f"when is my refund for order {int(QUERIES * draw.random() ** 2)} paid, please?"
                file.write(
                    f'{{"time":"{at.isoformat(timespec="milliseconds")}","run_key":null,"config":"support",'
                    f'"index_version":"support_corpus_0123456789ab_1@3","segment":"s{number % 5}","query":"{query}",'
                    f'"chunks":[{draw.choice(found)}],"used_chunk_ids":[],"bundle":"support","case_id":null,'
                    '"latency_ms":4.217,"embedding_model":"minilm","search":"semantic"}\n'
                )
        size += path.stat().st_size
    return size


def count_day(folder: Path) -> dict[str, int]:
    """Retrieved chunks per document of the last day, as simply as it can be written."""
    counts = Counter(dict.fromkeys(IDS, 0))
    with (folder / f"{END - timedelta(days=1):%Y-%m-%d}.jsonl").open() as file:
        for line in file:
            counts.update(chunk["document_id"] for chunk in json.loads(line)["chunks"])
    return dict(counts)


def naive_day(folder: Path) -> tuple[float, int]:
    """(CPU seconds, lines) of the same counting line by line."""
    started = time.process_time()
    counts = count_day(folder)
    return time.process_time() - started, sum(counts.values()) // CHUNKS


def _import_all() -> None:
    """What a check imports anyway; lancedb brings pandas, which Arrow would else import on its first use."""
    for name in ("lancedb", "pyarrow.compute", "pyarrow.json", "tasks.retrieval_traffic", "touchstone.freshness"):
        importlib.import_module(name)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
