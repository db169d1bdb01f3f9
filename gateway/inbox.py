"""What the gateway asks of the store of webhooks that it is handed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from touchstone.inbox import HookStatus, InboxRow
from touchstone.webhooks import Hook


class Inbox(Protocol):
    """Durable; safe to share between tasks of one event loop, and between processes. All raise Unmeasurable."""

    async def put(self, hook: Hook) -> bool:
        """True once it is on disk; False when this id is there already."""
        ...

    async def rows(self, status: HookStatus | None, source: str | None, limit: int) -> Sequence[InboxRow]:
        """Newest first."""
        ...

    async def counts(self) -> dict[HookStatus, int]:
        """How many there are of each status."""
        ...
