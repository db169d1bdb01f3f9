"""What the gateway serves, read from the ledger: the release state of any environment, with its fall-backs."""

from __future__ import annotations

import threading
from collections import OrderedDict

from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import Ledger
from tasks.releases import fallback_parity, read_release
from touchstone.errors import Unmeasurable
from touchstone.routing import PublishedRelease, publish
from touchstone.settings import Settings

_MOST_LEDGERS = 16  # environments whose connections are kept: names come from whoever asks


class PublishedReleases:
    """Release states by environment; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ledgers: OrderedDict[str, Ledger] = OrderedDict()
        self._opening = threading.Lock()

    def newest(self, environment: str) -> int:
        """Sequence of the environment's last event, 0 without any: one look-up by primary key.

        While it stays, nothing that is served can have changed. Raises Unmeasurable when the ledger cannot be read.
        """
        try:
            events = self._ledger(environment).events(newest=1)
        except SQLAlchemyError as error:
            raise Unmeasurable(f"the ledger cannot be read: {getattr(error, 'orig', None) or error}") from None
        return events[0].sequence if events else 0

    def read(self, environment: str) -> PublishedRelease | None:
        """What is served; None when nothing was ever released there. Raises Unmeasurable as `newest` does."""
        ledger = self._ledger(environment)
        state = read_release(ledger)
        if state.sequence == 0:
            return None
        try:
            return publish(state, fallback_parity(ledger, state))
        except SQLAlchemyError as error:
            raise Unmeasurable(f"the ledger cannot be read: {getattr(error, 'orig', None) or error}") from None

    def close(self) -> None:
        with self._opening:
            for ledger in self._ledgers.values():
                ledger.close()
            self._ledgers.clear()

    def _ledger(self, environment: str) -> Ledger:
        with self._opening:
            ledger = self._ledgers.pop(environment, None) or Ledger(self._settings.ledger, environment)
            self._ledgers[environment] = ledger
            while len(self._ledgers) > _MOST_LEDGERS:
                self._ledgers.popitem(last=False)[1].close()
            return ledger
