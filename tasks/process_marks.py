"""Processes found by a mark in their environment: whatever a part starts inherits it, even in a session of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil

MARK = "TOUCHSTONE_PART"
_KILL_S = 3
_REPORT_S = 1


def mark_of(stack: str, part: str) -> dict[str, str]:
    """What the environment of a part's first process holds; `stack` is one start of the whole."""
    return {MARK: f"{stack}/{part}"}


def marked(stack: str, part: str = "") -> list[psutil.Process]:
    """Living processes of one part, or of all."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            owner, _, name = process.environ().get(MARK, "").partition("/")
            if owner == stack and part in ("", name) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(processes: Sequence[psutil.Process], grace_s: float) -> None:
    """SIGTERM, and SIGKILL for what is still there after `grace_s`. psutil tells a reused process id from the old."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    alive = _alive_after(processes, grace_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _alive_after(alive, _KILL_S)


def end_parts(stack: str, parts: Sequence[str], grace_s: float) -> None:
    """One part after the other, children first, then whatever else has the mark."""
    for part in (*parts, ""):
        found = marked(stack, part)
        if children := _children(found):
            end(children, grace_s)
            time.sleep(_REPORT_S)  # a worker tells its server how a run ended
        end(found, grace_s)


def _alive_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits until all have ended. A zombie has, though its parent may never look at it."""
    ends = time.monotonic() + seconds
    while (alive := [process for process in processes if _is_alive(process)]) and time.monotonic() < ends:
        time.sleep(0.1)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    own = {process.pid for process in processes}
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.ppid() in own:
                found.append(process)
    return found
