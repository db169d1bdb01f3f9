"""One line for every retrieval: what was asked, what came from which index, and what the answer rests on.

The log is what freshness and query drift are measured on. A retrieval without a run key is production traffic; one
with a run key was made by an eval.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from touchstone.pii import scrub
from touchstone.ranking import words
from touchstone.results import Retrieval, RetrievedChunk

_USED_SHARE = 0.6
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FEWEST_WORDS = 3


def log_retrieval(
    folder: Path,
    retrieval: Retrieval,
    *,
    config: str,
    bundle: str | None = None,
    case_id: str | None = None,
    run_key: str | None = None,
    segment: str | None = None,
    used_chunk_ids: Sequence[str] = (),
) -> None:
    """Append one line to <folder>/<UTC day>.jsonl: one O_APPEND write, so that lines of several writers never mix.

    `config` is the retrieval config's name (empty for an app that retrieves by itself). What a reader selects by comes
    first and without spaces, so that it can pass over a line that does not concern it without parsing all of it.
    """
    now = datetime.now(UTC)
    record = {
        "time": now.isoformat(timespec="milliseconds"),
        "run_key": run_key,
        "config": config,
        "index_version": retrieval.index_version,
        "segment": segment,
        "query": scrub(retrieval.query),
        "chunks": [
            {"document_id": chunk.document_id, "chunk_id": chunk.chunk_id, "rank": chunk.rank, "score": chunk.score}
            for chunk in retrieval.chunks
        ],
        "used_chunk_ids": list(used_chunk_ids),
        "bundle": bundle,
        "case_id": case_id,
        "latency_ms": round(retrieval.latency_ms, 3),
        "embedding_model": retrieval.embedding_model,
        "search": retrieval.search,
    }
    _append(folder, f"{now:%Y-%m-%d}.jsonl", json.dumps(record, ensure_ascii=False, separators=(",", ":")))


def used_chunks(answer: str, chunks: Sequence[RetrievedChunk]) -> list[str]:
    """Ids of the chunks an answer rests on, as far as words can tell.

    A chunk was used when the answer cites its document id, or when a sentence of the answer has at least three
    telling words (numbers, or longer than three letters) and 60 % of them are in the chunk.
    """
    sentences = [_telling_words(sentence) for sentence in _SENTENCE_END.split(answer)]
    sentences = [sentence for sentence in sentences if len(sentence) >= _FEWEST_WORDS]
    return [chunk.chunk_id for chunk in chunks if _cites(answer, chunk) or _holds_one_of(sentences, chunk)]


def _cites(answer: str, chunk: RetrievedChunk) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(chunk.document_id)}(?![\w-])", answer))


def _holds_one_of(sentences: Sequence[Sequence[str]], chunk: RetrievedChunk) -> bool:
    known = set(_telling_words(chunk.text))
    return any(sum(word in known for word in sentence) >= _USED_SHARE * len(sentence) for sentence in sentences)


def _telling_words(text: str) -> list[str]:
    return [word for word in words(text) if len(word) > 3 or word.isdigit()]


def _append(folder: Path, name: str, line: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{line}\n".encode(errors="replace"))  # a question may hold half a surrogate pair
    finally:
        os.close(file)
