"""Re-run a golden set on a bundle and say whether the vendor moved."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.verdicts import ended, found_in
from tasks.announce import create_artifact, emit_events, headline
from tasks.chart import chart_png
from tasks.crashed_runs import LeftAlone, take_over
from tasks.drift_history import decide_and_record, record_baseline, subject_of
from tasks.environment import apply_defaults
from tasks.evaluation import EvalSession, Progress, Unit, open_session, shards
from tasks.ledger import Ledger
from tasks.loading import load_golden_set, load_settings
from tasks.outbox import tell_people
from tasks.plan import EvalManifest, EvalPlan, EvalRequest, plan_eval, read_manifest, resume_eval
from tasks.spool import Spool, existing_spool, run_folder
from tasks.standing_automations import RESUMED
from tasks.tracking import publish_run, publish_traces
from touchstone.drift import Baseline, freeze_baseline
from touchstone.errors import BadInput, TouchstoneError, Unmeasurable
from touchstone.report import EvalReport, run_scores, summarise, with_decision
from touchstone.results import CaseResult
from touchstone.settings import Settings

Log = logging.Logger | logging.LoggerAdapter
RunShard = Callable[[EvalSession, int, Sequence[Unit]], Awaitable[list[CaseResult]]]


def _flow_run_name() -> str:
    """`golden-eval support on support`, also where a path was given; automations know a resumption by its end."""
    given = flow_run.parameters
    resumed = RESUMED if given.get("resume_crashed") else ""
    return f"golden-eval {Path(given['bundle']).stem} on {Path(given['dataset']).name}{resumed}"


@flow(name="golden-eval", flow_run_name=_flow_run_name)
async def golden_eval(
    bundle: str = "support",
    dataset: str = "support",
    policy: str | None = None,
    repeats: Annotated[int, Field(ge=1, le=100)] = 1,
    limit: Annotated[int | None, Field(ge=1)] = None,
    concurrency: Annotated[int | None, Field(ge=1, le=1024)] = None,
    max_cost_usd: Annotated[float | None, Field(gt=0)] = None,
    resume: str | None = None,
    retry_failures: bool = False,
    resume_crashed: str | None = None,
) -> State:
    """Run a golden set on a pinned bundle, score it, and decide: stable, flagged, drifted or unmeasurable.

    The flow run fails when the product got worse or nothing could be measured, so that failure automations hear
    of both; the state's name says which.

    Args:
        bundle: A name in bundles/, or a path.
        dataset: A name in datasets/, or a folder with cases.jsonl.
        policy: Another policy file than the dataset's policy.yaml.
        repeats: Trials per case.
        limit: The first N cases only.
        concurrency: Vendor calls in flight at once.
        max_cost_usd: Spend cap; empty means the policy's.
        resume: Run key of a run to finish; of the other fields only the spend cap counts then.
        retry_failures: With resume, run the failed cases again.
        resume_crashed: Flow run that crashed: it is finished instead, once; the other fields are that run's.
    """
    apply_defaults()
    settings = load_settings()
    request = EvalRequest(
        bundle=bundle,
        dataset=dataset,
        policy=policy,
        repeats=repeats,
        limit=limit,
        concurrency=concurrency,
        max_cost_usd=max_cost_usd,
    )
    if resume_crashed is not None:
        taken = await take_over(settings, resume_crashed)
        if isinstance(taken, LeftAlone):
            return Completed(name="NotResumed", message=taken.reason)
        request, resume, retry_failures = taken.request, taken.resume, taken.retry_failures
    plan = await asyncio.to_thread(plan_run, settings, request, resume, retry_failures)
    report = await conduct(plan, run_shard=shard_as_task)

    log = get_run_logger()
    log.info("%s: %s", headline(report), report.reason)
    chart = await asyncio.to_thread(_chart, settings, plan, report, log)
    report = await asyncio.to_thread(publish, settings, report, log, chart)
    emit_events(report, plan.manifest.bundle_name, plan.manifest.dataset_name)
    for warning in await asyncio.to_thread(tell_people, settings):
        log.warning("%s", warning)
    await create_artifact(report, plan.manifest.bundle_name, plan.manifest.dataset_name, chart)
    await asyncio.to_thread(publish_cases, settings, report, log)
    return _state(report)


async def conduct(
    plan: EvalPlan, *, run_shard: RunShard | None = None, on_case: Progress = lambda result: None
) -> EvalReport:
    """Evaluate, decide, record; without Prefect, unless `run_shard` makes tasks of the shards."""
    started = time.monotonic()
    async with open_session(plan, on_case) as session:
        parts = shards(plan.units)
        runs = [(run_shard or _shard)(session, number, part) for number, part in enumerate(parts, start=1)]
        results = [result for part in await asyncio.gather(*runs) for result in part]
        report = await asyncio.to_thread(_decide, plan, results, time.monotonic() - started)
        session.spool.write_json("report.json", report.model_dump_json(indent=1))
    return report


def publish(settings: Settings, report: EvalReport, log: Log, chart: bytes | None = None) -> EvalReport:
    """Send a run without its cases to MLflow, which is never on the critical path: the report is spooled before."""
    try:
        published = publish_run(settings, _spool(settings, report), traces=False, chart=chart)
    except TouchstoneError as error:
        log.warning("not published to MLflow: %s; `touchstone publish` sends it later", error)
        return report
    found = {"run_id": published.run_id, "url": published.url, "compare_url": published.compare_url}
    return report.model_copy(update={f"mlflow_{name}": value for name, value in found.items()})


def publish_cases(settings: Settings, report: EvalReport, log: Log) -> None:
    """Send the cases of a published run as traces, for MLflow's comparison page; by now the verdict is out."""
    if report.mlflow_run_id is None:
        return
    try:
        publish_traces(settings, _spool(settings, report))
    except TouchstoneError as error:
        log.warning("its cases are not in MLflow yet: %s; `touchstone publish` sends them later", error)


