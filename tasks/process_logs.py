"""What a process of the stack says: kept in a file that does not grow for ever, its last lines at hand."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

_MOST_BYTES = 10_000_000  # then the file becomes NAME.log.1 and a new one begins
_LONGEST_LINE = 4_000
_LAST_LINES = 20


class ProcessLog:
    """`told` gets each line as it comes."""

    def __init__(self, path: Path, told: Callable[[str], None]) -> None:
        self._path, self._told = path, told
        self._rest = b""
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        """Any piece of output; the end of a line may come later."""
        self._file.write(data)
        self._file.flush()
        if self._file.tell() > _MOST_BYTES:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._path.open("ab")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._tell(line)

    def close(self) -> None:
        if self._rest:
            self._tell(self._rest)
        self._file.close()

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:_LONGEST_LINE]
        self.last.append(text)
        self._told(text)
