"""What the drift decision reads, remembers and says: frozen, closed, JSON-able."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.errors import BadInput

WHOLE = "all"  # the stream over every case, beside those of single segments


class Direction(StrEnum):
    """Where the product went. `changed`: it moved, and better or worse cannot be said."""

    WORSE = "worse"
    BETTER = "better"
    CHANGED = "changed"


class Verdict(StrEnum):
    """Of a run, and (but for unmeasurable) the level of each of its streams."""

    STABLE = "stable"
    FLAGGED = "flagged"
    DRIFTED = "drifted"
    UNMEASURABLE = "unmeasurable"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DriftPolicy(_Record):
    """When drift is called drift."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="False `drifted` alarms per year and direction")
    flag_alpha: float = Field(default=0.5, gt=0, lt=1, description="The same for `flagged`: look, do not act")
    runs_per_year: float = Field(default=365, gt=0, description="Over which a year's alpha is spent")
    persistence: int = Field(default=1, ge=1, description="Runs in a row that evidence must stand to act, not to flag")
    recovery_runs: int = Field(default=3, ge=1, description="Quiet runs in a row that end a drift")
    minimum_calibration_runs: int = Field(default=20, ge=3, description="With fewer, the baseline is provisional")
    horizon_runs: int = Field(default=7, ge=1, description="Runs that the minimum detectable effect is stated for")

    @model_validator(mode="after")
    def flags_before_it_acts(self) -> Self:
        if self.flag_alpha < self.alpha:
            raise ValueError(
                f"flag_alpha {self.flag_alpha} is below alpha {self.alpha}: a flag must come before an act"
            )
        return self

    @property
    def threshold(self) -> float:
        """A: the evidence that acts."""
        return self.runs_per_year / self.alpha

    @property
    def flag_at(self) -> float:
        """Evidence as a share of A that flags."""
        return self.alpha / self.flag_alpha


class MetricSpec(_Record):
    """One metric as its scorer defines it. `higher_is_better` None: any shift is just a change."""

    name: str = Field(min_length=1)
    kind: Literal["pass_fail", "graded"]
    higher_is_better: bool | None = True
    scorer_fingerprint: str = ""


class MetricScores(_Record):
    """One metric of one run: for each scored case its repeats. Failures are absent; NaN is refused."""

    case_ids: tuple[str, ...]
    scores: tuple[Annotated[tuple[float, ...], Field(min_length=1)], ...]
    scorer_fingerprint: str = Field(default="", description="Empty: not compared with the baseline's")

    @model_validator(mode="after")
    def scores_belong_to_cases(self) -> Self:
        if len(self.case_ids) != len(self.scores):
            raise ValueError(f"{len(self.case_ids)} case ids but {len(self.scores)} scores")
        doubled = [case_id for case_id, count in Counter(self.case_ids).items() if count > 1]
        if doubled:
            raise ValueError(f"case {doubled[0]!r} is listed twice; give its repeats as one tuple")
        for case_id, repeats in zip(self.case_ids, self.scores, strict=True):
            if not all(map(math.isfinite, repeats)):
                raise ValueError(f"case {case_id!r} has a score that is no finite number; leave failures out")
        return self

    def by_case(self) -> dict[str, tuple[float, ...]]:
        return dict(zip(self.case_ids, self.scores, strict=True))


class RunScores(_Record):
    """What the decision needs of one run: scores, denominators, and what the vendor said of itself."""

    run_key: str
    at: str = Field(description="ISO time of the run")
    metrics: dict[str, MetricScores]
    segments: dict[str, str] = Field(default_factory=dict, description="Segment by case id")
    n_cases: int = Field(ge=0, description="Planned")
    n_failed: int = Field(default=0, ge=0)
    failures: dict[str, int] = Field(default_factory=dict, description="By kind")
    served_models: dict[str, int] = Field(default_factory=dict, description="Calls by the returned model id")
    fingerprints: dict[str, int] = Field(default_factory=dict, description="Calls by the system fingerprint")
    case_digests: dict[str, str] = Field(default_factory=dict, description="Content digest of every planned case")

    @field_validator("segments")
    @classmethod
    def no_segment_is_called_all(cls, segments: dict[str, str]) -> dict[str, str]:
        if WHOLE in segments.values():
            raise ValueError(f"a segment is called {WHOLE!r}, which means every case; rename it")
        return segments


class Baseline(_Record):
    """Frozen runs that later runs are compared with; provisional when too few to know their noise."""

    id: str
    provisional: bool
    run_keys: tuple[str, ...]
    created_at: str
    specs: tuple[MetricSpec, ...]
    calibration: dict[str, tuple[dict[str, tuple[float, ...]], ...]] = Field(
        description="By metric, for each run: the repeats of each scored case"
    )
    case_digests: dict[str, str]
    segments: dict[str, str]
    served_models: dict[str, int]
    fingerprints: dict[str, int]


