"""What the outbox delivers to: a target, the kinds of event that concern it, and how they are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tasks.ledger import Ledger
from touchstone.errors import TouchstoneError
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.settings import Settings


class TargetAway(TouchstoneError):
    """A projection's target did not take an event; it stays in the outbox."""


@dataclass(frozen=True)
class Projection:
    """One target. `send` yields the sequence of each event it has delivered, and raises when it cannot go on."""

    name: str
    kinds: frozenset[EventKind]
    send: Callable[[Settings, Ledger, Sequence[LedgerEvent]], Iterator[int]]
    is_news: bool = True  # else it shows a state: delivered from the first event on, however old, and rebuilt
    off: str = ""  # why nothing can be delivered from this process
