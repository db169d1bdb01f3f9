"""What an eval found: means with intervals and their denominators, failures by kind, cost, latency."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from touchstone.drift import DriftDecision, MetricScores, MetricSpec, RunScores
from touchstone.drift_records import WHOLE
from touchstone.results import Call, CaseResult, FailureKind


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricSummary(_Record):
    """A metric's mean over `n` cases with its 95 % interval, clustered by case when there are repeats."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


class Latency(_Record):
    """Milliseconds; None without a call."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class EvalReport(_Record):
    """report.json, and what `eval run --json` prints."""

    run_key: str
    verdict: str = Field(default="calibration", description="`calibration`, or `measured` for a gate: not judged")
    direction: str | None = None
    reason: str = ""
    provisional: bool = False
    n_cases: int
    n_scored: int = Field(description="Cases without any failure")
    n_failed: int
    failures: dict[str, int] = Field(description="Cases by the kind of their first failure")
    failure_examples: dict[str, str] = Field(default_factory=dict, description="One reason for each kind")
    metrics: dict[str, MetricSummary]
    segments: dict[str, dict[str, MetricSummary]]
    pii: dict[str, int] = Field(default_factory=dict, description="Personal data in the answers, by kind")
    flaky: dict[str, float] = Field(default_factory=dict, description="Share of cases whose repeats disagree")
    cost_usd: float | None
    cost_per_case_usd: float | None = None
    cost_per_success_usd: float | None = Field(default=None, description="Per case that passes the headline metric")
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int
    cache_hit_share: float | None = None
    latency_ms: Latency
    steps_ms: dict[str, Latency] = Field(default_factory=dict, description="retrieval, generation, judge")
    wall_s: float
    served_models: dict[str, int]
    fingerprints: dict[str, int]
    change_point: str | None = None
    minimum_detectable_effect: float | None = None
    decision: DriftDecision | None = None
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    mlflow_compare_url: str | None = None


def personal_data(report: EvalReport) -> str:
    """Such as `3 email, 1 phone`; empty: none was found in the answers."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(report.pii.items()))


def summarise(run_key: str, results: Sequence[CaseResult], specs: Sequence[MetricSpec], wall_s: float) -> EvalReport:
    """The report without its verdict, from all trials of all cases."""
    by_case: dict[str, list[CaseResult]] = defaultdict(list)
    for result in results:
        by_case[result.case_id].append(result)
    kinds, examples = _failures(by_case)
    calls = [call for result in results for call in result.calls]
    cost = total_cost(calls)
    segments = sorted({result.segment for result in results} - {WHOLE})
    generation = [call for call in calls if call.role == "generation"]
    judged = [call for call in calls if call.role == "judge"]
    metrics = {spec.name: found for spec in specs if (found := _summary(results, spec))}
    report = EvalReport(
        run_key=run_key,
        n_cases=len(by_case),
        n_scored=len(by_case) - sum(kinds.values()),
        n_failed=sum(kinds.values()),
        failures=dict(kinds),
        failure_examples=examples,
        metrics=metrics,
        segments={
            segment: {
                spec.name: found
                for spec in specs
                if (found := _summary([result for result in results if result.segment == segment], spec))
            }
            for segment in segments
        },
        pii=dict(sum((Counter(result.answer.pii) for result in results if result.answer), Counter())),
        flaky={spec.name: share for spec in specs if (share := _flaky_share(by_case, spec)) is not None},
        cost_usd=cost,
        cost_per_case_usd=cost / len(by_case) if cost is not None and by_case else None,
        cost_per_success_usd=_cost_per_success(cost, metrics, specs),
        input_tokens=sum(call.input_tokens for call in calls if not call.cached),
        output_tokens=sum(call.output_tokens for call in calls if not call.cached),
        calls=len(calls),
        cache_hit_share=sum(call.cached for call in judged) / len(judged) if judged else None,
        latency_ms=_latency(call.latency_ms for call in generation),
        steps_ms=_steps(results, generation, judged),
        wall_s=wall_s,
        served_models=dict(Counter(call.served_model for call in generation if call.served_model)),
        fingerprints=dict(Counter(call.fingerprint for call in generation if call.fingerprint)),
    )
    return report


def with_decision(report: EvalReport, decision: DriftDecision) -> EvalReport:
    """The report with its verdict."""
    return report.model_copy(
        update={
            "verdict": decision.verdict.value,
            "direction": decision.direction.value if decision.direction else None,
            "reason": decision.reason,
            "provisional": decision.provisional,
            "change_point": decision.change_point,
            "minimum_detectable_effect": decision.minimum_detectable_effect,
            "decision": decision,
        }
    )