def plan_run(
    settings: Settings,
    request: EvalRequest,
    resume: str | None = None,
    retry_failures: bool = False,
) -> EvalPlan:
    """A new run, or the rest of one (of `request` only the spend cap counts then)."""
    if resume is not None:
        cap = request.max_cost_usd
        return resume_eval(settings, resume, retry_failures=retry_failures, max_cost_usd=cap)
    return plan_eval(settings, request)


async def calibrate_runs(
    settings: Settings, request: EvalRequest, runs: int, on_case: Progress = lambda result: None
) -> Baseline:
    """Measure the vendor as it is now, `runs` times, and freeze that as the baseline."""
    keys = []
    for _ in range(runs):
        plan = await asyncio.to_thread(partial(plan_eval, settings, request, purpose="calibration"))
        report = await conduct(plan, on_case=on_case)
        if report.n_failed > plan.golden.policy.maximum_failure_share * report.n_cases:
            raise Unmeasurable(
                f"calibration run {plan.run_key}: {report.n_failed} of {report.n_cases} cases failed "
                f"({report.failure_examples}); nothing was frozen"
            )
        await asyncio.to_thread(publish, settings, report, logging.getLogger("touchstone"))
        keys.append(plan.run_key)
    return await asyncio.to_thread(calibrate_from, settings, keys)


def calibrate_from(settings: Settings, run_keys: Sequence[str]) -> Baseline:
    """Freeze finished runs of one bundle on one golden set as the baseline."""
    spools = [existing_spool(settings.state, key) for key in run_keys]
    manifests = [read_manifest(spool) for spool in spools]
    subjects = {subject_of(manifest) for manifest in manifests}
    if len(subjects) > 1:
        raise BadInput(f"the runs are of different bundles or golden sets: {', '.join(sorted(subjects))}")
    _check_alike(manifests, spools)
    golden = load_golden_set(settings.root, manifests[0].request.dataset, manifests[0].request.policy)
    policy = golden.policy
    metrics = policy.metrics_under(manifests[0].judge_fingerprint)
    runs = [
        run_scores(manifest.run_key, manifest.created_at, list(spool.cases().values()), metrics)
        for manifest, spool in zip(manifests, spools, strict=True)
    ]
    failed = next((run for run in runs if run.n_failed > policy.maximum_failure_share * run.n_cases), None)
    if failed is not None:
        raise Unmeasurable(
            f"run {failed.run_key}: {failed.n_failed} of {failed.n_cases} cases failed ({failed.failures}); "
            "a baseline needs runs that could be measured: `touchstone eval run --resume ... --retry-failures`"
        )
    baseline = freeze_baseline(runs, metrics, provisional=len(runs) < policy.drift.minimum_calibration_runs)
    ledger = Ledger(settings.ledger, settings.environment)
    try:
        record_baseline(ledger, subjects.pop(), baseline)
    finally:
        ledger.close()
    return baseline


