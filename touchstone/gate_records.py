"""What a gate finds, as plain records: they are shown, stored in the ledger, and read back by a resumed gate."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.release_policy import Factor

WHOLE = "all"  # the segment of a comparison over all cases


class GateVerdict(StrEnum):
    """What may follow."""

    PASS = "pass"
    FAIL = "fail"
    UNMEASURABLE = "unmeasurable"  # nothing is known to be wrong, and nothing is shown to be right


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(_Record):
    """One metric, over all cases or one segment; all numbers in the metric's own units."""

    metric: str
    segment: str = WHOLE
    champion: float | None
    candidate: float | None
    difference: float | None = Field(description="Candidate minus champion, mean over the pairs")
    bound: float = Field(description="The true difference lies below it with probability at most the level of a pass")
    margin: float | None = Field(description="Largest tolerated loss; None: only a certain loss counts")
    n: int = Field(description="Cases that both sides scored")
    of: int = Field(description="Cases that this metric is asked of")
    trials: int
    verdict: Literal["not_inferior", "inferior", "undecided", "unmeasurable", "no_certain_loss"]
    reason: str
    needed_cases: int | None = Field(default=None, description="Cases of this pattern that would decide it")
    needed_repeats: int | None = Field(default=None, description="Trials per case that would decide it, estimated")

    @property
    def name(self) -> str:
        return self.metric if self.segment == WHOLE else f"{self.metric} in {self.segment}"

    @property
    def stands_in_the_way(self) -> bool:
        return self.verdict in {"inferior", "undecided", "unmeasurable"}


class HardCheck(_Record):
    """A rule that asks for no statistics: it holds, it is broken, or nobody could look."""

    name: str
    verdict: GateVerdict
    detail: str
    cases: tuple[str, ...] = Field(default=(), description="Those that broke it, or could not be looked at")
    one_answer_is_proof: bool = Field(default=False, description="Broken is broken, whatever else failed to run")


class CaseChange(_Record):
    """A case whose score moved, in the metric that moved most; texts are shortened and scrubbed."""

    case_id: str
    segment: str
    metric: str
    champion: float
    candidate: float
    question: str = ""
    champion_answer: str = ""
    candidate_answer: str = ""


class Spend(_Record):
    """Cost or latency of both sides. `increase` is a share of the champion's; None: one of them is not known."""

    champion: float | None
    candidate: float | None
    increase: float | None


class Sample(_Record):
    """What was run of one side."""

    cases: int
    failed: int = Field(description="Cases with a failure in any trial")
    failures: dict[str, int] = Field(default_factory=dict, description="Cases by the kind of their first failure")
    example: str = ""


class GateDecision(_Record):
    """May the candidate go on? The verdict with all that it rests on."""

    verdict: GateVerdict
    reason: str
    changed: tuple[Factor, ...] = ()
    is_first_release: bool = False
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[HardCheck, ...] = ()
    regressions: tuple[CaseChange, ...] = ()
    improvements: tuple[CaseChange, ...] = ()
    n_worse: int = Field(default=0, description="Cases that any compared metric scores lower")
    n_better: int = 0
    cost_per_case: Spend
    latency_p95_ms: Spend
    n_cases: int = Field(description="Of the golden set")
    candidate: Sample
    champion: Sample | None = None
    stage: int = 1
    stages: int = 1
    scores: dict[str, float] = Field(default_factory=dict, description="The candidate's mean of every metric")

    @property
    def is_over_budget(self) -> bool:
        sides = [self.candidate, *([self.champion] if self.champion else [])]
        return any("budget" in side.failures for side in sides)

    @property
    def undecided(self) -> tuple[Comparison, ...]:
        return tuple(row for row in self.comparisons if row.verdict == "undecided")

    @property
    def settled(self) -> tuple[Comparison, ...]:
        """What later trials do not open again."""
        return tuple(row for row in self.comparisons if row.verdict in {"not_inferior", "inferior"})


class GateReport(_Record):
    """decision.json, what `gate --json` prints, and the content of the ledger's event: a decision and whose it is."""

    gate_key: str
    environment: str
    created_at: str
    bundle: str
    fingerprint: str
    against_bundle: str | None = Field(description="The champion's; None for a first release")
    against: str | None = Field(description="The champion's fingerprint")
    role: Literal["candidate", "fallback"]
    by: str
    dataset: str
    dataset_digest: str
    run_keys: tuple[str, ...] = Field(description="The candidate's eval, then the champion's")
    decision: GateDecision
    ended_early: str = Field(default="", description="Why the first pass was not finished")
    cost_usd: float | None = Field(default=None, description="Of both runs; None: some price is unknown")
    wall_s: float = 0.0
    recorded: int | None = Field(default=None, description="Sequence of the ledger's event; None: not recorded")
    is_candidate: bool = Field(default=False, description="It waits for its canary now")
    mlflow_url: str | None = None
    mlflow_compare_url: str | None = None

    @property
    def headline(self) -> str:
        """`PASS: support-cited against support (prompt)`."""
        against = f"against {self.against_bundle}" if self.against_bundle else "as the first release"
        changed = f" ({', '.join(self.decision.changed)})" if self.decision.changed else ""
        return f"{self.decision.verdict.upper()}: {self.bundle} {against}{changed}"
