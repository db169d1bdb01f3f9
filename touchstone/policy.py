"""policy.yaml: what is scored, what a gate asks for, and when drift is called drift."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.drift_records import DriftPolicy, MetricSpec
from touchstone.label_policy import LabelPolicy
from touchstone.release_policy import Factor, MetricGate, ReleasePolicy
from touchstone.scorer_specs import (
    JUDGED,
    ExpectScorer,
    LengthScorer,
    OverlapScorer,
    RefusalScorer,
    RetrievalScorer,
    Scorer,
)


class Policy(BaseModel):
    """Thresholds live here, beside the golden set, so that changing one changes no bundle's fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scorers: tuple[Scorer, ...] = (
        ExpectScorer(name="answer_ok", kind="expect"),
        OverlapScorer(name="token_f1", kind="token_f1"),
        RetrievalScorer(name="retrieval", kind="retrieval"),
        RefusalScorer(name="refusal", kind="refusal"),
        LengthScorer(name="length", kind="length"),
    )
    gate: dict[str, MetricGate] = Field(default_factory=dict)
    release: ReleasePolicy = ReleasePolicy()
    drift: DriftPolicy = DriftPolicy()
    labels: LabelPolicy = LabelPolicy()
    fail_on: Literal["worse", "change"] = Field(default="worse", description="Which drift makes exit code 1")
    minimum_cases: int = Field(default=20, ge=1)
    maximum_failure_share: float = Field(default=0.10, ge=0, le=1)
    spend_cap_usd: float | None = Field(default=None, gt=0)

    @field_validator("scorers")
    @classmethod
    def has_scorers_with_unique_names(cls, scorers: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
        if not scorers:
            raise ValueError("list at least one scorer")
        names = [metric.name for scorer in scorers for metric in scorer.metrics]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two scorers yield the metric {doubled[0]!r}; rename one")
        return scorers

    @model_validator(mode="after")
    def gates_name_metrics(self) -> Policy:
        gated = {f"gate.{name}": name for name in self.gate}
        for factor, gates in self.release.gates.items():
            gated |= {f"release.gates.{factor}.{name}": name for name in gates}
        for number, rule in enumerate(self.release.zero_tolerance):
            gated[f"release.zero_tolerance.{number}.metric"] = rule.metric
        known = {metric.name: metric for metric in self.metrics}
        for field, name in gated.items():
            if name not in known:
                raise ValueError(f"{field}: no scorer yields this metric; known: {', '.join(known)}")
            if known[name].higher_is_better is None:
                raise ValueError(f"{field}: {name} has no better direction, so no loss can be bounded")
        return self

    def gates_for(self, factors: Iterable[Factor]) -> dict[str, MetricGate]:
        """The gate of each metric for a change of these factors: the common ones, and those of each factor."""
        gates = dict(self.gate)
        for factor in factors:
            gates |= self.release.gates.get(factor, {})
        return gates

    def scale_of(self, metric: str) -> tuple[float, float]:
        """Smallest and largest score of a metric that may be gated."""
        found = next(scorer for scorer in self.scorers if metric in {spec.name for spec in scorer.metrics})
        assert found.scale is not None  # a scorer without limits has no better direction, see gates_name_metrics
        return found.scale

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return tuple(metric for scorer in self.scorers for metric in scorer.metrics)

    def metrics_under(self, judge_fingerprint: str) -> tuple[MetricSpec, ...]:
        """The metrics with the judge in the fingerprint of those that it scores: another judge, other scores."""
        judged = {metric.name for scorer in self.scorers if scorer.kind in JUDGED for metric in scorer.metrics}
        return tuple(
            metric.model_copy(update={"scorer_fingerprint": f"{metric.scorer_fingerprint}:{judge_fingerprint}"})
            if metric.name in judged
            else metric
            for metric in self.metrics
        )

    @property
    def scorers_digest(self) -> str:
        """Digest of all that decides which cases get which scores."""
        content = "\n".join(scorer.model_dump_json() for scorer in self.scorers)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def needs_judge(self) -> bool:
        return any(scorer.kind in JUDGED for scorer in self.scorers)
