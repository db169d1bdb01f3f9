"""Webhooks out of the inbox: each action of each row is done once, as soon as Prefect takes it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from touchstone.errors import BadInput, TouchstoneError, Unmeasurable
from touchstone.inbox import HookStatus, InboxRow
from touchstone.webhooks import Action, Hook

GIVEN_UP_AFTER_S = 24 * 3600.0  # a trigger of yesterday does more harm than good
LONGEST_PAUSE_S = 10.0  # so that all is delivered soon after an outage
_LOOK_EVERY_S = 1.0  # for what other gateways, or `touchstone hooks retry`, left to be done
_AT_ONCE = 4  # Prefect on SQLite refuses more than it speeds up
_ACTION_S = 15.0  # an action's deadline, within the 20 s for which the inbox hands out a row
_log = logging.getLogger("touchstone")


class Store(Protocol):
    """The part of the inbox that hands rows out; its methods block."""

    def claim(self, limit: int, now: float | None = None) -> list[InboxRow]: ...
    def keep(self, hook_id: str, outcomes: Sequence[str]) -> None: ...
    def finish(self, hook_id: str, status: HookStatus, outcomes: Sequence[str]) -> None: ...
    def postpone(self, hook_id: str, due_at: float, outcomes: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Doers:
    """How each kind of action is done. BadInput is final; whatever else goes wrong is tried again.

    Unmeasurable of `run` and `emit` says that Prefect is away, and all waits; else that webhook waits by itself.

    `run` takes FLOW/NAME, parameters and an idempotency key and gives the flow run's id; `emit` takes name, resource,
    payload and a key; `alarm` takes a name and facts and says what came of it.
    """

    run: Callable[[str, Mapping[str, Any], str], Awaitable[str]]
    emit: Callable[[str, str, Mapping[str, Any], str], Awaitable[None]]
    alarm: Callable[[str, Mapping[str, Any]], Awaitable[str]]


class Dispatcher:
    """Works until it is cancelled. `wake` may be called from the event loop after each webhook."""

    def __init__(self, store: Store, doers: Doers) -> None:
        self._store, self._doers = store, doers
        self._woken = asyncio.Event()
        self._working: set[asyncio.Task[None]] = set()
        self._away_in_a_row = 0
        self._paused_until = 0.0

    def wake(self) -> None:
        self._woken.set()

    async def work(self) -> None:
        """Take what is due, again and again."""
        try:
            while True:
                if await self._take() == 0:
                    await self._wait()
        finally:
            for task in self._working:
                task.cancel()

    async def _take(self) -> int:
        """How many rows were taken; none when nothing is due, the inbox is away, or Prefect was a moment ago."""
        self._woken.clear()
        if time.time() < self._paused_until:
            return 0
        if len(self._working) >= _AT_ONCE:  # a row that is taken must not wait out its lease in a queue
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        try:
            rows = await asyncio.to_thread(self._store.claim, _AT_ONCE - len(self._working))
        except Exception as error:  # whatever it is: who gives up here would take webhooks for ever and do nothing
            _log.warning("webhooks wait: %s: %s", type(error).__name__, error)
            return 0
        for row in rows:
            task = asyncio.create_task(self._settle(row))
            self._working.add(task)
            task.add_done_callback(self._done)
        return len(rows)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if not task.cancelled() and task.exception() is not None:  # the row's lease ends, and it is taken again
            _log.error("webhook: %s: %s", type(task.exception()).__name__, task.exception())

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), _LOOK_EVERY_S)
        except TimeoutError:
            return

    async def _settle(self, row: InboxRow) -> None:
        """Do what is not done: in a second attempt, or a retry, what was done stays done."""
        outcomes = list(row.outcomes)
        for number, action in enumerate(row.hook.actions):
            if number < len(outcomes) and not _has_failed(outcomes[number]):
                continue
            try:
                async with asyncio.timeout(_ACTION_S):
                    outcome = await self._do(row.hook, number, action)
            except BadInput as error:
                outcome = f"{_FAILED}{error}"
            except Exception as error:
                await self._again(row, outcomes, number, error)
                return
            outcomes[number:] = [outcome, *outcomes[number + 1 :]]
            if number + 1 < len(row.hook.actions):  # Prefect knows an event again for five minutes only
                await asyncio.to_thread(self._store.keep, row.hook.id, outcomes)
        status = HookStatus.FAILED if any(map(_has_failed, outcomes)) else HookStatus.DONE
        await asyncio.to_thread(self._store.finish, row.hook.id, status, outcomes)

    async def _do(self, hook: Hook, number: int, action: Action) -> str:
        key = f"{action.target}:{hook.id}:{number}"  # Prefect's keys are per flow: two deployments of one share them
        if action.problem:
            raise BadInput(f"{action.target}: {action.problem}; correct `parameters` of the rule in touchstone.yaml")
        if action.kind == "alarm":
            return f"{action.target}: {await self._doers.alarm(action.target, action.parameters)}"
        if action.kind == "run":
            outcome = f"flow run {await self._doers.run(action.target, action.parameters, key)}"
        else:
            await self._doers.emit(action.target, action.resource, action.parameters, key)
            outcome = "sent"
        self._away_in_a_row = 0
        return f"{action.target}: {outcome}"

    async def _again(self, row: InboxRow, outcomes: list[str], number: int, error: Exception) -> None:
        """Later; and while Prefect is away nothing else is tried, or an outage would be as busy as all that waits.

        What Prefect breaks on, though it is there, waits by itself: it must not hold up the others.
        """
        action = row.hook.actions[number]
        why = str(error) if isinstance(error, TouchstoneError) else type(error).__name__
        age = (datetime.now(UTC) - datetime.fromisoformat(row.hook.received_at)).total_seconds()
        if age > GIVEN_UP_AFTER_S:
            given_up = f"{_FAILED}{action.target}: given up after {age / 3600:.0f} h: {why}"
            outcomes[number:] = [given_up, *outcomes[number + 1 :]]
            await asyncio.to_thread(self._store.finish, row.hook.id, HookStatus.FAILED, outcomes)
            return
        due_at = time.time() + _pause(row.attempts)
        if action.kind != "alarm" and isinstance(error, Unmeasurable | TimeoutError):
            if time.time() >= self._paused_until:  # once for all that were under way
                self._paused_until = time.time() + _pause(self._away_in_a_row)
                self._away_in_a_row += 1
            due_at = self._paused_until
        _log.warning("webhook %s waits %.0f s: %s", row.hook.id, due_at - time.time(), why)
        await asyncio.to_thread(self._store.postpone, row.hook.id, due_at, outcomes)


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE_S, 2.0 ** min(failures, 10))


_FAILED = "failed: "


def _has_failed(outcome: str) -> bool:
    return outcome.startswith(_FAILED)
