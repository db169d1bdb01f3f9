"""LangChain's indexing API on its LanceDB store does the job of benchmarks/incremental_build.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lancedb
from langchain_classic.indexes import SQLRecordManager
from langchain_community.vectorstores import LanceDB
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import index

from benchmarks.synthetic import embed, parts

TABLE = "chunks"


class CountingEmbeddings(Embeddings):
    """As the other contenders embed, counted."""

    def __init__(self) -> None:
        self.count = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.count += len(texts)
        return embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class RepairedLanceDB(LanceDB):
    """As shipped, the store deletes `id in ('a,b,c')`: of several ids, not one is found."""

    def delete(self, ids: list[str] | None = None, *_: Any, **__: Any) -> None:
        quoted = ", ".join(f"'{identity}'" for identity in ids or ())
        self.get_table().delete(f"id in ({quoted})")


class LangChain:
    """`index(cleanup="full")` with a record manager in SQLite, and the store in `append` mode."""

    def __init__(self, state: Path, store: type[LanceDB], batch_size: int) -> None:
        self._uri = str(state / "lance")
        self._embeddings = CountingEmbeddings()
        self._records = SQLRecordManager("benchmark", db_url=f"sqlite:///{state / 'records.db'}")
        self._records.create_schema()
        # The default mode, `overwrite`, would replace the table by each batch.
        self._store = store(uri=self._uri, embedding=self._embeddings, table_name=TABLE, mode="append")
        self._batch_size = batch_size

    def update(self, folder: Path) -> int:
        """Bring the store up to date; returns how many texts were embedded."""
        before = self._embeddings.count
        documents = [
            Document(page_content=part, metadata={"source": path.stem})
            for path in sorted(folder.glob("*.md"))
            for part in parts(path.read_text())
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its default key encoder is SHA-1
            index(documents, self._records, self._store, cleanup="full", batch_size=self._batch_size)
        return self._embeddings.count - before

    def version(self) -> int:
        tables = lancedb.connect(self._uri)
        return tables.open_table(TABLE).version if self._store.get_table() is not None else 0

    def texts(self) -> list[tuple[str, str]]:
        """(document id, text) of every row."""
        rows = lancedb.connect(self._uri).open_table(TABLE).search().select(["metadata", "text"]).limit(None)
        return [(row["metadata"]["source"], row["text"]) for row in rows.to_list()]
