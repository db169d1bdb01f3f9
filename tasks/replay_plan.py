"""What an attribution will replay: which factors can be swapped back, how each is run, and what that costs at most."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tasks.estimate import estimate
from tasks.fallen_cases import Fall, read_fall
from tasks.index_table import open_table
from tasks.loading import GoldenSet
from tasks.plan import EvalPlan, EvalRequest, plan_definition
from touchstone.attribution import FEWEST_CASES, pairs_needed
from touchstone.attribution_records import FactorState, Standing
from touchstone.definition import Definition
from touchstone.errors import BadInput, OverBudget, Unmeasurable
from touchstone.factor_swaps import SWAPS, Swap, differing, movers, swapped
from touchstone.index import IndexVersion
from touchstone.settings import Settings

Arm = tuple[Swap, ...]
CONTROL: Arm = ()
JUDGE: Arm = ("judge",)
MAX_CALLS = 200
MOST_TRIALS = 4  # of one case: more say ever less of the product
_SPARE = 3  # cases of the first batch beyond the fewest that decide


@dataclass(frozen=True)
class AttributionRequest:
    """What the user asks for."""

    before: str
    after: str
    metric: str | None = None
    max_calls: int = MAX_CALLS
    max_cost_usd: float | None = None


@dataclass(frozen=True)
class ReplayEstimate:
    """What the first round asks of the vendors; later ones only come when it was too few."""

    cases: int
    first_cases: int
    swaps: tuple[Arm, ...]
    first_calls: int
    expected_cost_usd: float | None
    max_calls: int
    cap_usd: float | None

    def __str__(self) -> str:
        cost = (
            "cost unknown (no price)" if self.expected_cost_usd is None else f"about {self.expected_cost_usd:.4f} USD"
        )
        cap = "" if self.cap_usd is None else f" and {self.cap_usd:g} USD"
        named = ", ".join(arm[0] for arm in self.swaps) or "nothing to swap"
        return (
            f"{self.cases} cases fell; first round: {self.first_cases} of them, control and {named}: "
            f"{self.first_calls} calls, {cost}; at most {self.max_calls} calls{cap}"
        )


@dataclass(frozen=True)
class ReplayPlan:
    """All that the replays need; nothing was called yet."""

    key: str
    settings: Settings
    asked: EvalRequest
    fall: Fall
    factors: tuple[FactorState, ...]
    arms: Mapping[Arm, EvalPlan]  # the control, and each swap alone
    calls: Mapping[Arm, int]  # per case and trial
    estimate: ReplayEstimate

    @property
    def alone(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if len(arm) == 1)

    @property
    def starts_with(self) -> Arm:
        """Where only the judge differs, the recorded answers say enough: none is paid for anew."""
        return JUDGE if self.alone == (JUDGE,) else CONTROL

    def round_calls(self, arms: Sequence[Arm] | None = None) -> int:
        """Calls of one case in these arms; None: in those of the first round."""
        control = [] if self.starts_with == JUDGE else [CONTROL]
        # All together cost what a case costs in the control.
        return sum(self.calls.get(arm, self.calls[CONTROL]) for arm in arms or [*control, *self.alone])

    def planned(self, arm: Arm) -> EvalPlan:
        """The eval that replays an arm. Raises BadInput when it is nothing that could run."""
        if arm in self.arms:
            return self.arms[arm]
        definition = swapped(self.fall.before.definition, self.fall.after.definition, arm)
        if arm == JUDGE:  # recorded answers are judged: nothing is retrieved
            definition = definition.model_copy(update={"retrieval": None, "index": None})
        return plan_definition(self.settings, self.asked, self.fall.golden, definition, purpose="attribution")


def plan_replays(settings: Settings, request: AttributionRequest) -> ReplayPlan:
    """Read both runs and plan.

    Raises BadInput on runs that cannot be compared, OverBudget when `max_calls` cannot decide, Unmeasurable when the
    run after cannot be replayed as it was.
    """
    fall = read_fall(settings, request.before, request.after, request.metric)
    if note := _unreadable(settings, fall.after.definition.index):
        raise Unmeasurable(f"{request.after} cannot be replayed as it was: {note}")
    key = f"attribution-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    apart = settings.model_copy(
        update={
            # Replays are no evals: they have a spool and a cache of their own, so that no judge's answer is an old one.
            "home": settings.home / "attributions" / key,
            "lance_uri": settings.lance,
            "ledger_url": settings.ledger,
        }
    )
    cap = request.max_cost_usd or fall.golden.policy.spend_cap_usd
    asked = EvalRequest(
        bundle=fall.after.manifest.request.bundle, dataset=fall.after.manifest.request.dataset, max_cost_usd=cap
    )

    plan = ReplayPlan(key, apart, asked, fall, (), {}, {}, _nothing(request, cap))
    arms: dict[Arm, EvalPlan] = {CONTROL: plan.planned(CONTROL)}
    factors = []
    for factor in SWAPS:
        state = _standing(settings, fall, factor)
        if state.standing is Standing.SWAPPABLE:
            try:
                arms[(factor,)] = plan.planned((factor,))
            except BadInput as error:
                state = state.model_copy(update={"standing": Standing.STUCK, "note": str(error)})
        factors.append(state)
    plan = replace(plan, factors=tuple(factors), arms=arms)
    plan = replace(plan, calls={arm: _calls(settings, plan, arm) for arm in arms})
    return replace(plan, estimate=_estimate(settings, plan, request, cap))


def _standing(settings: Settings, fall: Fall, factor: Swap) -> FactorState:
    before, after = fall.before.definition, fall.after.definition
    state = FactorState(
        factor=factor, standing=Standing.SAME, before=_shown(before, factor), after=_shown(after, factor)
    )
    if factor not in differing(before, after):
        return state
    if state.before == state.after:  # edited under its old version
        state = state.model_copy(update={"after": f"{state.after} (edited)"})
    if factor not in movers(fall.golden.policy, fall.metric):
        return state.model_copy(update={"standing": Standing.IRRELEVANT})
    index = swapped(before, after, (factor,)).index if factor in {"retrieval", "index"} else None
    if index is not None and (note := _unreadable(settings, index)):
        return state.model_copy(update={"standing": Standing.STUCK, "note": note})
    return state.model_copy(update={"standing": Standing.SWAPPABLE})


def _unreadable(settings: Settings, index: IndexVersion | None) -> str:
    """Why a version cannot be searched as it was; empty when it can."""
    if index is None:
        return ""
    try:
        rows = open_table(settings.lance, index.table, index.version).count_rows()
    except Unmeasurable:
        return f"index {index.label} was cleaned away"
    return "" if rows == index.chunks else f"index {index.label} is not what it was: its table was made anew since"


def _shown(definition: Definition, factor: Swap) -> str:
    judge = definition.bundle.judge
    return {
        "model": definition.model,
        "prompt": definition.prompt_version,
        "retrieval": definition.retrieval_version,
        "index": definition.index_version,
        "judge": f"{judge.model}, {judge.prompt}" if judge else "",
    }[factor]


def _calls(settings: Settings, plan: ReplayPlan, arm: Arm) -> int:
    """Calls per case: the judge's swap judges one answer by both judges, and generates none."""
    asked = plan.arms[CONTROL if arm == JUDGE else arm]  # the recorded answers have the control's contexts
    found = estimate(replace(asked, settings=settings))
    judging = found.judge_calls + found.embedding_calls
    total = 2 * judging if arm == JUDGE else found.generation_calls + judging
    return max(1, math.ceil(total / len(asked.units)))


