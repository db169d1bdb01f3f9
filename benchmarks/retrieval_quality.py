"""Retrieval on real data beside published figures: nDCG@10 on SciFact; precision, recall, MRR at 3 on claude-docs.

python benchmarks/retrieval_quality.py [--only claude-docs|scifact]

Nothing is tuned on these queries: the retrieval config has the defaults of the project. Indexes are kept in
.touchstone/benchmarks, so that a second run embeds only the queries.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.indexing import ensure_index
from tasks.minilm import load_minilm
from tasks.retrieval import Retriever
from tasks.sources import read_documents
from touchstone.ranking import ndcg_at_k, precision_at_k, recall_at_k, reciprocal_rank
from touchstone.retrieval_config import RetrievalConfig, Source

DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", "../shared/data"))
LANCE = ".touchstone/benchmarks/lance"
MODES = ("semantic", "keyword", "hybrid")
CHUNKS = 50  # enough for ten distinct documents

Relevant = Mapping[str, Mapping[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["claude-docs", "scifact"])
    only = parser.parse_args().only
    if not DATA.is_dir():
        raise SystemExit(f"skipped: no data at {DATA}; set TOUCHSTONE_SHARED_DATA")
    if only != "scifact":
        claude_docs()
    if only != "claude-docs":
        scifact()


def claude_docs() -> None:
    cases = _lines(DATA / "claude-docs" / "cases.jsonl")
    questions = [case["question"] for case in cases]
    print("claude-docs, 100 questions          precision@3  recall@3  MRR@3  ms/query")
    print("published, commercial embedder            0.428     0.659  0.737")
    print("published, the same with summaries        0.453     0.714  0.773")
    for mode in MODES:
        rankings, milliseconds = _rankings("claude-docs", mode, questions)
        pairs = [(ranked, case["relevant_ids"]) for ranked, case in zip(rankings, cases, strict=True)]
        precision, recall = (_mean(measure(*pair, 3) for pair in pairs) for measure in (precision_at_k, recall_at_k))
        mrr = _mean(reciprocal_rank(ranked, relevant, 3) for ranked, relevant in pairs)
        figures = f"{precision:.3f}     {recall:.3f}  {mrr:.3f}  {milliseconds:8.1f}"
        print(f"here, minilm, {mode:<28}{figures}")
    print(flush=True)


def scifact() -> None:
    queries = {line["_id"]: line["text"] for line in _lines(DATA / "scifact" / "queries.jsonl")}
    relevant = _qrels(DATA / "scifact" / "qrels" / "test.tsv")
    queries = {key: text for key, text in queries.items() if key in relevant}
    print(f"SciFact, {len(queries)} queries                   nDCG@10  recall@10  ms/query")
    print("published, all-MiniLM-L6-v2              0.645")
    print("published, BM25                          0.665")
    _print_scifact("minilm, whole abstracts, exact", _whole_abstracts(queries), queries, relevant)
    for mode in MODES:
        rankings, milliseconds = _rankings("scifact", mode, list(queries.values()))
        _print_scifact(f"minilm, chunks, {mode}", rankings, queries, relevant, milliseconds)


def _print_scifact(
    name: str,
    rankings: Sequence[Sequence[str]],
    queries: Mapping[str, str],
    relevant: Relevant,
    milliseconds: float = 0,
) -> None:
    pairs = [(ranked, relevant[key]) for ranked, key in zip(rankings, queries, strict=True)]
    ndcg = _mean(ndcg_at_k(ranked, grades, 10) for ranked, grades in pairs)
    recall = _mean(recall_at_k(ranked, grades, 10) for ranked, grades in pairs)
    latency = f"{milliseconds:8.1f}" if milliseconds else ""
    print(f"here, {name:<33}  {ndcg:.3f}      {recall:.3f}  {latency}", flush=True)


def _whole_abstracts(queries: Mapping[str, str]) -> list[list[str]]:
    """As the published figure was made: one vector per abstract, of its first 256 tokens."""
    documents = read_documents(DATA / "scifact" / "corpus.jsonl")
    embedder = load_minilm()
    rows = embedder.embed([f"{document.title} {document.text}" for document in documents])
    order = np.argsort(-(embedder.embed(list(queries.values())) @ rows.T), axis=1)[:, :10]
    return [[documents[place].id for place in places] for places in order]


def _rankings(corpus: str, mode: str, questions: Sequence[str]) -> tuple[list[list[str]], float]:
    """Document ids per question, and the median latency of a query that comes alone."""
    source = DATA / corpus / "corpus.jsonl"
    config = RetrievalConfig.model_validate(
        {
            "name": corpus,
            "version": "1.0.0",
            "source": Source(path=f"{corpus}/corpus.jsonl"),
            "search": mode,
            "top_k": CHUNKS,
        }
    )
    started = time.monotonic()
    index = ensure_index(config, source, LANCE, progress=_say_progress)
    if index.embedded_chunks:
        print(f"(built: {index.chunks} chunks of {index.documents} documents in {time.monotonic() - started:.0f} s)")
    retriever = Retriever.open(config, index, LANCE)
    found = retriever.search_many(questions)
    latency = float(np.median([retriever.search(question).latency_ms for question in questions[:50]]))
    return [[chunk.document_id for chunk in retrieval.chunks] for retrieval in found], latency


def _say_progress(done: int, total: int) -> None:
    if done == total or done % 1024 == 0:
        print(f"(embedded {done} of {total} chunks)", flush=True)


def _qrels(path: Path) -> dict[str, dict[str, float]]:
    relevant: dict[str, dict[str, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    return relevant


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    main()
