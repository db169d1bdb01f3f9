"""What the control endpoints change and report: aliases, faults, counters."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class BadControl(ValueError):
    """A control request that cannot be carried out; the message names what is wrong."""


@dataclass
class _Body:
    """What one request body has been through."""

    attempts: int = 0  # since the faults were last put
    answers: int = 0
    completed: int = 0


@dataclass
class Counters:
    """Totals since start or reset. `completed` counts 2xx answers handed to the socket in full."""

    calls: int = 0
    completed: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    by_model: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    embedded_texts: int = 0
    embedding_tokens: int = 0
    embedded: set[int] = field(default_factory=set)  # digests of the texts, each once
    bodies: dict[str, _Body] = field(default_factory=dict)

    def arrive(self, body: str) -> int:
        """Count a call and say which attempt at this body it is, from 0."""
        self.calls += 1
        record = self.bodies.setdefault(body, _Body())
        record.attempts += 1
        return record.attempts - 1

    def answer(self, body: str) -> int:
        """Say how often this body was answered before, and count this time."""
        record = self.bodies.setdefault(body, _Body())
        record.answers += 1
        return record.answers - 1

    def embed(self, texts: Sequence[str], tokens: int) -> None:
        """Count an embeddings call that is answered, and its texts."""
        self.by_kind["embedding"] += 1
        self.embedded_texts += len(texts)
        self.embedding_tokens += tokens
        self.embedded.update(hash(text) for text in texts)

    def complete(self, body: str) -> None:
        """Count an answer that was fully sent."""
        self.completed += 1
        self.bodies.setdefault(body, _Body()).completed += 1

    def forget_attempts(self) -> None:
        """New faults start with attempt 0 at every body."""
        for record in self.bodies.values():
            record.attempts = 0

    def reset(self) -> None:
        """Start from zero."""
        self.calls = self.completed = self.embedded_texts = self.embedding_tokens = 0
        for collection in (self.by_kind, self.by_model, self.faults, self.bodies, self.embedded):
            collection.clear()

    def as_json(self) -> dict[str, Any]:
        """The totals; `completed_distinct` below `completed` means that a body was paid for twice.

        `embedded_distinct` below `embedded_texts` means the same of a text, whatever request it was part of.
        """
        return {
            "calls": self.calls,
            "completed": self.completed,
            "completed_distinct": sum(record.completed > 0 for record in self.bodies.values()),
            "distinct_bodies": len(self.bodies),
            "by_kind": dict(self.by_kind),
            "by_model": dict(self.by_model),
            "faults": dict(self.faults),
            "embedded_texts": self.embedded_texts,
            "embedded_distinct": len(self.embedded),
            "embedding_tokens": self.embedding_tokens,
            "cpu_s": round(time.process_time(), 4),
        }


def merge_aliases(current: Mapping[str, str], change: object) -> dict[str, str]:
    """The aliases after a change: given names are replaced, null removes one, others stay."""
    if not isinstance(change, dict):
        raise BadControl('aliases must be a JSON object such as {"gpt-4": "gpt-4-0613"}')
    merged = dict(current)
    for name, snapshot in change.items():
        if snapshot is None:
            merged.pop(name, None)
        elif isinstance(snapshot, str) and snapshot and name:
            merged[name] = snapshot
        else:
            raise BadControl(f"aliases[{name!r}] must be the name of a snapshot or null, not {snapshot!r}")
    return merged
