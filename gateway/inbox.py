"""What the gateway asks of the store of webhooks that it is handed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from touchstone.webhooks import Hook


class HookStatus(StrEnum):
    """Where a webhook is."""

    WAITING = "waiting"  # for its first or next attempt
    DONE = "done"
    FAILED = "failed"  # nothing will be tried by itself: `touchstone hooks retry`
    IGNORED = "ignored"  # no rule wants it


class InboxRow(BaseModel):
    """A webhook as operators see it; `outcomes` has one line per action that was tried."""

    model_config = ConfigDict(frozen=True)

    hook: Hook
    status: HookStatus
    attempts: int = 0
    outcomes: tuple[str, ...] = ()
    done_at: str | None = None


class Inbox(Protocol):
    """Durable; safe to share between tasks of one event loop, and between processes."""

    async def put(self, hook: Hook) -> bool:
        """True once it is on disk; False when this id is there already. Raises Unmeasurable when it cannot be kept."""
        ...

    async def rows(self, status: HookStatus | None, source: str | None, limit: int) -> Sequence[InboxRow]:
        """Newest first. Raises Unmeasurable."""
        ...

    async def counts(self) -> dict[HookStatus, int]:
        """How many there are of each status. Raises Unmeasurable."""
        ...
