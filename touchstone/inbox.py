"""A webhook on its way: what operators see of it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from touchstone.webhooks import Hook


class HookStatus(StrEnum):
    """Where a webhook is."""

    WAITING = "waiting"  # for its first or next attempt
    DONE = "done"
    FAILED = "failed"  # nothing will be tried by itself: `touchstone hooks retry`
    IGNORED = "ignored"  # no rule wants it


class InboxRow(BaseModel):
    """A webhook in the inbox; `outcomes` has one line per action that is settled, in the order of its actions."""

    model_config = ConfigDict(frozen=True)

    hook: Hook
    status: HookStatus
    attempts: int = 0
    outcomes: tuple[str, ...] = ()
    done_at: str | None = None
