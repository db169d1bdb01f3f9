"""What probes of a vendor read, remember and say: frozen, closed, JSON-able."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.bundle import Price
from touchstone.drift_records import Baseline, DriftState

FEWEST_PROBES = 8  # fewer say nothing within a year
What = Literal["pin", "refused", "served_model", "fingerprint", "price", "retirement"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Probe(_Record):
    """One line of probes.jsonl: an input that is answered by one token, best where several tokens are close."""

    id: str = Field(min_length=1)
    user: str = Field(min_length=1)
    system: str = ""


def probe_fingerprint(model: str, probes: Sequence[Probe]) -> str:
    """Digest of what a reference is of: the same probes sent to the same pinned model."""
    content = [model, [probe.model_dump() for probe in probes]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class ProbeLevel(StrEnum):
    """What a probe run comes to. Learning: the reference is not complete, so that tokens are not judged yet."""

    STABLE = "stable"
    LEARNING = "learning"
    FLAGGED = "flagged"
    DETECTED = "detected"
    UNMEASURABLE = "unmeasurable"

    @property
    def height(self) -> int:
        """0 quiet, 1 flagged, 2 detected."""
        return {ProbeLevel.FLAGGED: 1, ProbeLevel.DETECTED: 2}.get(self, 0)


class VendorFacts(_Record):
    """What the vendor says of itself, and what is listed of its model."""

    served_models: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    price: Price | None = Field(default=None, description="The bundle's own, else LiteLLM's list; None: unknown")
    retires: str | None = Field(default=None, description="ISO date from LiteLLM's list; None: none is listed")


class Signal(_Record):
    """A fact that is not as it was, without statistics. It stands as long as it is so; `value` makes it new."""

    what: What
    level: Literal["flagged", "detected"]
    value: str
    reason: str

    @property
    def key(self) -> str:
        return f"{self.what}={self.value}"


class ProbeRun(_Record):
    """One look at the vendor: the first token of each answered probe, and the facts."""

    run_key: str
    at: str
    tokens: dict[str, str]
    failures: dict[str, int] = Field(default_factory=dict, description="Probes without an answer, by kind")
    refused: str = Field(default="", description="What the vendor says when it no longer serves the model")
    example: str = Field(default="", description="One failure, in words")
    facts: VendorFacts
    calls: int = 0
    cost_usd: float | None = None
    wall_s: float = 0.0

    @property
    def n_probes(self) -> int:
        return len(self.tokens) + sum(self.failures.values())


class Learned(_Record):
    """What a calibration run adds to the reference."""

    run_key: str
    at: str
    tokens: dict[str, str]
    facts: VendorFacts


class ProbeReference(_Record):
    """The vendor as it was in calibration: its usual token of each probe, and the facts."""

    usual: dict[str, str]
    facts: VendorFacts
    baseline: Baseline


class ProbeState(_Record):
    """What is remembered between probe runs of one fingerprint."""

    learned: tuple[Learned, ...] = ()
    reference: ProbeReference | None = None
    drift: DriftState | None = None
    signals: tuple[Signal, ...] = Field(default=(), description="Standing")
    level: ProbeLevel = Field(default=ProbeLevel.LEARNING, description="Of the last run that could be measured")
    told_level: ProbeLevel = Field(default=ProbeLevel.LEARNING, description="That a transition led to last")
    told_signals: tuple[str, ...] = Field(default=(), description="Keys of signals that a transition was about")


class ProbeReport(_Record):
    """The decision on one probe run, its reason in one sentence, and the numbers behind it."""

    bundle: str
    model: str
    probes: str = Field(description="The set's name")
    fingerprint: str
    run_key: str
    checked_at: str
    level: ProbeLevel
    transition: Literal["flagged", "detected", "recovered"] | None
    reason: str
    signals: tuple[Signal, ...] = ()
    facts: VendorFacts
    n_probes: int
    n_answered: int
    n_calibration: int = Field(description="Runs that the reference is made of so far")
    n_needed: int = Field(description="Runs that it takes")
    usual_share: float | None = Field(default=None, description="Answered by their usual token")
    usual_share_before: float | None = Field(default=None, description="The same in calibration")
    changed: tuple[tuple[str, str, str], ...] = Field(default=(), description="(probe, usual token, token now)")
    e_value: float | None = Field(default=None, description="Share of the evidence that acts: 1 is an alarm")
    minimum_detectable_effect: float | None = Field(
        default=None, description="Share of answers whose change would be found within a day of runs, 80 % power"
    )
    change_point: str | None = Field(default=None, description="Run key, once flagged or detected")
    failures: dict[str, int] = Field(default_factory=dict)
    calls: int = 0
    cost_usd: float | None = None
    wall_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """For `--json`, the flow's result and its artifact."""
        return self.model_dump(mode="json")


def usual_tokens(runs: Sequence[Learned]) -> dict[str, str]:
    """Of each probe the token that came most often; of two that came alike, the first in the alphabet."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for probe, token in run.tokens.items():
            found.setdefault(probe, Counter())[token] += 1
    return {probe: min(counts, key=lambda token: (-counts[token], token)) for probe, counts in found.items()}
