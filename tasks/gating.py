"""Runs a gate: both bundles on the same cases at the same time, block by block, and again only where it is needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from tasks.evaluation import EvalSession, Progress, Unit, open_session
from tasks.gate_plan import GatePlan
from tasks.spool import Spool
from touchstone.cases import GoldenCase
from touchstone.cost import Budget
from touchstone.gate_records import GateReport
from touchstone.promotion import (
    Comparison,
    EarlyEnd,
    GateDecision,
    Stage,
    case_order,
    cases_to_repeat,
    decide_gate,
    early_end,
)
from touchstone.report import EvalReport, summarise, total_cost
from touchstone.results import CaseResult

RunUnits = Callable[[EvalSession, str, Sequence[Unit]], Awaitable[list[CaseResult]]]

BLOCK = 50  # cases after which the first pass looks whether it may end


async def run_units(session: EvalSession, title: str, units: Sequence[Unit]) -> list[CaseResult]:
    """One block of one side, without Prefect."""
    return await session.run_shard(units)


async def run_gate(plan: GatePlan, *, run: RunUnits = run_units, on_case: Progress = lambda result: None) -> GateReport:
    """Evaluate both sides and decide. Every finished call is on disk: a gate that is killed is resumed for the rest.

    A resumed gate takes the same decisions on the same results, stage by stage, as if it had not been interrupted.
    """
    started = time.monotonic()
    async with _open(plan, on_case) as sessions:
        race = _Race(plan, sessions, run)
        decision = await race.first_pass()
        while again := cases_to_repeat(decision, plan.golden.cases, plan.policy, race.stage):
            decision = await race.another_trial(again, decision)
        reports = [_measured(plan, session, race, decision, started) for session in sessions]
        for session, report in zip(sessions, reports, strict=True):
            trials = max((unit[1] for unit in race.done), default=0) + 1
            asked = session.plan.manifest.request.model_copy(update={"repeats": trials})
            manifest = session.plan.manifest.model_copy(update={"request": asked})
            session.spool.write_json("manifest.json", manifest.model_dump_json(indent=2))
            session.spool.write_json("report.json", report.model_dump_json(indent=1))
    return store_report(plan, gate_report(plan, decision, reports, race.ended_early, time.monotonic() - started))


@dataclass
class _Race:
    """Both sides, as far as they have come."""

    plan: GatePlan
    sessions: Sequence[EvalSession]
    run: RunUnits
    stage: Stage = field(init=False)
    done: list[Unit] = field(default_factory=list)
    end: EarlyEnd | None = None

    def __post_init__(self) -> None:
        self.stage = self.plan.stage()

    @property
    def ended_early(self) -> str:
        """Why cases of the first pass are missing; empty when none are."""
        missing = {case.id for case in self.plan.golden.cases} - {case.id for case, _ in self.done}
        return self.end.reason if self.end and missing else ""

    async def first_pass(self) -> GateDecision:
        """Every case once, in blocks; ends after the block that settles it."""
        plan = self.plan
        order = case_order(plan.golden.cases)
        for start in range(0, len(order), BLOCK):
            await self._block([(case, 0) for case in order[start : start + BLOCK]])
            sides = self._results()
            self.end = early_end(
                plan.golden.cases, sides[0], _second(sides), plan.policy, changed=plan.record.changed, stage=self.stage
            )
            if self.end:
                break
        return self._decide()

    async def another_trial(self, cases: Sequence[GoldenCase], before: GateDecision) -> GateDecision:
        """One more trial of all these cases, then the decision on what was open."""
        self.stage = replace(self.stage, number=self.stage.number + 1)
        trial = self.stage.number - 1
        order = case_order(cases)
        for start in range(0, len(order), BLOCK):
            await self._block([(case, trial) for case in order[start : start + BLOCK]])
        return self._decide(before.settled)

    async def _block(self, units: Sequence[Unit]) -> None:
        if not self.done:
            for session in self.sessions:  # alone: the first calls open connections, and their latency is nobody's
                await session.run_shard(units[:1])
        number = len(self.done) // BLOCK + 1
        sides = [
            (session, f"{name}, block {number}, trial {units[0][1] + 1}")
            for name, session in zip(("candidate", "champion"), self.sessions, strict=False)
        ]
        turns = sides if number % 2 else sides[::-1]  # who comes first waits for less, so they take turns
        await asyncio.gather(*(self.run(session, title, units) for session, title in turns))
        self.done += units

    def _results(self) -> list[list[CaseResult]]:
        """Of the units of this and earlier stages only: a resumed gate has later ones in its spool already."""
        return [[session.finished_cases[(case.id, trial)] for case, trial in self.done] for session in self.sessions]

    def _decide(self, settled: Sequence[Comparison] = ()) -> GateDecision:
        sides = self._results()
        return decide_gate(
            self.plan.golden.cases,
            sides[0],
            _second(sides),
            self.plan.policy,
            changed=self.plan.record.changed,
            required_score=self.plan.required_score,
            stage=self.stage,
            settled=settled,
            harmed=self.end.harmed if self.end else (),
        )


@asynccontextmanager
async def _open(plan: GatePlan, on_case: Progress) -> AsyncIterator[list[EvalSession]]:
    """Both runs, with one limit of calls and one spend cap between them."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(open_session(side, on_case)) for side in plan.sides]
        spent = sum(session.spool.spent_usd() for session in sessions)
        shared = sessions[0].vendor
        shared.budget = Budget(plan.cap_usd, spent)
        for session in sessions:
            session.vendor = shared
        yield sessions


def gate_report(
    plan: GatePlan, decision: GateDecision, runs: Sequence[EvalReport], ended_early: str, wall_s: float
) -> GateReport:
    """The decision, and whose it is."""
    record = plan.record
    costs = [run.cost_usd for run in runs]
    return GateReport(
        gate_key=record.gate_key,
        environment=record.environment,
        created_at=record.created_at,
        bundle=record.deployed.bundle.name,
        fingerprint=record.deployed.fingerprint,
        against_bundle=record.champion.bundle.name if record.champion else None,
        against=record.champion.fingerprint if record.champion else None,
        role=record.request.role,
        by=record.request.by,
        dataset=record.dataset_name,
        dataset_digest=record.dataset_digest,
        run_keys=tuple(manifest.run_key for manifest in record.runs),
        decision=decision,
        ended_early=ended_early,
        cost_usd=None if any(cost is None for cost in costs) else sum(cost for cost in costs if cost is not None),
        wall_s=round(wall_s, 3),
    )


def store_report(plan: GatePlan, report: GateReport) -> GateReport:
    """decision.json, whole or not at all."""
    Spool(plan.folder).write_json("decision.json", report.model_dump_json(indent=1))
    return report


def _measured(plan: GatePlan, session: EvalSession, race: _Race, decision: GateDecision, started: float) -> EvalReport:
    """A side's own report: measured, not judged, for no baseline is moved by a gate."""
    results = [session.finished_cases[(case.id, trial)] for case, trial in race.done]
    report = summarise(session.plan.run_key, results, plan.policy.metrics, time.monotonic() - started)
    side = "candidate" if session is race.sessions[0] else "champion"
    return report.model_copy(
        update={
            "verdict": "measured",
            "reason": f"the {side} of {plan.gate_key}, {decision.verdict}: {decision.reason}",
            "cost_usd": total_cost(call for result in results for call in result.calls),
        }
    )


def _second(sides: Sequence[list[CaseResult]]) -> list[CaseResult] | None:
    return sides[1] if len(sides) > 1 else None
