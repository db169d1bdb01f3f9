"""What became of one case: an answer, what it cost, and its scores or its typed failure."""

from __future__ import annotations

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator


class FailureKind(StrEnum):
    """Why something has no score."""

    VENDOR_ERROR = "vendor_error"
    REFUSED = "refused"
    INVALID = "invalid"
    JUDGE_ERROR = "judge_error"
    TIMEOUT = "timeout"
    BUDGET = "budget"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(_Record):
    """A failure is data, never a score."""

    kind: FailureKind
    reason: str


class Call(_Record):
    """One finished vendor call and what is known of it."""

    role: str = Field(description="`generation`, `judge` or `embedding`")
    requested_model: str
    served_model: str | None = None
    fingerprint: str | None = None
    finish_reason: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    visible_tokens: int | None = Field(default=None, description="Output without hidden reasoning; None: no usage")
    cost_usd: float | None = Field(default=None, description="None: the price is unknown, not free")
    latency_ms: float = 0.0
    attempts: int = 1
    cached: bool = False
    prompt_version: str | None = None
    dropped_parameters: tuple[str, ...] = ()


class RetrievedChunk(_Record):
    """One chunk as a query got it, with its provenance."""

    chunk_id: str
    document_id: str
    text: str
    rank: int = Field(description="1 is best")
    score: float = Field(description="Similarity or relevance; higher is better")
    title: str = ""
    updated_at: str | None = None
    source: str = ""


class Retrieval(_Record):
    """One retrieval: what was asked, what came, from which index."""

    query: str
    chunks: tuple[RetrievedChunk, ...]
    latency_ms: float
    embedding_model: str
    index_version: str
    search: str


class Answer(_Record):
    """What the system under test said to one question."""

    text: str
    retrieval: Retrieval | None = None
    pii: dict[str, int] = Field(default_factory=dict, description="Personal data that was said, by kind")


class Score(_Record):
    """One metric of one case: a finite number, or the failure that took its place."""

    value: float | None = None
    failure: Failure | None = None
    explanation: str = ""

    @field_validator("value")
    @classmethod
    def value_is_finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("a score is a finite number; NaN and infinity are failures")
        return value


class CaseResult(_Record):
    """One trial of one case. `failure` is set when there is no answer to score."""

    case_id: str
    trial: int = 0
    question: str
    segment: str = "all"
    case_digest: str = ""
    answer: Answer | None = None
    scores: dict[str, Score] = Field(default_factory=dict)
    calls: tuple[Call, ...] = Field(default=(), description="All that were made, those of failures too")
    failure: Failure | None = None
    started_at: float = Field(default=0.0, description="Unix seconds")

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The case's own failure, or those of its scores."""
        if self.failure:
            return (self.failure,)
        return tuple(score.failure for score in self.scores.values() if score.failure)

    @property
    def cost_usd(self) -> float | None:
        """The sum over the calls; None when the price of one is unknown."""
        costs = [call.cost_usd for call in self.calls if not call.cached]
        return None if any(cost is None for cost in costs) else math.fsum(c for c in costs if c is not None)
