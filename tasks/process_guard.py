"""python -m tasks.process_guard STACK PART...: ends the parts, in this order, when its stdin is closed.

Only the supervisor holds the other end of stdin, so that it is closed even when the supervisor is killed.
"""

from __future__ import annotations

import os
import signal
import sys

from tasks.process_marks import end_parts

_GRACE_S = 8


def main() -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    while os.read(0, 64):
        pass
    stack, *parts = sys.argv[1:]
    end_parts(stack, parts, _GRACE_S)


if __name__ == "__main__":
    main()
