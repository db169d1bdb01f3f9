"""Anchors: copies of signed checkpoints outside the ledger, out of reach of whoever could cut the ledger off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tasks.checkpoints import make_checkpoint
from tasks.ledger import Ledger
from tasks.tracking_address import connected
from tasks.tracking_experiment import ensure_experiment
from touchstone.checkpoint import SignedCheckpoint, read_checkpoint
from touchstone.errors import BadInput
from touchstone.settings import Settings

CHECKPOINT_TAG = "touchstone.checkpoint"


class Anchor(Protocol):
    """A place that keeps checkpoints. Keeping the same one twice changes nothing."""

    name: str

    def keep(self, checkpoint: SignedCheckpoint) -> None:
        """Raises whatever the place raises; the caller makes a warning of it."""
        ...


class FileAnchor:
    """Lines of a file, one checkpoint each; they are only ever added."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, f"anchor file {path}"

    def keep(self, checkpoint: SignedCheckpoint) -> None:
        line = checkpoint.encoded() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(line)))
            end = file.read()
            if end == line:
                return
            torn = bool(end) and not end.endswith(b"\n")  # a crash in the middle of a line: leave it, begin a new one
            file.write(b"\n" * torn + line)
            os.fsync(file.fileno())


class MlflowAnchor:
    """A tag of the experiment `touchstone/release/<environment>`: the newest checkpoint."""

    def __init__(self, settings: Settings) -> None:
        self.name, self._settings = "anchor in MLflow", settings

    def keep(self, checkpoint: SignedCheckpoint) -> None:
        with connected(self._settings) as client:
            name, note = f"release/{checkpoint.environment}", f"Releases of {checkpoint.environment}"
            experiment_id = ensure_experiment(client, self._settings, name, note, {})
            known = client.get_experiment(experiment_id).tags.get(CHECKPOINT_TAG)
            if known is None or _size(known) < checkpoint.size:
                client.set_experiment_tag(experiment_id, CHECKPOINT_TAG, checkpoint.encoded().decode())


def anchors_of(settings: Settings) -> list[Anchor]:
    """Where this project's checkpoints go. A further place is a class with `name` and `keep`, and a line here."""
    return [FileAnchor(anchor_path(settings)), MlflowAnchor(settings)]


def anchor_path(settings: Settings) -> Path:
    default = settings.state / "anchors" / f"{settings.environment}.jsonl"
    return settings.root / settings.anchor_file if settings.anchor_file else default


def anchor(settings: Settings, checkpoint: SignedCheckpoint, targets: Sequence[Anchor] | None = None) -> list[str]:
    """Keep a checkpoint everywhere; a warning for each place that did not take it. Never raises."""
    warnings: list[str] = []
    for target in anchors_of(settings) if targets is None else targets:
        try:
            target.keep(checkpoint)
        except Exception as error:  # a release is not undone because a place for its proof is away
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.append(f"{target.name}: {checkpoint.size} records not anchored: {reason}")
    return warnings


def checkpoint_and_anchor(settings: Settings, ledger: Ledger) -> list[str]:
    """Sign what there is and keep it outside; warnings instead of errors."""
    try:
        checkpoint = make_checkpoint(settings, ledger)
    except Exception as error:
        return [f"no checkpoint of the ledger: {error}"]
    return anchor(settings, checkpoint)


def read_anchors(path: Path) -> list[SignedCheckpoint]:
    """The checkpoints of an anchor's file. A line torn by a crash is none. Raises BadInput when there is nothing."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"--anchor {path}: {error.strerror}") from None
    found: list[SignedCheckpoint] = []
    for line in lines:
        try:
            found.append(read_checkpoint(line))
        except ValueError:
            continue
    if not found:
        raise BadInput(f"--anchor {path}: holds no signed checkpoint (one JSON object a line, as it was anchored)")
    return found


def _size(tag: str) -> int:
    try:
        return read_checkpoint(tag.encode()).size
    except ValueError:
        return 0
