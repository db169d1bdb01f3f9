"""What the tests of the live index share: a corpus that changes, its real table, and the ledger that points to it."""

from __future__ import annotations

import json
import sqlite3
import time
from datetime import timedelta
from pathlib import Path

import lancedb

from tasks.index_table import open_table
from tasks.indexing import ensure_index
from tasks.ledger import Ledger
from tasks.live_index import LivePointer, clean_up, live_pointer, promote, roll_back
from tasks.retrieval import LiveRetriever
from touchstone.index import IndexVersion
from touchstone.results import Retrieval
from touchstone.retrieval_config import RetrievalConfig, Source
from touchstone.settings import Settings

AT_ONCE = timedelta(0)


class Site:
    """Three documents that all say which edition they are, so that an answer of two editions is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(root=folder)
        self.lance = self.settings.lance
        self.ledger = Ledger(self.settings.ledger, "default")
        self.config = self.configured()

    def configured(self, **changes: object) -> RetrievalConfig:
        known = {"name": "help", "version": "1.0.0", "embedding_model": "hashing", "top_k": 3}
        return RetrievalConfig.model_validate({**known, "source": Source(path="corpus.jsonl"), **changes})

    def build(self, edition: int, **changes: object) -> IndexVersion:
        lines = [{"id": f"d{n}", "text": f"Edition {edition} of chapter {n}."} for n in range(3)]
        (self.folder / "corpus.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
        return ensure_index(self.configured(**changes), self.folder / "corpus.jsonl", self.lance)

    def build_apart(self, old: int, total: int) -> list[IndexVersion]:
        """So many versions, with time between the `old` ones and the rest: Lance removes up to a moment."""
        versions = [self.build(edition) for edition in range(1, old + 1)]
        time.sleep(1)
        return versions + [self.build(edition) for edition in range(old + 1, total + 1)]

    def promote(self, index: IndexVersion, reason: str = "not worse") -> LivePointer:
        live = live_pointer(self.ledger, index.config_name)
        return promote(self.ledger, self.lance, index, after=live.sequence if live else 0, reason=reason)

    def live(self) -> IndexVersion:
        pointer = live_pointer(self.ledger, "help")
        assert pointer is not None
        return pointer.index

    def back(self, to: str | None = None) -> IndexVersion:
        return roll_back(self.ledger, self.lance, "help", to).index

    def clean(self, older_than: timedelta = AT_ONCE) -> tuple[int, ...]:
        (result,) = clean_up(self.ledger, self.lance, "help", older_than=older_than)
        assert result.skipped is None
        return result.removed

    def reader(self, poll_s: float = 0.0) -> LiveRetriever:
        return LiveRetriever(self.settings, self.config, self.ledger, poll_s)

    def editions(self, index: IndexVersion) -> set[str]:
        """As they are stored in the version."""
        texts = open_table(self.lance, index.table, index.version).to_arrow()["text"].to_pylist()
        return {text.split()[1] for text in texts}

    def tags(self, index: IndexVersion) -> set[int]:
        table = lancedb.connect(self.lance).open_table(index.table)
        return {tag["version"] for tag in table.tags.list().values()}

    def sql(self, statement: str) -> None:
        """Run on the ledger's file from outside, to break it and to mend it."""
        connection = sqlite3.connect(self.folder / ".touchstone" / "ledger.db")
        connection.execute(statement)
        connection.close()


def editions(found: Retrieval) -> set[str]:
    assert len(found.chunks) == 3
    return {chunk.text.split()[1] for chunk in found.chunks}
