"""Finds the documents that a served bundle answers from: in the live index, or in the one its release pins."""

from __future__ import annotations

import threading
import time

from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from tasks.retrieval import LiveRetriever, Retriever
from touchstone.definition import Definition
from touchstone.errors import Unmeasurable
from touchstone.release_index import index_fits
from touchstone.results import Retrieval
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

_LOOK_S = 1.0


class Retrievers:
    """One retriever per config and index; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ledger = Ledger(settings.ledger, settings.environment)
        self._live: dict[str, LiveRetriever] = {}
        self._pinned: dict[tuple[str, str], Retriever] = {}
        self._fits: dict[str, tuple[float, bool]] = {}
        self._opening = threading.Lock()

    def search(self, definition: Definition, question: str, *, pinned: bool = False) -> Retrieval | None:
        """None for a bundle without retrieval.

        A re-index reaches users by itself, through its own gate: so the live index is searched where it is built as
        the bundle's config says. `pinned`, or where it is built otherwise: the version that the bundle was gated with.
        Raises Unmeasurable when that cannot be opened.
        """
        config = definition.retrieval
        if config is None:
            return None
        if not pinned and self._live_fits(config):
            return self._live_retriever(config).search(question)
        return self._pinned_retriever(config, definition).search(question)

    def close(self) -> None:
        self._ledger.close()

    def _live_fits(self, config: RetrievalConfig) -> bool:
        looked_at, fits = self._fits.get(config.fingerprint, (0.0, False))
        if time.monotonic() - looked_at < _LOOK_S and looked_at:
            return fits
        try:
            pointer = live_pointer(self._ledger, config.name)
            fits = pointer is not None and index_fits(pointer.index, config)
        except Unmeasurable:
            pass  # the ledger is away: go on as before
        self._fits[config.fingerprint] = (time.monotonic(), fits)
        return fits

    def _live_retriever(self, config: RetrievalConfig) -> LiveRetriever:
        with self._opening:
            if config.fingerprint not in self._live:
                self._live[config.fingerprint] = LiveRetriever(self._settings, config, self._ledger)
            return self._live[config.fingerprint]

    def _pinned_retriever(self, config: RetrievalConfig, definition: Definition) -> Retriever:
        index = definition.index
        if index is None:
            raise Unmeasurable(f"{definition.bundle.name} was released without an index; gate it again")
        with self._opening:
            key = (config.fingerprint, index.label)
            if key not in self._pinned:
                self._pinned[key] = Retriever.open(config, index, self._settings.lance)
            return self._pinned[key]
