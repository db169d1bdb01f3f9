"""One run of the stack: from the first process to the last, whoever ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.health import answers
from tasks.process_marks import end_parts
from tasks.processes import Part, Supervisor
from tasks.stack_file import Stack, StackPart, forget_stack, is_held, read_stack, write_stack
from touchstone.errors import BadInput, Unmeasurable

_DOWN_S = 90  # until `up` has ended all its parts
_GRACE_S = 10


async def run_stack(
    parts: Sequence[Part],
    state: Path,
    told: Callable[[str, str], None],
    ready: Callable[[], None],
    *,
    exports: Mapping[str, str] | None = None,
    own: Mapping[str, str] | None = None,
    deadline_s: float = 120,
) -> None:
    """Start the parts, call `ready`, and run until SIGINT, SIGTERM or SIGHUP; then end them, the last first.

    Raises PartFailed when one ends by itself or is not ready in time; the others are ended then, too. A second
    signal ends them without waiting.
    """
    supervisor = Supervisor(parts, state / "logs", told, lambda: note(False), deadline_s)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def note(is_ready: bool) -> None:
        write_stack(state, _described(supervisor, is_ready, exports or {}, own or {}))

    with _signals(lambda: hurry.set() if stop.is_set() else stop.set()):
        try:
            note(False)
            if await _unless(stop, supervisor.start()):
                note(True)
                ready()
                await _unless(stop, supervisor.watch())
        finally:
            stop.set()
            await supervisor.stop(hurry)
            forget_stack(state)


async def check_own_servers(own: Mapping[str, str]) -> None:
    """Raises BadInput for a server of the user's that does not answer."""
    paths = {"prefect": ("PREFECT_API_URL", "/health"), "mlflow": ("MLFLOW_TRACKING_URI", "/health")}
    for name, address in own.items():
        variable, path = paths[name]
        if not await answers(address.rstrip("/") + path):
            raise BadInput(f"{variable}: nobody answers there; start that server, or unset it and `up` starts one")


async def stop_stack(state: Path) -> bool:
    """End what runs on this state folder; False when there was nothing. Raises Unmeasurable when it does not end."""
    stack = read_stack(state)
    if stack is None:
        if is_held(state):
            raise Unmeasurable("`touchstone up` has only just begun; try again in a second")
        return False
    if is_held(state):
        os.kill(stack.pid, signal.SIGTERM)
        for _ in range(_DOWN_S * 5):
            if not is_held(state):
                return True
            await asyncio.sleep(0.2)
        raise Unmeasurable(f"`touchstone up` (process {stack.pid}) did not end within {_DOWN_S} s: {state / 'logs'}")
    # `up` was killed: its guard has ended the parts, unless it was killed too.
    await asyncio.to_thread(end_parts, stack.stack, stack.order, _GRACE_S)
    forget_stack(state)
    return True


def _described(supervisor: Supervisor, is_ready: bool, exports: Mapping[str, str], own: Mapping[str, str]) -> Stack:
    described = [StackPart(name=name, address=address, ready=True) for name, address in own.items()]
    for part in supervisor.parts:
        one = supervisor.running.get(part.name)
        described.append(
            StackPart(
                name=part.name,
                pid=one.process.pid if one else 0,
                address=part.address,
                since=one.since if one else None,
                ready=bool(one and one.is_ready),
                step=part.ready is None,
            )
        )
    return Stack(
        stack=supervisor.stack,
        pid=os.getpid(),
        ready=is_ready,
        order=tuple(part.name for part in reversed(supervisor.parts)),
        parts=tuple(described),
        exports=dict(exports),
    )


async def _unless(stop: asyncio.Event, work) -> bool:
    """Runs `work` to its end, or until `stop`; was it its end?"""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return False
    await working
    return True


@contextmanager
def _signals(react: Callable[[], None]):
    loop, caught = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for one in caught:
        loop.add_signal_handler(one, react)
    try:
        yield
    finally:
        for one in caught:
            loop.remove_signal_handler(one)
