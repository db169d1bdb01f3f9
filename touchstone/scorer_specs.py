"""The scorers that a policy.yaml may list: their parameters, and the metrics that each yields."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from touchstone.drift_records import MetricSpec

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

    @property
    def scale(self) -> tuple[float, float] | None:
        """Smallest and largest score; None: without limits, so no gate can bound a loss."""
        return (0.0, 1.0)

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
    def scale(self) -> None:
        return None

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
    def scale(self) -> tuple[float, float]:
        return (1.0, 5.0)

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
