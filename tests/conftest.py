"""What all tests share: quiet libraries, an emulated vendor, and a project in a temporary folder."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.environment import apply_defaults

apply_defaults()

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", ROOT.parent / "shared" / "data"))


class VendorControl:
    """A running emulator: its address, and its control endpoints."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_base = f"{url}/v1"

    def put(self, what: str, body: Any) -> None:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/control/{what}", data=data, method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def fault(self, kind: str, **parameters: Any) -> None:
        """Put one fault in force, instead of those before."""
        self.put("faults", [{"kind": kind, **parameters}])

    def heal(self) -> None:
        self.put("faults", [])

    def counters(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/control/state", timeout=10) as response:
            return json.load(response)["counters"]


@pytest.fixture
def vendor() -> Iterator[VendorControl]:
    """An emulated vendor without recordings."""
    with running(EmulatorOptions()) as url:
        yield VendorControl(url)


@pytest.fixture
def shared_data() -> Path:
    """Real data from outside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}; set TOUCHSTONE_SHARED_DATA to its folder")
    return SHARED_DATA
