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
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_KILL_S)


def end_parts(stack: str, parts: Sequence[str], grace_s: float) -> None:
    """One part after the other, children first, then whatever else has the mark."""
    for part in (*parts, ""):
        found = marked(stack, part)
        if children := _children(found):
            end(children, grace_s)
            time.sleep(_REPORT_S)  # a worker tells its server how a run ended
        end(found, grace_s)


def _children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    own = {process.pid for process in processes}
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.ppid() in own:
                found.append(process)
    return found
