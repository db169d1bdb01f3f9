"""Release states as HTTP sends them: read again only when something was appended, each with a strong ETag."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from touchstone.routing import PublishedRelease

MEMO_S = 0.1  # how long an answer is given without a look at the ledger: a roll-back waits at most so long
_MOST = 64  # environments that are remembered


@dataclass(frozen=True)
class Answer:
    """What one environment's pollers get; `release` is None where nothing was ever released."""

    release: PublishedRelease | None
    body: bytes
    etag: str


@dataclass
class _Known:
    answer: Answer
    newest: int
    looked_at: float


class Releases:
    """Answers for all environments; safe to share between threads.

    `newest` gives the sequence of an environment's last event, cheaply; `read` gives what it serves.
    """

    def __init__(
        self,
        newest: Callable[[str], int],
        read: Callable[[str], PublishedRelease | None],
        memo_s: float = MEMO_S,
    ) -> None:
        self._newest, self._read, self._memo_s = newest, read, memo_s
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._looking = threading.Lock()

    def remembered(self, environment: str) -> Answer | None:
        """The answer of just now, without a look at the ledger; None: it is too old, or there is none."""
        known = self._known.get(environment)
        fresh = known is not None and time.monotonic() - known.looked_at < self._memo_s
        return known.answer if known and fresh else None

    def current(self, environment: str) -> Answer:
        """The answer of now: one look-up, and a whole read only when something was appended since."""
        with self._looking:  # who waited here finds the answer of the one who looked
            if (answer := self.remembered(environment)) is not None:
                return answer
            started = time.monotonic()
            newest, known = self._newest(environment), self._known.pop(environment, None)
            if known is None or known.newest != newest:
                known = _Known(_answer(self._read(environment)), newest, started)
            known.looked_at = started
            self._known[environment] = known
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
            return known.answer


def _answer(release: PublishedRelease | None) -> Answer:
    body = release.model_dump_json().encode() if release else b""
    return Answer(release, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