def freeze_baseline(
    runs: Sequence[RunScores],
    specs: Sequence[MetricSpec],
    provisional: bool | None = None,
    *,
    minimum_calibration_runs: int = 20,
) -> Baseline:
    """Freeze runs as a baseline; provisional (None: decided here) if fewer than `minimum_calibration_runs`.

    Pure: the same runs give the same baseline, id included. Metrics that no run scored are left out.
    Raises BadInput when there is no run or no score, a run comes twice, the golden set changed between the runs, or a
    pass/fail score is neither 0 nor 1.
    """
    keys = tuple(run.run_key for run in runs)
    if not keys:
        raise BadInput("a baseline needs at least one run")
    if len(set(keys)) < len(keys):
        raise BadInput(f"a run comes twice among {', '.join(keys)}; its repetition would look like a quiet vendor")
    used = tuple(spec for spec in specs if any(spec.name in run.metrics for run in runs))
    if not used:
        raise BadInput(f"no run has a score of {', '.join(spec.name for spec in specs) or 'any metric'}")
    calibration = {spec.name: tuple(_scores(run, spec) for run in runs) for spec in used}
    content = json.dumps([keys, [spec.model_dump() for spec in used], calibration], sort_keys=True)
    return Baseline(
        id=hashlib.sha256(content.encode()).hexdigest()[:16],
        provisional=len(keys) < minimum_calibration_runs if provisional is None else provisional,
        run_keys=keys,
        created_at=max(run.at for run in runs),
        specs=used,
        calibration=calibration,
        case_digests=_agreed_digests(runs),
        segments={case_id: segment for run in runs for case_id, segment in run.segments.items()},
        served_models=dict(sum((Counter(run.served_models) for run in runs), Counter())),
        fingerprints=dict(sum((Counter(run.fingerprints) for run in runs), Counter())),
    )


def _scores(run: RunScores, spec: MetricSpec) -> dict[str, tuple[float, ...]]:
    if spec.name not in run.metrics:
        return {}
    scores = run.metrics[spec.name].by_case()
    for case_id, repeats in scores.items():
        if spec.kind == "pass_fail" and any(score not in (0.0, 1.0) for score in repeats):
            raise BadInput(f"run {run.run_key}, case {case_id!r}: {spec.name} is pass/fail but scored {repeats}")
    return scores


def _agreed_digests(runs: Sequence[RunScores]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for run in runs:
        for case_id, digest in run.case_digests.items():
            if digests.setdefault(case_id, digest) != digest:
                raise BadInput(f"the golden set changed between the calibration runs: case {case_id!r} differs")
    return digests


class StreamState(_Record):
    """What is remembered of one stream (metric x segment x direction) between runs."""

    metric: str
    segment: str
    direction: Direction
    detectors: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Detector state by side")
    level: Verdict = Verdict.STABLE
    since: str | None = Field(default=None, description="Run key at which the level was reached")
    act_streak: int = 0
    quiet_streak: int = 0
    drifted_runs: int = 0
    runs: tuple[str, ...] = Field(default=(), description="Keys of the last runs that its evidence is made of")
    change_point: str | None = None
    change_set: int | None = None
    trigger: dict[str, Any] | None = Field(default=None, description="Packed case means of the run that triggered")

    @property
    def key(self) -> str:
        return f"{self.metric}/{self.segment}/{self.direction}"


class DriftState(_Record):
    """What is remembered between runs on one baseline."""

    baseline_id: str
    runs: int = 0
    verdict: Verdict | None = Field(default=None, description="Of the last run")
    streams: dict[str, StreamState] = Field(default_factory=dict)
    signals: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="Standing metadata signals")


class StreamEvidence(_Record):
    """One stream of one run, in numbers. Shares of A: `e_value` 1 is its own alarm, `adjusted` 1 the family's."""

    metric: str
    segment: str
    direction: Direction
    mean_now: float
    mean_baseline: float
    difference: float = Field(description="Mean over the paired cases")
    ci_low: float
    ci_high: float
    n: int = Field(description="Paired cases")
    n_planned: int = Field(description="Cases of the stream in this run, scored or not")
    e_value: float
    adjusted: float = Field(description="After e-BH over the family's streams")
    level: Verdict
    since: str | None
    minimum_detectable_effect: float | None
    change_point: str | None
    change_set: int | None = Field(description="Runs in the 95 % set of the change point")

    @property
    def key(self) -> str:
        return f"{self.metric}/{self.segment}/{self.direction}"


class Transition(_Record):
    """A level was reached or left in this run. `stream`: metric/segment/direction, or metadata/<what>."""

    kind: Literal["flagged", "detected", "recovered"]
    stream: str


class MetadataSignal(_Record):
    """The vendor says something of itself that it did not say in the baseline."""

    what: Literal["served_model", "fingerprint"]
    new: tuple[str, ...]
    baseline: tuple[str, ...]


class DriftDecision(_Record):
    """The verdict on one run, its reason in one sentence, and the numbers behind it."""

    verdict: Verdict
    direction: Direction | None
    reason: str
    provisional: bool
    streams: tuple[StreamEvidence, ...] = ()
    transitions: tuple[Transition, ...] = ()
    metadata_signals: tuple[MetadataSignal, ...] = ()
    minimum_detectable_effect: float | None = Field(default=None, description="Of the headline metric")
    change_point: str | None = Field(default=None, description="Run key, once flagged or drifted")
    n_paired: int = 0
