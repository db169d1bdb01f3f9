"""A run on disk: every finished call and every finished case at once, so that a crash loses calls in flight at most.

.touchstone/runs/<run_key>/
    manifest.json   what was asked for: bundle, dataset, fingerprints, repeats
    definition.json the bundle with its prompt and retrieval config as they were
    calls.jsonl     each finished call under the digest of its request; `bad` marks one that broke its contract
    cases.jsonl     each finished case; a later line of the same case and trial replaces an earlier one
    report.json     the verdict and its numbers
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from touchstone.errors import BadInput
from touchstone.results import Call, CaseResult


class FinishedCall(BaseModel):
    """One line of calls.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    text: str | None = None
    call: Call | None = None
    bad: bool = False


class Spool:
    """The folder of one run. Lines are appended whole, in one write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, int] = {}

    @property
    def run_key(self) -> str:
        return self.folder.name

    def append_call(self, finished: FinishedCall) -> None:
        self._append("calls.jsonl", finished.model_dump_json(exclude_defaults=True))

    def append_case(self, result: CaseResult) -> None:
        self._append("cases.jsonl", result.model_dump_json(exclude_defaults=True))

    def calls(self) -> dict[str, FinishedCall]:
        """The finished calls by key; a `bad` mark stays with its call."""
        found: dict[str, FinishedCall] = {}
        for line in self._lines("calls.jsonl"):
            finished = FinishedCall.model_validate_json(line)
            if finished.bad and finished.call is None and finished.key in found:
                finished = found[finished.key].model_copy(update={"bad": True})
            found[finished.key] = finished
        return found

    def spent_usd(self) -> float:
        """What the calls cost, also those that were asked for again later."""
        finished = (FinishedCall.model_validate_json(line) for line in self._lines("calls.jsonl"))
        return math.fsum(done.call.cost_usd or 0.0 for done in finished if done.call)

    def cases(self) -> dict[tuple[str, int], CaseResult]:
        """The finished cases by (case id, trial), the last one written."""
        results = (CaseResult.model_validate_json(line) for line in self._lines("cases.jsonl"))
        return {(result.case_id, result.trial): result for result in results}

    def write_json(self, name: str, text: str) -> None:
        """Replace a whole file: it is old or new, never half."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".{name}.{os.getpid()}"
        fresh.write_text(text)
        os.replace(fresh, self.folder / name)

    def read_json(self, name: str) -> dict:
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            raise BadInput(f"{self.folder / name}: not found") from None

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time: two that resume a run would both pay for the rest of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"run {self.run_key} is being run by another process; wait for it to end") from None
            yield

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _append(self, name: str, line: str) -> None:
        if name not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._files[name] = os.open(self.folder / name, flags, 0o600)
            if _ends_torn(self.folder / name):
                line = f"\n{line}"  # a line torn by a crash must not swallow this one
        data = f"{line}\n".encode()
        if os.write(self._files[name], data) < len(data):
            raise OSError(f"{self.folder / name}: the disk is full; free some and --resume {self.run_key}")

    def _lines(self, name: str) -> Iterator[str]:
        path = self.folder / name
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("{") and line.endswith("}") and _is_whole(line):
                yield line


def run_folder(state: Path, run_key: str) -> Path:
    """Where a run is spooled. Raises BadInput for a key that is not one."""
    if "/" in run_key or run_key in {"", ".", ".."}:
        raise BadInput(f"{run_key!r} is not a run key; `touchstone eval show` lists them")
    return state / "runs" / run_key


def existing_spool(state: Path, run_key: str) -> Spool:
    """The spool of a run that was started before."""
    folder = run_folder(state, run_key)
    if not (folder / "manifest.json").exists():
        known = ", ".join(path.name for path in run_folders(state)[-5:])
        raise BadInput(f"run {run_key!r} not found in {folder.parent}; the last ones: {known or 'none'}")
    return Spool(folder)


def run_folders(state: Path) -> list[Path]:
    """All runs, oldest first."""
    folders = [path.parent for path in (state / "runs").glob("*/manifest.json")]
    return sorted(folders, key=lambda folder: folder.name.rsplit("-", 3)[1:])  # date, time, random


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True
