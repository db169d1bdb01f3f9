"""What a release asks for: gates by what changed, checks without tolerance, the canary, and who must approve."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.scorer_specs import RubricScorer, Scorer

Factor = Literal["model", "prompt", "retrieval"]
FACTORS: tuple[Factor, ...] = ("model", "prompt", "retrieval")
PiiKind = Literal["key", "email", "iban", "ip", "card", "ssn", "phone"]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricGate(_Closed):
    """What a candidate owes for one metric, in the metric's own units."""

    margin: float = Field(ge=0, description="Largest tolerated loss against the incumbent")
    floor: float | None = Field(default=None, description="Smallest tolerated mean")
    segment_margin: float | None = Field(
        default=None, gt=0, description="Largest tolerated loss within a segment; empty: only a certain loss counts"
    )


class ZeroTolerance(_Closed):
    """Cases that a candidate must pass, every one, in every trial, whatever the incumbent does."""

    metric: str = Field(description="A pass/fail metric; 0 fails")
    segments: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def names_cases(self) -> ZeroTolerance:
        if not self.segments and not self.tags:
            raise ValueError("name the `segments` or `tags` whose cases must all pass")
        return self


class CanaryPolicy(_Closed):
    """How a candidate is judged on live traffic."""

    required: bool = Field(default=True, description="No promotion without a canary that graduated")
    shares: tuple[float, ...] = Field(default=(0.05, 0.25), min_length=1, description="Of traffic, step by step")
    margin: float = Field(default=0.05, gt=0, lt=1, description="Largest tolerated loss, of scores mapped to 0..1")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="Chance to promote what is worse by the margin")
    scorers: tuple[Scorer, ...] = Field(
        default=(RubricScorer(name="judge", kind="rubric", dimensions=("faithfulness", "relevance")),),
        description="Scorers that need no reference; the bundle's judge scores",
    )
    feedback: tuple[str, ...] = Field(default=(), description="Assessments that the app logs, yes/no or 0..1")
    minimum_requests: int = Field(default=50, ge=1, description="Judged canary requests before a step or the end")
    minimum_minutes: float = Field(default=10, ge=0, description="At each share")
    max_hours: float = Field(default=2, gt=0, description="Without a decision by then it holds, and is not promoted")
    silence_minutes: float = Field(default=30, gt=0, description="Without any traffic for so long: unmeasurable")
    judged_per_look: int = Field(default=200, ge=1, description="Canary requests judged at one look, at most")
    baseline_block: int = Field(default=4, ge=1, description="Champion requests judged beside each canary request")
    max_cost_usd: float | None = Field(default=None, gt=0, description="Spend cap of judging one canary")

    @field_validator("shares")
    @classmethod
    def shares_rise(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise ValueError(f"{list(shares)}: shares of traffic rise and lie between 0 and 1, as [0.05, 0.25]")
        return shares


class Approver(_Closed):
    """Who may approve. With a public key an approval counts only when it is signed by it."""

    name: str = Field(min_length=1)
    public_key: str | None = Field(default=None, description="Ed25519, hexadecimal")

    @field_validator("public_key")
    @classmethod
    def key_is_raw_hexadecimal(cls, key: str | None) -> str | None:
        if key is not None and not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError("an Ed25519 public key is 64 hexadecimal digits in lower case (docs/releases.md)")
        return key


class ApprovalPolicy(_Closed):
    """A human's word before a promotion."""

    required: int = Field(default=1, ge=0, description="Approvals by different people; 0: none is needed")
    owner: str = Field(default="", description="Who answers for this release, and is asked first")
    approvers: tuple[Approver, ...] = Field(default=(), description="Who may approve; empty: anybody by name")
    expires_hours: float = Field(default=24, gt=0)

    @field_validator("approvers", mode="before")
    @classmethod
    def names_are_enough(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value

    @model_validator(mode="after")
    def enough_approvers(self) -> ApprovalPolicy:
        if self.approvers and len({approver.name for approver in self.approvers}) < self.required:
            raise ValueError(f"{self.required} approvals are required, but only {len(self.approvers)} may approve")
        names = [approver.name.casefold() for approver in self.approvers]
        keys = [approver.public_key for approver in self.approvers if approver.public_key]
        if len(set(names)) < len(names) or len(set(keys)) < len(keys):
            raise ValueError("two approvers have the same name or the same key: one person would count twice")
        return self


class ReleasePolicy(_Closed):
    """policy.yaml, field `release`."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="Chance to pass what is worse by the margin")
    max_repeats: int = Field(default=3, ge=1, le=20, description="Trials per case that the gate may buy")
    gates: dict[Factor, dict[str, MetricGate]] = Field(
        default_factory=dict, description="By what changed, in addition to `gate`"
    )
    zero_tolerance: tuple[ZeroTolerance, ...] = ()
    forbidden_pii: tuple[PiiKind, ...] = Field(
        default=("key", "iban", "card", "ssn"), description="In no answer, unless question or reference hold it"
    )
    max_cost_increase: float | None = Field(default=None, gt=0, description="Of the cost per case, as a share")
    max_latency_increase: float | None = Field(default=None, gt=0, description="Of the p95 latency, as a share")
    max_evidence_age_hours: float = Field(default=24, gt=0, description="Older runs are stale evidence")
    canary: CanaryPolicy = CanaryPolicy()
    approval: ApprovalPolicy = ApprovalPolicy()
