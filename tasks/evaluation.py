"""The straight path of one case, and many of them at once: errors become data here and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from tasks.calls import CaseCalls, ResponseCache
from tasks.crashed_runs import note_flow_run
from tasks.embedding import load_embedder
from tasks.names import name_scrubber
from tasks.plan import EvalPlan, judge_of
from tasks.raw_calls import forget_raw_texts
from tasks.retrieval import Retriever
from tasks.retrieval_log import log_retrieval, used_chunks
from tasks.scoring import JudgeSetup, import_ragas, judged_scores
from tasks.spool import FinishedCall, Spool, run_folder
from tasks.targets import AppTargetRunner, HttpApp, ModelTarget, Target, python_app
from tasks.vendor import Vendor, litellm_module
from touchstone.cases import GoldenCase
from touchstone.cost import Budget
from touchstone.errors import CaseFailure
from touchstone.results import Answer, CaseResult, Failure
from touchstone.scorer_specs import RagasScorer
from touchstone.scorers import deterministic_scores
from touchstone.scrubbed_results import scrubbed_result

Unit = tuple[GoldenCase, int]
Progress = Callable[[CaseResult], None]


@dataclass
class EvalSession:
    """One run in one process: its calls share a limit, a budget, a spool and a cache."""

    plan: EvalPlan
    spool: Spool
    vendor: Vendor
    target: Target
    judge: JudgeSetup | None
    cache: ResponseCache
    finished_calls: dict[str, FinishedCall]
    finished_cases: dict[tuple[str, int], CaseResult]
    on_case: Progress
    hide_names: Callable[[str], str] = str

    async def run_shard(self, units: Sequence[Unit]) -> list[CaseResult]:
        """Results in the order of `units`; what the spool holds is not run again."""
        todo = [unit for unit in units if (unit[0].id, unit[1]) not in self.finished_cases]
        # More cases than calls in flight: a case waits on its judge while others generate.
        window = asyncio.Semaphore(4 * self.plan.concurrency)

        async def bounded(case: GoldenCase, trial: int) -> CaseResult:
            try:
                return await self._run_case(case, trial)
            finally:
                window.release()

        block = self.plan.concurrency
        async with asyncio.TaskGroup() as group:
            for start in range(0, len(todo), block):
                # A block is prepared while those before it wait for their vendors.
                await self.target.prepare([case for case, _ in todo[start : start + block]])
                for case, trial in todo[start : start + block]:
                    await window.acquire()
                    group.create_task(bounded(case, trial))
        return [self.finished_cases[(case.id, trial)] for case, trial in units]

    async def _run_case(self, case: GoldenCase, trial: int) -> CaseResult:
        calls = CaseCalls(f"{case.id}/{trial}", self.vendor, self.spool, self.finished_calls, self.cache)
        result = scrubbed_result(await evaluate_case(self, case, trial, calls), case, self.hide_names)
        self.spool.append_case(result)
        self.finished_cases[(case.id, trial)] = result
        self.on_case(result)
        return result


async def evaluate_case(session: EvalSession, case: GoldenCase, trial: int, calls: CaseCalls) -> CaseResult:
    """Ask, score, and turn whatever went wrong into a typed failure."""
    known = {
        "case_id": case.id,
        "trial": trial,
        "question": case.question,
        "segment": case.segment,
        "case_digest": case.digest,
        "started_at": time.time(),
    }
    try:
        answer = await session.target.answer(case, calls)
    except CaseFailure as error:
        return CaseResult(**known, calls=tuple(calls.calls), failure=Failure(kind=error.kind, reason=str(error)))
    _log_retrieval(session, case, answer)
    policy = session.plan.golden.policy
    scores = {}
    for scorer in policy.scorers:
        scores |= deterministic_scores(scorer, case, answer)
    if session.judge is not None:
        scores |= await judged_scores(policy.scorers, case, answer, calls, session.judge)
    return CaseResult(**known, answer=answer, scores=scores, calls=tuple(calls.calls))


@asynccontextmanager
async def open_session(plan: EvalPlan, on_case: Progress = lambda result: None) -> AsyncIterator[EvalSession]:
    """Open a run's spool and what its calls share; everything is closed again."""
    spool = Spool(run_folder(plan.settings.state, plan.run_key))
    lock = ExitStack()
    if spool.has("manifest.json"):
        lock.enter_context(spool.locked())  # before what is finished is read
    finished_calls, finished_cases = _finished(plan, spool)
    cache = ResponseCache(plan.settings.state / "response_cache.db")
    vendor = Vendor(
        concurrency=plan.concurrency,
        deadline_s=plan.settings.deadline_s,
        attempts=plan.settings.attempts,
        budget=Budget(plan.cap_usd, spool.spent_usd()),
    )
    # Slow imports must not run on the event loop: calls in flight would miss their deadline.
    await asyncio.to_thread(litellm_module)
    target = await asyncio.to_thread(_target, plan)
    judge = await asyncio.to_thread(_judge, plan)
    hide_names = await asyncio.to_thread(name_scrubber, plan.settings)
    if not spool.has("manifest.json"):
        lock.enter_context(spool.locked())  # after all that can be bad input: it makes the run's folder
    try:
        spool.write_json("manifest.json", plan.manifest.model_dump_json(indent=2))
        spool.write_json("definition.json", plan.definition.model_dump_json(indent=2))
        note_flow_run(spool)
        yield EvalSession(
            plan, spool, vendor, target, judge, cache, finished_calls, finished_cases, on_case, hide_names
        )
    finally:
        forget_raw_texts(spool, [key for key, result in finished_cases.items() if not result.failures])
        lock.close()
        await target.close()
        cache.close()
        spool.close()


