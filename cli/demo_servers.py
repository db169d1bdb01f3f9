"""The servers that the demo starts, each a process on loopback that ends with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def emulated_vendor() -> Iterator[str]:
    """The emulator in a process of its own, on a free port; yields its address."""
    with serving("cli.main", "emulator", "serve", "--port", "0", "--seed", "7") as address:
        yield address


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[str]:
    """A server of ours in a process of its own, which prints its address; yields that."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http" not in line:
            raise RuntimeError(f"{module} did not start: exit code {process.wait()}")
        yield "http" + line.split("http", 1)[1].split()[0]
    finally:
        process.terminate()
        process.wait(timeout=30)
