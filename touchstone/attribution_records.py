"""What an attribution is given, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.factor_swaps import NAMES, Swap

Scores = Mapping[str, tuple[float | None, ...]]
Next = Literal["control", "swaps", "together", "judge", "more"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AttributionVerdict(StrEnum):
    """What could be said."""

    NAMED = "named"
    INTERACTION = "interaction"  # several factors, together or each alone
    UNDECIDED = "undecided"


class Standing(StrEnum):
    """What can be done with a factor."""

    SAME = "same"
    SWAPPABLE = "swappable"
    STUCK = "cannot be replayed"
    IRRELEVANT = "cannot move this metric"


class FactorState(_Record):
    """One factor of the two definitions."""

    factor: Swap
    standing: Standing
    before: str = ""
    after: str = ""
    note: str = ""


class Fallen(_Record):
    """A case that scored lower after than before; the means over its trials."""

    case_id: str
    before: float
    after: float

    @property
    def halfway(self) -> float:
        """A case at or above it is good again."""
        return (self.before + self.after) / 2


class Replay(_Record):
    """Cases replayed with these factors swapped back; the same trials of the control. None: it failed."""

    swaps: tuple[Swap, ...]
    scores: dict[str, tuple[float | None, ...]]
    control: dict[str, tuple[float | None, ...]]


class Evidence(_Record):
    """All that was measured so far."""

    fallen: tuple[Fallen, ...]
    fell: int = Field(description="Cases, of all that both runs scored")
    rose: int
    factors: tuple[FactorState, ...]
    control: dict[str, tuple[float | None, ...]] = Field(default_factory=dict, description="Nothing swapped, now")
    replays: tuple[Replay, ...] = ()
    judged: bool = Field(default=False, description="A judge scores the metric")
    model_moves: bool = Field(default=True, description="The metric looks at the answer")
    judged_now: dict[str, float | None] | None = Field(
        default=None, description="The answers of before, judged again by the present judge"
    )

    @property
    def swappable(self) -> tuple[Swap, ...]:
        return tuple(state.factor for state in self.factors if state.standing is Standing.SWAPPABLE)


class SwapFinding(_Record):
    """What one swap did."""

    swaps: tuple[Swap, ...]
    n_cases: int = Field(description="Replayed, with a score on both sides")
    n_pairs: int
    better: int = Field(description="Pairs that score higher than the control")
    worse: int
    failing: int = Field(description="Cases that still fail in the control")
    restored: int = Field(description="Of these, good again under the swap")
    evidence: float = Field(description="e-value as a share of what acts: 1 restores")
    restores: bool
    does_not_restore: bool = Field(description="Significantly fewer than half of the failing cases come back")


class AttributionDecision(_Record):
    """The verdict, why, and what would decide it when nothing does."""

    verdict: AttributionVerdict
    culprits: tuple[Swap, ...] = ()
    by_elimination: bool = False
    reason: str
    would_decide: str = ""
    findings: tuple[SwapFinding, ...] = ()
    control_cases: int = 0
    control_failing: int = 0
    next: Next | None = Field(default=None, description="What to measure next; None: it is settled")


class LeftOut(_Record):
    """Cases that say nothing of the cause, because they are not the same case any more, or have no score."""

    edited: tuple[str, ...] = Field(default=(), description="Another content than in one of the two runs")
    gone: tuple[str, ...] = Field(default=(), description="No longer in the golden set, or new in it")
    unscored: tuple[str, ...] = Field(default=(), description="Without a score in one of the two runs")


class AttributionReport(_Record):
    """What `touchstone attribute --json` prints and the ledger keeps."""

    attribution_key: str
    at: str
    before: str = Field(description="Run key of the good run")
    after: str
    bundle: str = Field(description="Of the run after")
    dataset: str
    metric: str
    mean_before: float
    mean_after: float
    fell: int
    rose: int
    cases: int = Field(description="Cases that fell and may be replayed")
    left_out: LeftOut = LeftOut()
    factors: tuple[FactorState, ...]
    decision: AttributionDecision
    calls: int
    max_calls: int
    cost_usd: float | None
    stopped_by: Literal["calls", "cost"] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The culprit, or why there is none, in a word or two."""
        decision = self.decision
        if decision.verdict is AttributionVerdict.NAMED:
            return NAMES[decision.culprits[0]].capitalize()
        return "Interaction" if decision.verdict is AttributionVerdict.INTERACTION else "Undecided"

    def summary(self) -> dict[str, object]:
        """Flat, for ledger payloads and events."""
        decision = self.decision
        return {
            "attribution_key": self.attribution_key,
            "before": self.before,
            "after": self.after,
            "bundle": self.bundle,
            "dataset": self.dataset,
            "metric": self.metric,
            "verdict": decision.verdict.value,
            "culprits": list(decision.culprits),
            "by_elimination": decision.by_elimination,
            "reason": decision.reason,
            "would_decide": decision.would_decide,
            "cases": self.cases,
            "calls": self.calls,
            "cost_usd": self.cost_usd,
            "stopped_by": self.stopped_by,
        }