def _check_alike(manifests: Sequence[EvalManifest], spools: Sequence[Spool]) -> None:
    """Runs that are frozen together must be finished, and of the same cases, scorers and judge."""
    for manifest, spool in zip(manifests, spools, strict=True):
        if not spool.has("report.json"):
            raise BadInput(f"run {manifest.run_key} is not finished: `touchstone eval run --resume {manifest.run_key}`")
        for field in ("dataset_digest", "scorers_digest", "judge_fingerprint", "n_cases"):
            if getattr(manifest, field) != getattr(manifests[0], field):
                raise BadInput(f"runs {manifests[0].run_key} and {manifest.run_key} differ in {field}")


async def run_as_flow(request: EvalRequest, resume: str | None, retry_failures: bool) -> str:
    """Run the eval as a Prefect flow run in this process; returns its run key."""
    state: State = await golden_eval(  # pyright: ignore[reportGeneralTypeIssues] - its stubs know no async flow's state
        **request.model_dump(), resume=resume, retry_failures=retry_failures, return_state=True
    )
    return found_in(await state.aresult(raise_on_failure=False))["run_key"]


async def _shard(session: EvalSession, number: int, units: Sequence[Unit]) -> list[CaseResult]:
    return await session.run_shard(units)


async def shard_as_task(session: EvalSession, number: int, units: Sequence[Unit]) -> list[CaseResult]:
    """One Prefect task per shard, all on the flow's event loop, so that they share one limit of calls."""
    return await evaluate_shard(number, len(units), lambda: session.run_shard(units))


@task(task_run_name="shard {number}: {n_cases} cases", cache_policy=NO_CACHE)
async def evaluate_shard(number: int, n_cases: int, run: Callable[[], Awaitable[list[CaseResult]]]) -> list[CaseResult]:
    """Run one shard of cases. `run` is a function, so that Prefect does not walk through the session."""
    return await run()


def _decide(plan: EvalPlan, results: Sequence[CaseResult], wall_s: float) -> EvalReport:
    policy = plan.golden.policy
    report = summarise(plan.run_key, results, policy.metrics, wall_s)
    if plan.manifest.purpose == "calibration":
        return report.model_copy(update={"reason": "a calibration run: measured, not judged"})
    ledger = Ledger(plan.settings.ledger, plan.settings.environment)
    try:
        scores = run_scores(plan.run_key, plan.manifest.created_at, results, plan.metrics)
        return with_decision(report, decide_and_record(ledger, plan.manifest, scores, plan.metrics, policy))
    finally:
        ledger.close()


def _spool(settings: Settings, report: EvalReport) -> Spool:
    return Spool(run_folder(settings.state, report.run_key))


def _chart(settings: Settings, plan: EvalPlan, report: EvalReport, log: Log) -> bytes | None:
    """A picture is no reason to lose a decision."""
    try:
        return chart_png(settings.state, plan.manifest, report)
    except Exception as error:
        log.warning("no chart: %s: %s", type(error).__name__, error)
        return None


def _state(report: EvalReport) -> State:
    message = f"{headline(report)}: {report.reason}"
    name = report.verdict.capitalize()
    data = {"run_key": report.run_key, "verdict": report.verdict, "direction": report.direction}
    is_worse = report.verdict == "drifted" and report.direction == "worse"
    return ended(name, message, data, failed=is_worse or report.verdict == "unmeasurable")
