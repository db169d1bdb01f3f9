"""Scores of live answers, mapped to 0..1: by rules, and by one judge, the champion's, for both arms.

.touchstone/canaries/<canary_id>/calls.jsonl holds every finished judge call, so that a look that was killed pays
for none of them again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tasks.calls import CaseCalls, ResponseCache
from tasks.canary_ready import scale_of
from tasks.embedding import load_embedder
from tasks.scoring import JudgeSetup, import_ragas, judged_scores
from tasks.spool import Spool
from tasks.traffic import TracedAnswer
from tasks.vendor import Vendor
from tasks.vendor_library import litellm_module
from tasks.vendor_loop import wait_for
from touchstone.canary_sampling import ServedRequest
from touchstone.cases import GoldenCase
from touchstone.cost import Budget
from touchstone.definition import Definition
from touchstone.release_policy import CanaryPolicy
from touchstone.results import Score
from touchstone.scorer_specs import JUDGED, RagasScorer, RefusalScorer, Scorer
from touchstone.scorers import deterministic_scores
from touchstone.settings import Settings

_IN_FLIGHT = 256  # requests that are being judged at once; the vendor's own limit is on calls


@dataclass
class Judged:
    """Scores by trace id and metric, and what has none, by reason."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    spent_usd: float = 0.0

    @property
    def n_scores(self) -> int:
        return sum(len(metrics) for metrics in self.scores.values())

    @property
    def failed_share(self) -> float:
        """Of all scores that were asked for."""
        failed = self.failures.total()
        return failed / (failed + self.n_scores) if failed else 0.0

    @property
    def common_failure(self) -> str:
        return self.failures.most_common(1)[0][0] if self.failures else ""


def canary_folder(settings: Settings, canary_id: str) -> Path:
    return settings.state / "canaries" / canary_id


def judge_requests(
    settings: Settings,
    spool: Spool,
    definition: Definition,
    policy: CanaryPolicy,
    requests: Sequence[ServedRequest],
    answers: Mapping[str, TracedAnswer],
) -> Judged:
    """Score the requests whose texts are known; `definition` is the champion's, whose judge scores."""
    judge = _judge(definition, policy)
    with closing(ResponseCache(settings.state / "response_cache.db")) as cache:
        return wait_for(_judge_all(settings, spool, cache, judge, policy, requests, answers))


async def _judge_all(
    settings: Settings,
    spool: Spool,
    cache: ResponseCache,
    judge: JudgeSetup | None,
    policy: CanaryPolicy,
    requests: Sequence[ServedRequest],
    answers: Mapping[str, TracedAnswer],
) -> Judged:
    finished = spool.calls()
    vendor = Vendor(
        concurrency=settings.concurrency,
        deadline_s=settings.deadline_s,
        attempts=settings.attempts,
        budget=Budget(policy.max_cost_usd, spool.spent_usd()),
    )
    window, judged = asyncio.Semaphore(_IN_FLIGHT), Judged()

    async def one(request: ServedRequest) -> None:
        traced = answers.get(request.trace_id)
        if traced is None:
            judged.failures["the trace holds no question and answer"] += len(_metrics(policy))
            return
        calls = CaseCalls(request.digest, vendor, spool, finished, cache)
        async with window:
            scores = await _scores(policy.scorers, request, traced, calls, judge)
        judged.scores[request.trace_id] = _mapped(policy, scores)
        judged.failures.update(_short(score.failure.reason) for score in scores.values() if score.failure)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
    judged.spent_usd = vendor.budget.spent_usd
    return judged


async def _scores(
    scorers: Sequence[Scorer], request: ServedRequest, traced: TracedAnswer, calls: CaseCalls, judge: JudgeSetup | None
) -> dict[str, Score]:
    case = GoldenCase(id=request.request_id, question=traced.question, segment=request.segment)
    found: dict[str, Score] = {}
    for scorer in scorers:
        found |= deterministic_scores(scorer, case, traced.answer)
    if judge is not None:
        found |= await judged_scores(scorers, case, traced.answer, calls, judge)
    return found


def _mapped(policy: CanaryPolicy, scores: Mapping[str, Score]) -> dict[str, float]:
    """From each scorer's scale to 0..1, higher is better: of refusals 1 is "does not refuse"."""
    found: dict[str, float] = {}
    for scorer in policy.scorers:
        low, high = scale_of(scorer)
        for metric in scorer.metrics:
            score = scores.get(metric.name)
            if score is not None and score.value is not None:
                share = min(1.0, max(0.0, (score.value - low) / (high - low)))
                found[metric.name] = 1.0 - share if isinstance(scorer, RefusalScorer) else share
    return found


def _judge(definition: Definition, policy: CanaryPolicy) -> JudgeSetup | None:
    judged = [scorer for scorer in policy.scorers if scorer.kind in JUDGED]
    judge, prompt = definition.bundle.judge, definition.judge_prompt
    if not judged or judge is None or prompt is None:
        return None
    litellm_module()  # slow imports must not run on the event loop
    setup = JudgeSetup(judge, prompt, partial(load_embedder, judge.embedding_model))
    ragas = [scorer for scorer in judged if isinstance(scorer, RagasScorer)]
    if ragas:
        import_ragas()
    if any(scorer.metric == "answer_relevancy" for scorer in ragas) and setup.embedding is None:
        setup.embedder()
    return setup


def _metrics(policy: CanaryPolicy) -> list[str]:
    return [metric.name for scorer in policy.scorers for metric in scorer.metrics]


def _short(reason: str) -> str:
    return reason if len(reason) <= 200 else f"{reason[:199]}…"
