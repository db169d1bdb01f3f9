"""Vectors on disk by embedding model and content: a rebuilt, crashed or rolled-back index pays for nothing twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tasks.embedding import Floats
from touchstone.errors import Unmeasurable
from touchstone.retrieval_config import RetrievalConfig

Vectors = Mapping[str, tuple[Floats, str]]  # by content hash, with the time of embedding

_ASKED_AT_ONCE = 500
# Not WITHOUT ROWID: vectors inside the key's tree make the file twice as large and each write four times as slow.
_TABLE = """CREATE TABLE IF NOT EXISTS vectors (
    model TEXT NOT NULL, content BLOB NOT NULL, embedded_at TEXT NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (model, content)
)"""


def cache_key(config: RetrievalConfig) -> str:
    """Whose vectors these are: one model name behind two addresses may be two models."""
    base = config.embedding.api_base
    return f"{config.embedding_model} at {base}" if base else config.embedding_model


class EmbeddingCache:
    """One SQLite file for all models; safe for several threads and processes. It may be deleted at any time."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors_named():
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")  # a power cut costs the last vectors, not the file
            self._connection.execute(_TABLE)

    def get(self, hashes: Sequence[str]) -> Vectors:
        """What is known of these content hashes."""
        found: dict[str, tuple[Floats, str]] = {}
        with self._lock, self._errors_named():
            for start in range(0, len(hashes), _ASKED_AT_ONCE):
                keys = [bytes.fromhex(content) for content in hashes[start : start + _ASKED_AT_ONCE]]
                marks = ",".join("?" * len(keys))
                query = f"SELECT content, embedded_at, vector FROM vectors WHERE model = ? AND content IN ({marks})"
                for content, embedded_at, vector in self._connection.execute(query, [self._model, *keys]):
                    found[content.hex()] = (np.frombuffer(vector, dtype=np.float32), embedded_at)
        return found

    def put(self, hashes: Sequence[str], vectors: Floats, embedded_at: str) -> None:
        """Keep one row per hash; durable when this returns, but for a power cut."""
        rows = [
            (self._model, bytes.fromhex(content), embedded_at, np.ascontiguousarray(row, dtype=np.float32).tobytes())
            for content, row in zip(hashes, vectors, strict=True)
        ]
        with self._lock, self._errors_named():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            message = f"embedding cache {self._path}: {error}; make room, or delete the file and build again"
            raise Unmeasurable(message) from None