def case_scores(results: Iterable[CaseResult], metric: str) -> dict[str, tuple[float, ...]]:
    """Each case's scores over its trials, in order of trial; failures are absent."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        score = result.scores.get(metric)
        if score is not None and score.value is not None:
            found[result.case_id].append((result.trial, score.value))
    return {case_id: tuple(value for _, value in sorted(trials)) for case_id, trials in found.items()}


def total_cost(calls: Iterable[Call]) -> float | None:
    """USD of what was paid for; None when the price of one call is unknown."""
    costs = [call.cost_usd for call in calls if not call.cached]
    return None if any(cost is None for cost in costs) else math.fsum(cost for cost in costs if cost is not None)


def interval(means: Sequence[float], *, is_share: bool) -> tuple[float, float]:
    """95 % interval of a mean over cases: Wilson's for shares of single trials, else Student's t."""
    n = len(means)
    values = np.asarray(means, dtype=float)
    mean = float(values.mean())
    if is_share and np.isin(values, (0.0, 1.0)).all():
        found = stats.binomtest(int(values.sum()), n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    if n < 2:
        return mean, mean
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean - half, mean + half


def _summary(results: Iterable[CaseResult], spec: MetricSpec) -> MetricSummary | None:
    scores = case_scores(results, spec.name)
    if not scores:
        return None
    means = [math.fsum(values) / len(values) for values in scores.values()]
    low, high = interval(means, is_share=spec.kind == "pass_fail")
    return MetricSummary(mean=math.fsum(means) / len(means), ci_low=low, ci_high=high, n=len(means))


def _failures(by_case: Mapping[str, Sequence[CaseResult]]) -> tuple[Counter[str], dict[str, str]]:
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for case_id, trials in by_case.items():
        found = [failure for trial in trials for failure in trial.failures]
        # A call that the cap forbade is what the exit code must hear of.
        first = next((failure for failure in found if failure.kind is FailureKind.BUDGET), None)
        if first := first or next(iter(found), None):
            kinds[first.kind.value] += 1
            examples.setdefault(first.kind.value, f"{case_id}: {first.reason}")
    return kinds, examples


def _flaky_share(by_case: Mapping[str, Sequence[CaseResult]], spec: MetricSpec) -> float | None:
    repeated = [scores for scores in case_scores(_flat(by_case), spec.name).values() if len(scores) > 1]
    return sum(len(set(scores)) > 1 for scores in repeated) / len(repeated) if repeated else None


def _flat(by_case: Mapping[str, Sequence[CaseResult]]) -> Iterable[CaseResult]:
    return (trial for trials in by_case.values() for trial in trials)


def _cost_per_success(
    cost: float | None, metrics: Mapping[str, MetricSummary], specs: Sequence[MetricSpec]
) -> float | None:
    headline = next((metrics[spec.name] for spec in specs if spec.kind == "pass_fail" and spec.name in metrics), None)
    if cost is None or headline is None or headline.mean == 0:
        return None
    return cost / (headline.mean * headline.n)


def _steps(results: Sequence[CaseResult], generation: Sequence[Call], judged: Sequence[Call]) -> dict[str, Latency]:
    retrievals = [result.answer.retrieval for result in results if result.answer and result.answer.retrieval]
    steps = {
        "retrieval": _latency(retrieval.latency_ms for retrieval in retrievals),
        "generation": _latency(call.latency_ms for call in generation),
        "judge": _latency(call.latency_ms for call in judged if not call.cached),
    }
    return {name: latency for name, latency in steps.items() if latency.p50 is not None}


def _latency(milliseconds: Iterable[float]) -> Latency:
    values = list(milliseconds)
    if not values:
        return Latency()
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return Latency(p50=round(float(p50), 3), p95=round(float(p95), 3), p99=round(float(p99), 3))


def run_scores(run_key: str, at: str, results: Sequence[CaseResult], specs: Sequence[MetricSpec]) -> RunScores:
    """What the drift decision needs of a run: scores per metric and case, and the denominators."""
    by_case: dict[str, list[CaseResult]] = defaultdict(list)
    for result in results:
        by_case[result.case_id].append(result)
    kinds, _ = _failures(by_case)
    generation = [call for result in results for call in result.calls if call.role == "generation"]
    scores = {spec: case_scores(results, spec.name) for spec in specs}
    return RunScores(
        run_key=run_key,
        at=at,
        metrics={
            spec.name: MetricScores(
                case_ids=tuple(found), scores=tuple(found.values()), scorer_fingerprint=spec.scorer_fingerprint
            )
            for spec, found in scores.items()
            if found
        },
        segments={result.case_id: result.segment for result in results if result.segment != WHOLE},
        n_cases=len(by_case),
        n_failed=sum(kinds.values()),
        failures=dict(kinds),
        served_models=dict(Counter(call.served_model for call in generation if call.served_model)),
        fingerprints=dict(Counter(call.fingerprint for call in generation if call.fingerprint)),
        case_digests={result.case_id: result.case_digest for result in results},
    )
