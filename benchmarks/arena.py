"""What the eval benchmarks share: an emulated vendor in its own process, and a project on the shipped data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextmanager
def emulated_vendor(*options: str) -> Iterator[str]:
    """`touchstone emulator serve` on a free port; yields its address."""
    command = [sys.executable, "-m", "cli.main", "emulator", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield "http" + process.stdout.readline().split("http", 1)[1].split()[0]
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def project(vendor: str) -> Iterator[Path]:
    """A temporary project whose bundles call `vendor`; it becomes the current directory."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("datasets", "prompts", "retrieval_configs"):
            (root / name).symlink_to(ROOT / name)
        (root / "bundles").mkdir()
        for path in (ROOT / "bundles").glob("*.yaml"):
            text = path.read_text().replace("http://127.0.0.1:4010", vendor)
            (root / "bundles" / path.name).write_text(text)
        os.chdir(root)
        try:
            yield root
        finally:
            os.chdir(before)


def counters(vendor: str) -> dict[str, Any]:
    """What the emulator has counted so far."""
    with urllib.request.urlopen(f"{vendor}/control/state", timeout=10) as response:
        return json.load(response)["counters"]


def write_golden_set(root: Path, cases: list[dict[str, Any]], policy: dict[str, Any], name: str = "bench") -> str:
    """A golden set of the project; returns what to pass as --dataset."""
    folder = root / name
    folder.mkdir()
    (folder / "cases.jsonl").write_text("\n".join(json.dumps(case) for case in cases))
    (folder / "policy.yaml").write_text(json.dumps(policy))
    return str(folder)


def answerable_cases(count: int) -> list[dict[str, Any]]:
    """Cases of the shipped golden set that are not to be refused, made distinct by a ticket number."""
    lines = (ROOT / "datasets" / "support" / "cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["segment"] not in {"out_of_scope", "adversarial"}]
    return [
        {**case, "id": f"{case['id']}-{number}", "question": f"Ticket {number}: {case['question']}"}
        for number in range(count)
        for case in [cases[number % len(cases)]]
    ]
