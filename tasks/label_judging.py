"""The judge's scores of labelled answers: as they were recorded on the traces, else asked for now, at most once.

.touchstone/labels/<dataset>/calls.jsonl holds every finished judge call; a run that died pays for none of them again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from tasks.calls import CaseCalls, ResponseCache
from tasks.embedding import load_embedder
from tasks.loading import GoldenSet, load_bundle, load_prompt
from tasks.scoring import JudgeSetup, import_ragas, judged_scores
from tasks.spool import Spool
from tasks.vendor import Vendor
from tasks.vendor_library import litellm_module
from tasks.vendor_loop import wait_for
from touchstone.calibration import Settled
from touchstone.cases import GoldenCase
from touchstone.cost import Budget
from touchstone.errors import BadInput
from touchstone.labels import Label
from touchstone.results import Answer, Retrieval, RetrievedChunk
from touchstone.scorer_specs import JUDGED, RagasScorer, Scorer
from touchstone.settings import Settings

_IN_FLIGHT = 256  # answers that are being judged at once; the vendor's own limit is on calls


@dataclass
class JudgedLabels:
    """Scores from 0 to 1 by place in the list that was given; `recorded` of them cost nothing."""

    scores: dict[int, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    recorded: int = 0
    spent_usd: float = 0.0


def judged_metrics(golden: GoldenSet, judged: GoldenSet) -> dict[str, Scorer]:
    """The judge's metrics by name: those that score live traffic first, for theirs are recorded on the traces."""
    found: dict[str, Scorer] = {}
    for scorer in (*golden.policy.release.canary.scorers, *judged.policy.scorers):
        if scorer.kind in JUDGED:
            found |= {metric.name: scorer for metric in scorer.metrics if metric.name not in found}
    return found


def judge_settled(
    settings: Settings,
    golden: GoldenSet,
    bundle: str,
    scorer: Scorer,
    metric: str,
    settled: Sequence[Settled],
    *,
    rescore: bool = False,
) -> JudgedLabels:
    """Score every settled answer by the bundle's judge; scores recorded by another judge's model are not used."""
    loaded = load_bundle(settings.root, bundle)
    if loaded.judge is None:
        raise BadInput(f"--bundle {bundle}: has no judge; add `judge: {{model: ...}}` to the bundle")
    found = JudgedLabels()
    missing: list[tuple[int, Label]] = []
    for place, one in enumerate(settled):
        if one.label.judge_score is not None and one.label.judge == loaded.judge.model and not rescore:
            found.scores[place] = one.label.judge_score
        else:
            missing.append((place, one.label))
    found.recorded = len(found.scores)
    if missing:
        prompt = load_prompt(settings.root, loaded.judge.prompt, {"payload"}, {"schema"})
        judge = JudgeSetup(loaded.judge, prompt, partial(load_embedder, loaded.judge.embedding_model))
        _warm_up(judge, scorer)
        spool = Spool(settings.state / "labels" / golden.name)
        with closing(ResponseCache(settings.state / "response_cache.db")) as cache, spool.locked():
            wait_for(_judge_all(settings, golden, spool, cache, judge, scorer, metric, missing, found))
    return found


async def _judge_all(
    settings: Settings,
    golden: GoldenSet,
    spool: Spool,
    cache: ResponseCache,
    judge: JudgeSetup,
    scorer: Scorer,
    metric: str,
    missing: Sequence[tuple[int, Label]],
    found: JudgedLabels,
) -> None:
    finished, window = spool.calls(), asyncio.Semaphore(_IN_FLIGHT)
    references = {case.id: case for case in golden.cases}
    vendor = Vendor(
        concurrency=settings.concurrency,
        deadline_s=settings.deadline_s,
        attempts=settings.attempts,
        budget=Budget(golden.policy.spend_cap_usd),
    )
    low, high = scorer.scale or (0.0, 1.0)

    async def one(place: int, label: Label) -> None:
        case, answer = _case(label, references), _answer(label)
        calls = CaseCalls(_key(label), vendor, spool, finished, cache)
        async with window:
            score = (await judged_scores([scorer], case, answer, calls, judge)).get(metric)
        if score is None:
            found.failures["the judge does not score such an answer (it lacks contexts or a reference)"] += 1
        elif score.value is None:
            found.failures[score.failure.reason[:200] if score.failure else "no score"] += 1
        else:
            found.scores[place] = min(1.0, max(0.0, (score.value - low) / (high - low)))

    async with asyncio.TaskGroup() as group:
        for place, label in missing:
            group.create_task(one(place, label))
    found.spent_usd = vendor.budget.spent_usd


def _warm_up(judge: JudgeSetup, scorer: Scorer) -> None:
    """Slow imports must not run on the event loop."""
    litellm_module()
    if isinstance(scorer, RagasScorer):
        import_ragas()
        if scorer.metric == "answer_relevancy" and judge.embedding is None:
            judge.embedder()


def _case(label: Label, cases: dict[str, GoldenCase]) -> GoldenCase:
    known = cases.get(label.id) if label.source == "case" else None
    return GoldenCase(id=label.id, question=label.question, reference=known.reference if known else None)


def _answer(label: Label) -> Answer:
    chunks = tuple(
        RetrievedChunk(chunk_id=f"{rank}", document_id=f"{rank}", text=text, rank=rank, score=0.0)
        for rank, text in enumerate(label.contexts, 1)
    )
    retrieval = Retrieval(
        query=label.question, chunks=chunks, latency_ms=0.0, embedding_model="", index_version="", search="labelled"
    )
    return Answer(text=label.answer, retrieval=retrieval if chunks else None)


def _key(label: Label) -> str:
    return hashlib.sha256(f"{label.source}\n{label.id}\n{label.answer}".encode()).hexdigest()[:16]
