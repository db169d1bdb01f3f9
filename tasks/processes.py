"""Processes that belong together: started in order of need, watched, and ended together whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tasks.process_logs import ProcessLog
from tasks.process_marks import end, mark_of, marked
from touchstone.errors import Unmeasurable

_POLL_S = 0.25
_REPORT_S = 3  # for a worker to tell its server that a run was ended


@dataclass(frozen=True)
class Part:
    """One process. Without `ready` it is a step, done when it ends with exit code 0."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # the whole of it
    ready: Callable[[], Awaitable[bool]] | None = None
    after: tuple[str, ...] = ()  # what has to be ready, or done, first
    address: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10  # to end by itself, before all that it started is told, and killed
    children_first: bool = False  # what it started is ended first, so that it can tell how that ended


@dataclass
class Running:
    """A part that was started."""

    part: Part
    process: asyncio.subprocess.Process
    log: ProcessLog
    reader: asyncio.Task[None]
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_ready: bool = False


class PartFailed(Unmeasurable):
    """A part ended, or was not ready in time; the message has its last lines."""


class Supervisor:
    """Holds the parts. `told` gets (part, line), `changed` is called when a part starts or becomes ready."""

    def __init__(
        self,
        parts: Sequence[Part],
        logs: Path,
        told: Callable[[str, str], None],
        changed: Callable[[], None] = lambda: None,
        deadline_s: float = 120,
    ) -> None:
        self.parts = tuple(parts)
        self.stack = secrets.token_hex(8)
        self.running: dict[str, Running] = {}
        self._logs, self._told, self._changed, self._deadline_s = logs, told, changed, deadline_s
        self._done = {part.name: asyncio.Event() for part in parts}
        self._failed: asyncio.Future[PartFailed] = asyncio.get_running_loop().create_future()
        self._watchers: list[asyncio.Task[None]] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Returns when every part is ready. Raises PartFailed; what was started then is still there: `stop` it."""
        self._guard = _start_guard(self.stack, [part.name for part in reversed(self.parts)])
        starts = [asyncio.create_task(self._start(part)) for part in self.parts]
        waiting = set(starts)
        try:
            while waiting:
                done, _ = await asyncio.wait([*waiting, self._failed], return_when=asyncio.FIRST_COMPLETED)
                if self._failed.done():
                    raise self._failed.result()
                waiting -= done
                for task in starts:
                    if task in done:
                        task.result()
        finally:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def watch(self) -> None:
        """Waits until a part fails, and raises that."""
        raise await asyncio.shield(self._failed)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Ends the parts, the last first, and all that they started. With `hurry` set nothing is waited for."""
        self._stopping = True
        hurry = hurry or asyncio.Event()
        for part in reversed(self.parts):
            if (one := self.running.get(part.name)) is not None:
                await self._end(one, hurry)
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._guard is not None:
            _close(self._guard)

    async def _start(self, part: Part) -> None:
        for name in part.after:
            await self._done[name].wait()
        one = await self._spawn(part)
        self._watchers.append(asyncio.create_task(self._watch(one)))
        self._changed()
        if part.ready is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._done[part.name].wait(), self._deadline_s)
        else:
            await self._poll(part, part.ready)
        if not self._done[part.name].is_set():
            self._fail(one, f"was not ready within {self._deadline_s:.0f} s")
            return
        one.is_ready = True
        took = (datetime.now(UTC) - one.since).total_seconds()
        self._told(part.name, f"{'ready' if part.ready else 'done'} after {took:.0f} s")
        self._changed()

    async def _poll(self, part: Part, ready: Callable[[], Awaitable[bool]]) -> None:
        ends = time.monotonic() + self._deadline_s
        while time.monotonic() < ends:
            if await ready():
                self._done[part.name].set()
                return
            await asyncio.sleep(_POLL_S)

    async def _spawn(self, part: Part) -> Running:
        log = ProcessLog(self._logs / f"{part.name}.log", lambda line: self._told(part.name, line))
        reading, writing = os.pipe()  # asyncio's own pipe would keep wait() from seeing the end of the process
        try:
            process = await asyncio.create_subprocess_exec(
                *part.command,
                env={**part.environment, **mark_of(self.stack, part.name)},
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
            )
        except OSError as error:
            os.close(reading)
            raise PartFailed(f"{part.name} cannot be started: {part.command[0]}: {error.strerror}") from None
        finally:
            os.close(writing)
        one = Running(part, process, log, asyncio.create_task(_read(reading, log)))
        self.running[part.name] = one
        return one

    async def _watch(self, one: Running) -> None:
        code = await one.process.wait()
        if not self._stopping:
            await asyncio.wait([one.reader], timeout=1)  # its last words
            if one.part.ready is None and code == 0:
                self._done[one.part.name].set()
            else:
                self._fail(one, f"ended with {_words(code)}")

    def _fail(self, one: Running, what: str) -> None:
        if not self._failed.done() and not self._stopping:
            lines = "\n".join(f"  {line}" for line in one.log.last) or "  (it said nothing)"
            self._failed.set_result(PartFailed(f"{one.part.name} {what}; its last lines:\n{lines}"))

    async def _end(self, one: Running, hurry: asyncio.Event) -> None:
        if one.part.children_first and one.process.returncode is None:
            await self._end_children(one, hurry)
        if one.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(one.part.stop_signal)
            ended, hurried = asyncio.create_task(one.process.wait()), asyncio.create_task(hurry.wait())
            await asyncio.wait([ended, hurried], timeout=one.part.grace_s, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            hurried.cancel()
        left = await asyncio.to_thread(marked, self.stack, one.part.name)
        await asyncio.to_thread(end, left, 0.5 if hurry.is_set() else one.part.grace_s)
        await asyncio.wait([one.reader], timeout=1)
        one.reader.cancel()
        one.log.close()

    async def _end_children(self, one: Running, hurry: asyncio.Event) -> None:
        found = await asyncio.to_thread(marked, self.stack, one.part.name)
        children = [process for process in found if process.pid != one.process.pid]
        if children:
            await asyncio.to_thread(end, children, 0.5 if hurry.is_set() else one.part.grace_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), _REPORT_S)


async def _read(descriptor: int, log: ProcessLog) -> None:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while data := await reader.read(65_536):
            log.write(data)
    finally:
        transport.close()


def _start_guard(stack: str, order: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tasks.process_guard", stack, *order]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _close(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guard.wait(timeout=15)


def _words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
