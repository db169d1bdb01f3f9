"""policy.yaml: what is scored, what a gate asks for, and when drift is called drift."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.drift import DriftPolicy, MetricSpec

RUBRIC_DIMENSIONS = ("faithfulness", "relevance", "completeness")
RETRIEVAL_METRICS = ("ndcg", "mrr", "recall", "precision")
JUDGED = ("ragas", "rubric")


class _Scorer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    segments: tuple[str, ...] = Field(default=(), description="Score these segments only; empty: all")

    @property
    def fingerprint(self) -> str:
        """Scores of scorers with another fingerprint must not be compared."""
        return hashlib.sha256(self.model_dump_json(exclude={"segments"}).encode()).hexdigest()[:12]

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """The metrics that this scorer yields, the headline first."""
        return (self._metric(self.name, "graded"),)

    def _metric(
        self, name: str, kind: Literal["pass_fail", "graded"], higher_is_better: bool | None = True
    ) -> MetricSpec:
        return MetricSpec(name=name, kind=kind, higher_is_better=higher_is_better, scorer_fingerprint=self.fingerprint)


class _PassFail(_Scorer):
    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return (self._metric(self.name, "pass_fail"),)


def _compiles(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class ExpectScorer(_PassFail):
    """Pass when every check of the case's own `expect` holds; cases without one are left out."""

    kind: Literal["expect"]


class ExactScorer(_PassFail):
    """Pass when the answer, or the last match of `extract` in it, equals the reference, case-insensitively."""

    kind: Literal["exact"]
    extract: str | None = None

    _extract_compiles = field_validator("extract")(_compiles)


class RegexScorer(_PassFail):
    """Pass when `pattern` is found in the answer."""

    kind: Literal["regex"]
    pattern: str

    _pattern_compiles = field_validator("pattern")(_compiles)


class TextScorer(_PassFail):
    """Pass when all `texts` are in the answer (`contains`), or none is (`not_contains`); case-insensitive."""

    kind: Literal["contains", "not_contains"]
    texts: tuple[str, ...] = Field(min_length=1)


class NumericScorer(_PassFail):
    """Pass when some number of the answer equals the reference's last number within `tolerance`."""

    kind: Literal["numeric"]
    tolerance: float = Field(default=1e-9, ge=0)


class RefusalScorer(_Scorer):
    """1 when the answer declines to answer; tracked for change in either direction."""

    kind: Literal["refusal"]

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return (self._metric(self.name, "graded", None),)


class LengthScorer(_Scorer):
    """Words of the answer; tracked for change in either direction."""

    kind: Literal["length"]

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return (self._metric(self.name, "graded", None),)


class OverlapScorer(_Scorer):
    """Token F1 of the answer with the reference, after SQuAD's normalisation."""

    kind: Literal["token_f1"]


class RetrievalScorer(_Scorer):
    """Ranking of the retrieved documents against `relevant_ids`; cases without any are left out."""

    kind: Literal["retrieval"]
    k: int = Field(default=8, ge=1)
    measures: tuple[Literal["ndcg", "mrr", "recall", "precision", "chunk_overlap"], ...] = Field(
        default=RETRIEVAL_METRICS, min_length=1
    )

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return tuple(self._metric(self.metric_name(measure), "graded") for measure in self.measures)

    def metric_name(self, measure: str) -> str:
        return measure if measure == "chunk_overlap" else f"{measure}_at_{self.k}"


class RagasScorer(_Scorer):
    """One metric of ragas, through ragas itself, judged by the bundle's judge."""

    kind: Literal["ragas"]
    metric: Literal["faithfulness", "answer_relevancy", "context_precision", "context_recall"]
    strictness: int = Field(default=1, ge=1, le=10, description="Questions per answer for answer_relevancy")


class RubricScorer(_Scorer):
    """The judge's 1 to 5 for each dimension; each is a metric of its own, an average would hide one."""

    kind: Literal["rubric"]
    dimensions: tuple[str, ...] = Field(default=RUBRIC_DIMENSIONS, min_length=1)

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return tuple(self._metric(self.metric_name(dimension), "graded") for dimension in self.dimensions)

    def metric_name(self, dimension: str) -> str:
        return f"{self.name}_{dimension}"


Scorer = Annotated[
    ExpectScorer
    | ExactScorer
    | RegexScorer
    | TextScorer
    | NumericScorer
    | RefusalScorer
    | LengthScorer
    | OverlapScorer
    | RetrievalScorer
    | RagasScorer
    | RubricScorer,
    Field(discriminator="kind"),
]


class MetricGate(BaseModel):
    """What a candidate owes for one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float = Field(ge=0, description="Largest tolerated loss against the incumbent")
    floor: float | None = Field(default=None, description="Smallest tolerated mean")


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
    drift: DriftPolicy = DriftPolicy()
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
        known = [metric.name for metric in self.metrics]
        for name in self.gate:
            if name not in known:
                raise ValueError(f"gate.{name}: no scorer yields this metric; known: {', '.join(known)}")
        return self

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
