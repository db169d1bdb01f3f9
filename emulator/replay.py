"""Recordings: what real snapshots once answered, given again."""

import gzip
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class Sample:
    """One recorded answer."""

    answer: str
    completion_tokens: int | None = None
    logprobs: tuple[Mapping[str, Any], ...] | None = None


@dataclass
class Recording:
    """Samples by (model, prompt); several samples for one prompt take turns."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    _turns: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> "Recording":
        """Read JSONL files (`.gz` too); a broken line raises ValueError naming file:line and field."""
        recording = cls()
        for path in paths:
            recording._read(Path(path))
        return recording

    @property
    def models(self) -> list[str]:
        """The snapshots that were recorded."""
        return list(self.samples)

    def holds(self, model: str) -> bool:
        """Whether anything of this snapshot was recorded."""
        return model in self.samples

    def take(self, model: str, prompts: Sequence[str]) -> Sample | None:
        """The next sample for the first of these prompts that was recorded."""
        known = self.samples.get(model, {})
        for prompt in prompts:
            if prompt in known:
                return self._next(model, prompt, known[prompt])
        return None

    def rewind(self) -> None:
        """Let every prompt start again at its first sample."""
        with self._lock:
            self._turns.clear()

    def _next(self, model: str, prompt: str, samples: Sequence[Sample]) -> Sample:
        if len(samples) == 1:
            return samples[0]
        with self._lock:
            turn = self._turns.get((model, prompt), 0)
            self._turns[model, prompt] = turn + 1
        return samples[turn % len(samples)]

    def _read(self, path: Path) -> None:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                self._add(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None

    def _add(self, line: bytes) -> None:
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError("not a JSON object")
        model, prompt, answer = (_text(entry, name) for name in ("model", "prompt", "answer"))
        if not model:
            raise ValueError("field 'model' is empty")
        latency = entry.get("latency_s")
        if latency is not None and (not isinstance(latency, int | float) or isinstance(latency, bool) or latency < 0):
            raise ValueError(f"field 'latency_s' must be a number >= 0, not {latency!r}")
        sample = Sample(answer, _tokens(entry.get("completion_tokens")), _logprobs(entry.get("logprobs")))
        self.samples.setdefault(model, {}).setdefault(prompt, []).append(sample)


def _text(entry: Mapping[str, Any], name: str) -> str:
    if name not in entry:
        raise ValueError(f"field '{name}' is missing")
    if not isinstance(entry[name], str):
        raise ValueError(f"field '{name}' must be a string, not {entry[name]!r:.60}")
    return entry[name]


def _tokens(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"field 'completion_tokens' must be a whole number >= 0, not {value!r:.60}")
    return value


def _logprobs(value: object) -> tuple[Mapping[str, Any], ...] | None:
    """OpenAI's form: a list of {token, logprob, top_logprobs?}, or that list under `content`."""
    rows = value.get("content") if isinstance(value, dict) else value
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise ValueError("field 'logprobs' must be a list of {token, logprob} objects")
    for row in rows:
        valid = isinstance(row, dict) and isinstance(row.get("token"), str)
        if not valid or not isinstance(row.get("logprob"), int | float):
            raise ValueError(f"field 'logprobs' has an entry without token and logprob: {row!r:.60}")
    return tuple(rows)
