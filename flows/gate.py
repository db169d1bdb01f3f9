"""The gate: may a candidate bundle replace the champion?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.golden_eval import evaluate_shard, publish, publish_cases
from flows.verdicts import ended, found_in
from tasks.announce_gate import create_artifact, with_links
from tasks.environment import apply_defaults
from tasks.evaluation import EvalSession, Progress, Unit
from tasks.gate_candidates import ask_for, candidates_of
from tasks.gate_evidence import gate_on_runs
from tasks.gate_ledger import record_gate
from tasks.gate_plan import GatePlan, GateRequest, plan_gate, resume_gate
from tasks.gating import run_gate, run_units, store_report
from tasks.loading import load_settings
from tasks.spool import existing_spool
from touchstone.gate_records import GateReport
from touchstone.report import EvalReport
from touchstone.results import CaseResult
from touchstone.settings import Settings

Log = logging.Logger | logging.LoggerAdapter


def _flow_run_name() -> str:
    """`gate support-cited on support`, also where a path or an event named the bundle or the prompt."""
    given = flow_run.parameters
    event = given.get("event") or {}
    bundle = event.get("bundle") or ("a push" if "paths" in event else event.get("prompt")) or given["bundle"]
    return f"gate {Path(str(bundle)).stem} on {Path(given['dataset']).name}"


@flow(name="gate", flow_run_name=_flow_run_name)
async def gate(
    bundle: str = "support",
    prompt: str | None = None,
    dataset: str = "support",
    policy: str | None = None,
    against: str | None = None,
    allow_several: bool = False,
    role: Literal["candidate", "fallback"] = "candidate",
    by: Annotated[str, Field(min_length=1)] = "prefect",
    max_repeats: Annotated[int | None, Field(ge=1, le=20)] = None,
    max_cost_usd: Annotated[float | None, Field(gt=0)] = None,
    record: bool = True,
    resume: str | None = None,
    event: dict[str, Any] | None = None,
) -> State:
    """Compare a candidate bundle with the champion on the same golden cases: pass, fail or unmeasurable.

    A pass makes it the environment's candidate, which waits for its canary. The flow run fails when the candidate is
    worse or nothing could be shown; the state's name says which.

    Args:
        bundle: The candidate: a name in bundles/, or a path. Empty, with a prompt: the champion.
        prompt: Another prompt than the bundle's: name@version, or mlflow:NAME@VERSION of MLflow's registry.
        dataset: A name in datasets/, or a folder with cases.jsonl.
        policy: Another policy file than the dataset's policy.yaml.
        against: Another bundle to compare with than the environment's champion.
        allow_several: Gate it although several of model, prompt and retrieval changed at once.
        role: `candidate`, or `fallback` for a parity check of a bundle that serves when the champion's vendor is away.
        by: Who asks.
        max_repeats: Trials per case that may be bought; empty means the policy's.
        max_cost_usd: Spend cap of both runs together; empty means the policy's for each.
        record: Write the decision into the ledger; without it nothing follows from a pass.
        resume: Key of a gate to finish; of the other fields only the spend cap counts then.
        event: Payload of the event that asked for this: a bundle, a prompt's version in MLflow, or changed files.
    """
    apply_defaults()
    settings, log = load_settings(), get_run_logger()
    if event is not None:
        candidates = await asyncio.to_thread(candidates_of, settings, event)
        if not candidates.found:
            return Completed(name="Nothing to gate", message=candidates.reason)
        bundle, prompt = candidates.found[0].bundle, candidates.found[0].prompt
        ask_for(settings, candidates.found[1:])
    request = GateRequest(
        bundle=bundle,
        prompt=prompt,
        dataset=dataset,
        policy=policy,
        against=against,
        allow_several=allow_several,
        role=role,
        by=by,
        max_repeats=max_repeats,
        max_cost_usd=max_cost_usd,
        record=record,
    )
    plan = await asyncio.to_thread(open_gate, settings, request, resume)
    report = await run_gate(plan, run=block_as_task)

    report = await asyncio.to_thread(record_gate, settings, plan, report, log)

    log.info("%s: %s", report.headline, report.decision.reason)
    report = await asyncio.to_thread(publish_sides, settings, plan, report, log)
    await create_artifact(report)
    await asyncio.to_thread(publish_side_cases, settings, report, log)
    return _state(report)


def open_gate(settings: Settings, request: GateRequest, resume: str | None = None) -> GatePlan:
    """A new gate, or the rest of one (of `request` only the spend cap counts then)."""
    if resume is not None:
        return resume_gate(settings, resume, max_cost_usd=request.max_cost_usd)
    return plan_gate(settings, request)


def conduct(plan: GatePlan, log: Log, *, on_case: Progress = lambda result: None) -> GateReport:
    """Run, decide, record and publish a gate without Prefect."""
    report = asyncio.run(run_gate(plan, run=run_units, on_case=on_case))
    return finish(plan, report, log)


def conduct_on_runs(
    settings: Settings, request: GateRequest, run: str, against_run: str | None, log: Log
) -> tuple[GatePlan, GateReport]:
    """Decide on finished evals; they are published already, or `touchstone publish` sends them."""
    plan, report = gate_on_runs(settings, request, run, against_run)
    report = record_gate(settings, plan, report, log)
    return plan, store_report(plan, with_links(settings, report))


def finish(plan: GatePlan, report: GateReport, log: Log) -> GateReport:
    """Record a decision, and show it where MLflow is."""
    report = record_gate(plan.settings, plan, report, log)
    return publish_sides(plan.settings, plan, report, log)


def publish_sides(settings: Settings, plan: GatePlan, report: GateReport, log: Log) -> GateReport:
    """Send both runs to MLflow, which is never on the critical path, and link their comparison."""
    for side in _reports(settings, report):
        publish(settings, side, log)
    return store_report(plan, with_links(settings, report))


def publish_side_cases(settings: Settings, report: GateReport, log: Log) -> None:
    """Send the cases of both runs as traces, for MLflow's comparison page; by now the verdict is out."""
    for side in _reports(settings, report):
        spool = existing_spool(settings.state, side.run_key)
        if spool.has("published.json"):
            run_id = spool.read_json("published.json")["run_id"]
            publish_cases(settings, side.model_copy(update={"mlflow_run_id": run_id}), log)


def run_as_flow(request: GateRequest, resume: str | None = None) -> GateReport:
    """Run the gate as a Prefect flow run in this process."""
    given = request.model_dump() | {"resume": resume}

    async def run() -> Any:
        state: State = await gate(**given, return_state=True)  # pyright: ignore[reportGeneralTypeIssues] - async flow
        return await state.aresult(raise_on_failure=False)

    return GateReport.model_validate(found_in(asyncio.run(run())))


async def block_as_task(session: EvalSession, title: str, units: Sequence[Unit]) -> list[CaseResult]:
    """One Prefect task per block and side, all on the flow's event loop, so that they share one limit of calls."""
    named = evaluate_shard.with_options(task_run_name=f"{title}: {len(units)} cases")
    return await named(0, len(units), partial(session.run_shard, units))


def _reports(settings: Settings, report: GateReport) -> list[EvalReport]:
    spools = [existing_spool(settings.state, key) for key in report.run_keys]
    return [EvalReport.model_validate(spool.read_json("report.json")) for spool in spools]


def _state(report: GateReport) -> State:
    name, message = report.decision.verdict.capitalize(), f"{report.headline}: {report.decision.reason}"
    return ended(name, message, report.model_dump(mode="json"), failed=report.decision.verdict != "pass")