def _estimate(settings: Settings, plan: ReplayPlan, request: AttributionRequest, cap: float | None) -> ReplayEstimate:
    cases = len(plan.fall.fallen)
    needed, per_case = pairs_needed(len(plan.alone)), plan.round_calls()
    if cases >= FEWEST_CASES and request.max_calls < needed * per_case:
        raise OverBudget(
            f"{request.max_calls} calls cannot decide: {len(plan.alone)} factors and a control on {needed} cases are "
            f"{needed * per_case} calls; give --max-calls {(needed + _SPARE) * per_case}. Nothing was called"
        )
    first = min(cases, needed + _SPARE, request.max_calls // per_case)
    starts = [*plan.alone, *([] if plan.starts_with == JUDGE else [CONTROL])]
    costs = [_cost(settings, plan, arm) for arm in starts]
    cost = None if any(each is None for each in costs) else first * math.fsum(each or 0.0 for each in costs)
    return ReplayEstimate(cases, first, plan.alone, first * per_case, cost, request.max_calls, cap)


def _cost(settings: Settings, plan: ReplayPlan, arm: Arm) -> float | None:
    """About, in USD per case."""
    asked = plan.arms[CONTROL if arm == JUDGE else arm]
    cost = estimate(replace(asked, settings=settings)).expected_cost_usd
    if arm == JUDGE and cost is not None:
        generated = estimate(replace(asked, settings=settings, golden=_unjudged(asked))).expected_cost_usd
        cost = 2 * (cost - (generated or 0.0))
    return None if cost is None else cost / len(asked.units)


def _unjudged(plan: EvalPlan) -> GoldenSet:
    policy = plan.golden.policy.model_copy(update={"scorers": ()})
    return replace(plan.golden, policy=policy)


def _nothing(request: AttributionRequest, cap: float | None) -> ReplayEstimate:
    return ReplayEstimate(0, 0, (), 0, None, request.max_calls, cap)
