"""Readers during re-indexes and roll-backs, and re-indexes that are killed: nothing fails, nothing is lost.

python -m benchmarks.reindex_soak [--switches 50] [--kills 50] [--seed 1]

The re-indexes are whole ones (plan, embed, commit, Great Expectations, evaluation, switch) on real tables and a real
ledger. A kill is SIGKILL of the process that re-indexes, at a random moment after its imports; the embedding vendor is
the emulator, which counts the texts that it was ever asked to embed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

from benchmarks.arena import counters, emulated_vendor
from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.live_index import live_pointer, roll_back
from tasks.loading import load_retrieval_config
from tasks.retrieval import LiveRetriever
from touchstone.settings import Settings

CHILD = """
import sys, time
from flows.reindex import ReindexRequest, conduct
import great_expectations, lancedb, litellm, tasks.validation
from touchstone.settings import Settings
from pathlib import Path
print("ready", flush=True)
report = conduct(Settings(root=Path(sys.argv[1])), ReindexRequest(config="soak.yaml"))
print(report.promoted, report.embedded_chunks, flush=True)
"""
DOCUMENTS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    apply_defaults()
    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory() as folder:
        if options.switches:
            switches(Path(folder) / "switches", options.switches)
        if options.kills:
            kills(Path(folder) / "kills", options.kills, random.Random(options.seed))


def switches(root: Path, rounds: int) -> None:
    """Two readers in a loop while every round re-indexes a new edition and then rolls it back."""
    from flows.reindex import ReindexRequest, conduct

    settings = project(root, {"embedding_model": "hashing"}, documents=12)
    edit(root, edition=0, documents=12)
    conduct(settings, ReindexRequest(config="soak.yaml"))
    config, _ = load_retrieval_config(root, "soak.yaml")
    stop, answers, failures = threading.Event(), [0, 0], []

    def read(reader: int) -> None:
        retriever = LiveRetriever(settings, config, poll_s=0.0)
        while not stop.is_set():
            try:
                texts = [chunk.text for chunk in retriever.search("What does the edition say?").chunks]
            except Exception as error:  # whatever a reader meets is a failed read
                failures.append(f"{type(error).__name__}: {error}")
                continue
            editions = {text.split()[2] for text in texts}
            if len(texts) != config.top_k or len(editions) != 1:
                failures.append(f"{len(texts)} chunks of editions {editions}")
            answers[reader] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    started = time.monotonic()
    for edition in range(1, rounds + 1):
        edit(root, edition, documents=12)
        report = conduct(settings, ReindexRequest(config="soak.yaml"))
        if not report.promoted:
            raise SystemExit(f"edition {edition} was not promoted: {report.reason}")
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            roll_back(ledger, settings.lance, config.name)
    seconds = time.monotonic() - started
    stop.set()
    for reader in readers:
        reader.join()
    print(
        f"{rounds} re-indexes and {rounds} roll-backs in {seconds:.0f} s under 2 readers: {sum(answers)} answers, "
        f"{len(failures)} failed or mixed (limit 0)",
        flush=True,
    )
    for failure in failures[:3]:
        print("  ", failure)


def kills(root: Path, rounds: int, chance: random.Random) -> None:
    """Kill re-indexes at random moments; after each the live index must answer, and the next run must finish."""
    with emulated_vendor("--latency-ms", "100") as vendor:
        endpoint = {"api_base": f"{vendor}/v1", "usd_per_million_tokens": 1}
        settings = project(root, {"embedding_model": "openai/text-embedding-3-small", "embedding": endpoint}, DOCUMENTS)
        edit(root, 0)
        run_child(root)
        config, _ = load_retrieval_config(root, "soak.yaml")
        killed = unanswered = unfinished = 0
        longest = run_time(root)
        for edition in range(1, rounds + 1):
            edit(root, edition)
            killed += run_child(root, kill_after=chance.uniform(0, longest))
            found = LiveRetriever(settings, config).search("What does the edition say?").chunks
            unanswered += len({chunk.text.split()[2] for chunk in found}) != 1
            run_child(root)
            unfinished += live_edition(settings) != edition
        seen = counters(vendor)
    asked, distinct = seen["embedded_texts"], seen["embedded_distinct"]
    print(
        f"{killed} of {rounds} re-indexes were killed within {longest:.1f} s (the others were done before): "
        f"{unanswered} unanswered or mixed reads, {unfinished} not finished by the next run (limit 0, 0)"
    )
    twice = f"{asked - distinct} twice (three probes a build, and what was in flight at a kill)"
    print(f"texts embedded: {asked}, distinct {distinct}: {twice}")


def project(root: Path, fields: dict[str, object], documents: int) -> Settings:
    root.mkdir()
    config = {"name": "soak", "version": "1.0.0", "source": {"path": "corpus"}, "top_k": 4, **fields}
    (root / "soak.yaml").write_text(json.dumps(config))
    (root / "corpus").mkdir()
    return Settings(root=root)


def edit(root: Path, edition: int, documents: int = DOCUMENTS) -> None:
    """Every document says which edition it is of, so that an answer of two editions is seen."""
    for number in range(documents):
        (root / "corpus" / f"d{number}.md").write_text(f"The edition {edition} says {number}.")


def run_time(root: Path) -> float:
    """Seconds of a re-index without its imports."""
    edit(root, edition=10_000)
    started: list[float] = []
    run_child(root, started=started)
    return time.monotonic() - started[0]


def run_child(root: Path, kill_after: float | None = None, started: list[float] | None = None) -> bool:
    """Re-index in a process of its own; True when it was killed."""
    command = [sys.executable, "-c", CHILD, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("the re-index did not start")
    if started is not None:
        started.append(time.monotonic())
    if kill_after is not None:
        try:
            process.wait(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    process.communicate()
    if process.returncode:
        raise SystemExit(f"a re-index failed with exit code {process.returncode}")
    return False


def live_edition(settings: Settings) -> int:
    from tasks.index_table import open_table

    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        live = live_pointer(ledger, "soak")
    assert live is not None
    texts = open_table(settings.lance, live.index.table, live.index.version).search().select(["text"]).limit(None)
    (edition,) = {text.split()[2] for text in texts.to_arrow()["text"].to_pylist()}
    return int(edition)


if __name__ == "__main__":
    main()
