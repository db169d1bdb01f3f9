"""An event loop of its own thread, one per process: vendor calls for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has none of its parent's threads
_starting = threading.Lock()


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run on the loop's thread and wait; an interrupted wait cancels the work. Not from a coroutine of that loop."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if os.getpid() not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="vendor calls", daemon=True).start()
            _loops[os.getpid()] = loop
        return _loops[os.getpid()]
