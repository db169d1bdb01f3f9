"""Replays of the cases that fell, one factor swapped back at a time, until it is decided or the budget is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tasks.calls import CaseCalls
from tasks.evaluation import Progress, Unit, open_session
from tasks.replay_plan import CONTROL, JUDGE, MOST_TRIALS, Arm, ReplayPlan
from tasks.scoring import judged_scores
from touchstone.attribution import decide_attribution
from touchstone.attribution_records import (
    AttributionDecision,
    AttributionReport,
    Evidence,
    FactorState,
    Replay,
    Standing,
)
from touchstone.cases import GoldenCase
from touchstone.cost import Budget
from touchstone.errors import OverBudget, Unmeasurable
from touchstone.factor_swaps import Swap, movers
from touchstone.report import total_cost
from touchstone.results import Answer, Call, CaseResult, Failure, FailureKind, Score

Trial = tuple[str, int]  # case id, number


@dataclass
class ReplayBudget(Budget):
    """A cap on calls beside the one on spend; every attempt counts, also one that failed."""

    max_calls: int = 0
    calls: int = 0

    def reserve(self, worst_usd: float | None) -> bool:
        if self.calls >= self.max_calls:
            raise OverBudget(f"{self.calls} of {self.max_calls} calls are made")
        fits = super().reserve(worst_usd)
        self.calls += fits
        return fits


@dataclass
class Replays:
    """What was replayed so far: scores by arm, and what they cost."""

    plan: ReplayPlan
    budget: ReplayBudget
    on_case: Progress = lambda result: None
    scores: dict[Arm, dict[Trial, float | None]] = field(default_factory=dict)
    judge_control: dict[Trial, float | None] = field(default_factory=dict)
    judged_now: dict[str, float | None] | None = None
    stuck: dict[Swap, str] = field(default_factory=dict)  # what turned out not to answer, and what it said
    calls: list[Call] = field(default_factory=list)
    failure: Failure | None = None
    stopped_by: Literal["calls", "cost"] | None = None

    async def run(self) -> AttributionDecision:
        """Measure what the decision asks for next, until it asks for nothing or nothing can be bought."""
        first = self.plan.estimate.first_cases
        arms, units = [self.plan.starts_with], self._units()[:first]
        while True:
            for arm in list(arms):
                await self._replay(arm, [unit for unit in units if (unit[0].id, unit[1]) not in self._done(arm)])
            arms = [arm for arm in arms if not self.stuck.keys() & set(arm)]
            decision = decide_attribution(self.evidence())
            if decision.next is None or self.stopped_by:
                return decision
            if decision.next == "more":
                more = self._affordable(len(units), first, arms)
                if not more:
                    return decision
                units = [*units, *more]
            elif decision.next == "judge":
                await self._judge_before()
            else:
                alone = [arm for arm in self.plan.alone if arm[0] not in self.stuck]
                together = tuple(arm[0] for arm in alone)
                wanted = {"control": [CONTROL], "swaps": alone, "together": [together]}
                arms += [arm for arm in wanted[decision.next] if arm not in arms]

    @property
    def factors(self) -> tuple[FactorState, ...]:
        """As planned, less what turned out not to answer."""
        return tuple(
            state.model_copy(update={"standing": Standing.STUCK, "note": self.stuck[state.factor]})
            if state.factor in self.stuck
            else state
            for state in self.plan.factors
        )

    def evidence(self) -> Evidence:
        fall = self.plan.fall
        control = self.scores.get(CONTROL, {})
        replays = [
            Replay(
                swaps=arm,
                scores=_by_case(scores),
                control=_by_case(self.judge_control if arm == JUDGE else control),
            )
            for arm, scores in self.scores.items()
            if arm != CONTROL and not self.stuck.keys() & set(arm)
        ]
        return Evidence(
            fallen=fall.fallen,
            fell=fall.fell,
            rose=fall.rose,
            factors=self.factors,
            control=_by_case(control),
            replays=tuple(replays),
            judged=fall.judged,
            model_moves="model" in movers(fall.golden.policy, fall.metric),
            judged_now=self.judged_now,
        )

    async def _replay(self, arm: Arm, units: Sequence[Unit]) -> None:
        if self.stopped_by or not units:
            return
        if self.budget.calls + len(units) * self.plan.round_calls([arm]) > self.budget.max_calls:
            self.stopped_by = "calls"
            return
        if arm == JUDGE:
            fall = self.plan.fall
            answers = fall.answers(fall.after)
            for definition, scores in ((CONTROL, self.judge_control), (JUDGE, self.scores.setdefault(JUDGE, {}))):
                found = await self._judge(definition, [case for case, _ in units], answers)
                scores |= {(case_id, 0): score for case_id, score in found.items()}
        else:
            self.scores.setdefault(arm, {}).update(await self._generate(arm, units))
        if all(score is None for score in self.scores[arm].values()):
            self._without_scores(arm)

    async def _generate(self, arm: Arm, units: Sequence[Unit]) -> dict[Trial, float | None]:
        async with open_session(self.plan.planned(arm), self.on_case) as session:
            session.vendor.budget = self.budget
            results = await session.run_shard(units)
        for result in results:
            self.calls += result.calls
            self._note(result)
        metric = self.plan.fall.metric
        return {(result.case_id, result.trial): _value(result.scores.get(metric)) for result in results}

    async def _judge(
        self, arm: Arm, cases: Sequence[GoldenCase], answers: dict[str, Answer]
    ) -> dict[str, float | None]:
        """Scores of recorded answers by the judge of an arm; no answer is generated."""
        fall = self.plan.fall
        async with open_session(self.plan.planned(arm)) as session:
            session.vendor.budget = self.budget
            judge = session.judge
            assert judge is not None  # the metric is judged, or the judge would not be swapped

            async def score(case: GoldenCase) -> Score | None:
                key = f"{case.id}/judged/{'-'.join(arm)}"
                calls = CaseCalls(key, session.vendor, session.spool, session.finished_calls, session.cache)
                found = await judged_scores(fall.golden.policy.scorers, case, answers[case.id], calls, judge)
                self.calls += calls.calls
                return found.get(fall.metric)

            known = [case for case in cases if case.id in answers]
            scores = await asyncio.gather(*map(score, known))
        for found in scores:
            self._fail(found.failure if found else None)
        return {case.id: _value(found) for case, found in zip(known, scores, strict=True)}

    async def _judge_before(self) -> None:
        """The answers of before, under the present judge: does it still call them good?"""
        fall = self.plan.fall
        known = {case_id for case_id, _ in (self.scores.get(CONTROL) or self.judge_control)}
        cases = [case for case in fall.golden.cases if case.id in known]
        per_case = self.plan.calls[CONTROL] - 1
        cases = cases[: max(0, (self.budget.max_calls - self.budget.calls) // max(1, per_case))]
        if not cases:
            self.stopped_by = "calls"
            return
        self.judged_now = await self._judge(CONTROL, cases, fall.answers(fall.before))

    def _units(self) -> list[Unit]:
        """Every case once, in the order of the hash of their ids; then again, for what cases are too few for."""
        return [(case, trial) for trial in range(MOST_TRIALS) for case in self.plan.fall.golden.cases]

    def _done(self, arm: Arm) -> set[Trial]:
        """What need not be run: recorded answers are judged once."""
        done = set(self.scores.get(arm, {}))
        return done | {(case.id, trial) for case, trial in self._units() if trial > 0} if arm == JUDGE else done

    def _affordable(self, have: int, step: int, arms: Sequence[Arm]) -> list[Unit]:
        left = self.budget.max_calls - self.budget.calls
        rest = self._units()[have:]
        if self.plan.starts_with == JUDGE and CONTROL not in self.scores:
            rest = [unit for unit in rest if unit[1] == 0]
        fits = left // self.plan.round_calls(arms)
        if rest and fits < 1:
            self.stopped_by = "calls"
        return rest[: min(step, fits)]

    def _note(self, result: CaseResult) -> None:
        score = result.scores.get(self.plan.fall.metric)
        self._fail(result.failure or (score.failure if score else None))

    def _fail(self, failure: Failure | None) -> None:
        if failure is None:
            return
        self.failure = failure
        if failure.kind is FailureKind.BUDGET:
            self.stopped_by = "calls" if self.budget.calls >= self.budget.max_calls else "cost"

    def _without_scores(self, arm: Arm) -> None:
        """No score at all is no evidence of anything: the vendor is away, or what was swapped back is gone."""
        if self.stopped_by:
            return
        said = f"{self.failure.kind}: {self.failure.reason}" if self.failure else "the metric applies to none of them"
        if arm == CONTROL or (arm == JUDGE and all(score is None for score in self.judge_control.values())):
            raise Unmeasurable(f"none of the cases could be replayed ({said}); try again when the vendor answers")
        if len(arm) == 1:
            self.stuck[arm[0]] = f"as before it gives no scores ({said})"


async def replay(plan: ReplayPlan, on_case: Progress = lambda result: None) -> AttributionReport:
    """Replay and decide."""
    fall, limits = plan.fall, plan.estimate
    replays = Replays(plan, ReplayBudget(limits.cap_usd, max_calls=limits.max_calls), on_case)
    decision = await replays.run()
    return AttributionReport(
        attribution_key=plan.key,
        at=datetime.now(UTC).isoformat(),
        before=fall.before.key,
        after=fall.after.key,
        bundle=fall.after.manifest.bundle_name,
        dataset=fall.golden.name,
        metric=fall.metric,
        mean_before=fall.mean_before,
        mean_after=fall.mean_after,
        fell=fall.fell,
        rose=fall.rose,
        cases=len(fall.fallen),
        left_out=fall.left_out,
        factors=replays.factors,
        decision=decision,
        calls=replays.budget.calls,
        max_calls=limits.max_calls,
        cost_usd=total_cost(replays.calls),
        stopped_by=replays.stopped_by,
    )


def _value(score: Score | None) -> float | None:
    return score.value if score else None


def _by_case(scores: dict[Trial, float | None]) -> dict[str, tuple[float | None, ...]]:
    found: dict[str, list[float | None]] = {}
    for (case_id, _), score in sorted(scores.items(), key=lambda item: item[0][1]):
        found.setdefault(case_id, []).append(score)
    return {case_id: tuple(trials) for case_id, trials in found.items()}