def _finished(plan: EvalPlan, spool: Spool) -> tuple[dict[str, FinishedCall], dict[tuple[str, int], CaseResult]]:
    """What is already paid for; with `retry_failures`, without what failed."""
    calls, cases = spool.calls(), spool.cases()
    if not plan.retry_failures:
        return calls, cases
    return (
        {key: finished for key, finished in calls.items() if not finished.bad},
        {key: result for key, result in cases.items() if not result.failures},
    )


def _target(plan: EvalPlan) -> Target:
    bundle = plan.bundle
    if bundle.target is not None:
        if bundle.target.http:
            app = HttpApp(bundle.target.http)
        else:
            app = python_app(bundle.target.python or "", plan.settings.root)
        return AppTargetRunner(bundle.target, app, plan.concurrency)
    asked = plan.definition
    assert asked.prompt is not None  # a bundle with a model has a prompt
    retriever = None
    if asked.retrieval is not None and asked.index is not None:
        retriever = Retriever.open(asked.retrieval, asked.index, plan.settings.lance)
    return ModelTarget(bundle, asked.prompt, retriever)


def _judge(plan: EvalPlan) -> JudgeSetup | None:
    prompt = plan.definition.judge_prompt
    if prompt is None or not plan.golden.policy.needs_judge:
        return None
    judge = judge_of(plan.bundle)
    ragas = [scorer for scorer in plan.golden.policy.scorers if isinstance(scorer, RagasScorer)]
    if ragas:
        import_ragas()
    setup = JudgeSetup(judge, prompt, partial(load_embedder, judge.embedding_model))
    if any(scorer.metric == "answer_relevancy" for scorer in ragas) and setup.embedding is None:
        setup.embedder()  # now, not after the generations are paid
    return setup


def _log_retrieval(session: EvalSession, case: GoldenCase, answer: Answer) -> None:
    if answer.retrieval is None:
        return
    config = session.plan.definition.retrieval
    log_retrieval(
        session.plan.settings.state / "retrievals",
        answer.retrieval,
        config=config.name if config else "",
        bundle=session.plan.bundle.name,
        case_id=case.id,
        run_key=session.plan.run_key,
        segment=case.segment,
        used_chunk_ids=used_chunks(answer.text, answer.retrieval.chunks),
    )


def shards(units: Sequence[Unit], size: int = 250) -> list[Sequence[Unit]]:
    """Units in shards: large enough that Prefect's cost per task vanishes, at most a few dozen."""
    size = max(size, -(-len(units) // 48))
    return [units[start : start + size] for start in range(0, len(units), size)]
