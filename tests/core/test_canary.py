"""Canary evidence: valid for any law of scores, the same after a reload; a look's verdict; who is paired with whom."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks.canary_gate import DELTA, GATE_RULE, simulate, wald_bound
from touchstone.canary import CanaryEvidence, CanaryGate
from touchstone.canary_look import CanaryVerdict, LookFacts, decide_look
from touchstone.canary_sampling import ServedRequest, pair_up
from touchstone.release import Canary, CanaryStatus
from touchstone.release_policy import CanaryPolicy

START = datetime(2026, 11, 2, 9, tzinfo=UTC)
Law = Callable[[np.random.Generator, int], np.ndarray]


def bernoulli(p: float) -> Law:
    return lambda rng, n: (rng.random(n) < p).astype(float)


def beta(mean: float, weight: float) -> Law:
    return lambda rng, n: rng.beta(mean * weight, (1 - mean) * weight, n)


def constant(value: float) -> Law:
    return lambda rng, n: np.full(n, value)


def mixed(share: float, low: float, high: float) -> Law:
    """`low` with that share, else `high`: rare large drops."""
    return lambda rng, n: np.where(rng.random(n) < share, low, high)


def decided(canary: Law, champion: Law, delta: float, wanted: str, runs: int = 120, most: int = 180) -> float:
    """The share of runs that ever come to the verdict, looked at after every request."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(runs):
        gate = CanaryGate(delta)
        scores, baseline = canary(rng, most).tolist(), champion(rng, 2 * most).reshape(most, 2).tolist()
        hits += any(gate.update(*pair) == wanted for pair in zip(scores, baseline, strict=True))
    return hits / runs


@pytest.mark.parametrize(
    ("canary", "champion", "delta"),
    [
        (bernoulli(0.80), bernoulli(0.90), 0.10),
        (beta(0.70, 20), beta(0.80, 20), 0.10),
        (mixed(0.2, 0.0, 1.0), constant(1.0), 0.20),
        (mixed(0.1, 0.1, 1.0), mixed(0.02, 0.0, 1.0), 0.07),
    ],
)
def test_what_is_worse_by_the_margin_is_promoted_with_probability_alpha_at_most(
    canary: Law, champion: Law, delta: float
) -> None:
    assert decided(canary, champion, delta, "promote") <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 120)


@pytest.mark.parametrize("law", [bernoulli(0.9), beta(0.8, 10), mixed(0.05, 0.0, 1.0), constant(0.7)])
def test_what_is_equal_is_rolled_back_with_probability_alpha_at_most(law: Law) -> None:
    assert decided(law, law, 0.10, "rollback") <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 120)


def test_each_bet_is_fair_under_its_null_whatever_came_before() -> None:
    """The mean of the next e-value is at most the present one: exactly, over a law at the edge of the null."""
    gate = CanaryGate(0.1)
    for score in (1.0, 0.0, 1.0, 1.0):
        gate.update(score, [1.0, 0.0])
    state, now = gate.state(), (gate.promote_e_value, gate.rollback_e_value)
    after = []
    for score in (0.0, 1.0):
        fresh = CanaryGate.from_state(state)
        fresh.update(score, [0.5])
        after.append((fresh.promote_e_value, fresh.rollback_e_value))
    (promote_0, rollback_0), (promote_1, rollback_1) = after
    assert 0.6 * promote_0 + 0.4 * promote_1 == pytest.approx(now[0])  # E D = -0.1
    assert 0.5 * rollback_0 + 0.5 * rollback_1 == pytest.approx(now[1])  # E D = 0


def test_reloaded_evidence_is_the_same_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    whole = CanaryEvidence(["judge", "answered"], 0.05)
    parts = CanaryEvidence(["judge", "answered"], 0.05)
    for _ in range(60):
        scores = {"judge": (rng.random(), rng.random(3).tolist()), "answered": (1.0, [1.0])}
        whole.update(scores)
        parts.update(scores)
        parts = CanaryEvidence.from_state(json.loads(json.dumps(parts.state())))
    assert parts.state() == whole.state()
    assert parts.numbers() == whole.numbers()


@pytest.mark.parametrize("bad", [(-0.1, [1.0]), (1.0, [1.2]), (float("nan"), [1.0]), (1.0, [])])
def test_scores_outside_0_to_1_and_empty_blocks_are_refused(bad: tuple[float, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|at least"):
        CanaryGate(0.05).update(*bad)


def test_evidence_stays_finite_when_it_is_overwhelming() -> None:
    gate = CanaryGate(0.05)
    for _ in range(5000):
        gate.update(0.0, [1.0])
    json.dumps(gate.state(), allow_nan=False)
    assert gate.verdict == "rollback"
    assert math.isfinite(gate.rollback_e_value)


def evidence(good: int = 0, bad: int = 0, metrics: tuple[str, ...] = ("judge",), delta: float = 0.2) -> CanaryEvidence:
    found = CanaryEvidence(metrics, delta)
    for canary_score, count in ((1.0, good), (0.0, bad)):
        for _ in range(count):
            found.update({name: (canary_score, [1.0]) for name in metrics})
    return found


def canary(share: float = 0.05, **fields: Any) -> Canary:
    times = {"started_at": START.isoformat(), "share_since": START.isoformat()}
    return Canary.model_validate({"canary_id": "c", "share": share, "salt": "s", **times, **fields})


def facts(minutes: float = 20, n: int = 60, **fields: Any) -> LookFacts:
    now = START + timedelta(minutes=minutes)
    return LookFacts(**{"now": now, "n_at_share": n, "last_canary_at": now, "last_champion_at": now, **fields})


POLICY = CanaryPolicy(margin=0.2)


def test_the_ladder_is_climbed_step_by_step() -> None:
    conclusive = evidence(good=40)
    assert decide_look(conclusive, facts(), canary(0.05), POLICY).verdict is CanaryVerdict.WIDEN
    assert decide_look(conclusive, facts(), canary(0.25), POLICY).verdict is CanaryVerdict.GRADUATE


def test_half_of_the_evidence_is_enough_for_the_first_of_two_steps_and_not_for_the_second() -> None:
    half = evidence(good=14)
    progress, _ = half.progress()
    assert 0.5 <= progress < 1
    assert decide_look(half, facts(), canary(0.05), POLICY).verdict is CanaryVerdict.WIDEN
    assert decide_look(half, facts(), canary(0.25), POLICY).verdict is CanaryVerdict.CONTINUE


def test_every_guardrail_must_show_it() -> None:
    found = evidence(good=40, metrics=("judge", "refusal"))
    for _ in range(40):
        found.update({"judge": (1.0, [1.0])})
    found.gates["refusal"] = CanaryGate(0.2)
    look = decide_look(found, facts(), canary(0.25), POLICY)
    assert look.verdict is CanaryVerdict.CONTINUE
    assert "refusal is at 0% of the way" in look.reason


@pytest.mark.parametrize(
    ("known", "said"), [({"n": 49}, "49 of 50 judged requests at 25%"), ({"minutes": 9}, "9 of 10 minutes at 25%")]
)
def test_too_few_requests_or_minutes_at_a_share_hold_the_step_back(known: dict[str, Any], said: str) -> None:
    look = decide_look(evidence(good=80), facts(**known), canary(0.25), POLICY)
    assert look.verdict is CanaryVerdict.CONTINUE
    assert said in look.reason


def test_time_without_a_decision_holds_and_never_promotes() -> None:
    look = decide_look(evidence(good=80), facts(minutes=121), canary(0.25), POLICY)
    assert look.verdict is CanaryVerdict.HOLD
    assert "no decision after 2.0 h" in look.reason


def test_no_traffic_is_unmeasurable_however_good_the_evidence_is() -> None:
    silent = facts(minutes=60, last_canary_at=START + timedelta(minutes=29), left_out="7 without a request id")
    look = decide_look(evidence(good=80), silent, canary(0.25), POLICY)
    assert look.verdict is CanaryVerdict.UNMEASURABLE
    assert "no usable canary request for 30 minutes" in look.reason
    assert "7 without a request id" in look.reason
    assert decide_look(evidence(), facts(minutes=29, last_canary_at=None), canary(), POLICY).verdict == "continue"


def test_a_look_that_cannot_be_trusted_is_unmeasurable() -> None:
    look = decide_look(evidence(good=80), facts(trouble="the judge is gone"), canary(0.25), POLICY)
    assert (look.verdict, look.reason) == (CanaryVerdict.UNMEASURABLE, "the judge is gone")


@pytest.mark.parametrize("status", list(CanaryStatus))
def test_harm_rolls_back_whatever_the_status_and_whatever_else_is_wrong(status: CanaryStatus) -> None:
    harmed = evidence(bad=20, metrics=("judge", "answered"))
    look = decide_look(harmed, facts(minutes=300, trouble="the judge is gone"), canary(status=status), POLICY)
    assert look.verdict is CanaryVerdict.ROLLBACK
    assert "worse than the champion: judge -1.000 over 20 requests" in look.reason


def test_harm_that_was_shown_between_two_looks_is_not_forgotten() -> None:
    found = evidence(bad=12)
    assert found.is_harmful
    for _ in range(300):
        found.update({"judge": (1.0, [0.0])})
    assert found.harm_e_value < 1
    assert decide_look(found, facts(), canary(0.25), POLICY).verdict is CanaryVerdict.ROLLBACK


def test_held_stays_held_and_graduated_is_only_watched() -> None:
    good = evidence(good=80)
    held = canary(0.25, status=CanaryStatus.HELD, reason="its time was over")
    assert decide_look(good, facts(), held, POLICY).verdict is CanaryVerdict.HOLD
    graduated = canary(0.25, status=CanaryStatus.GRADUATED)
    assert decide_look(good, facts(), graduated, POLICY).verdict is CanaryVerdict.CONTINUE


def request(number: int, is_canary: bool, second: float, segment: str = "all") -> ServedRequest:
    at = START + timedelta(seconds=second)
    return ServedRequest(f"{segment}-{is_canary}-{number}", f"tr-{number}", is_canary, segment, at, True, {})


def traffic(canaries: int, champions: int, segment: str = "all") -> list[ServedRequest]:
    spread = 1000 / max(champions, 1)
    return [request(i, True, 1000 * (i + 0.5) / canaries, segment) for i in range(canaries)] + [
        request(i, False, spread * i, segment) for i in range(champions)
    ]


@pytest.mark.parametrize(("canaries", "champions", "size"), [(10, 190, 4), (10, 40, 4), (10, 30, 3), (20, 15, 0)])
def test_no_champion_stands_beside_two_canary_requests(canaries: int, champions: int, size: int) -> None:
    pairs = pair_up(traffic(canaries, champions), set(), most=100, block=4)
    used = [champion.request_id for pair in pairs for champion in pair.champions]
    assert len(used) == len(set(used))
    assert len(pairs) == min(canaries, champions)
    assert all(len(pair.champions) == max(size, 1) for pair in pairs)


def test_champions_are_the_nearest_in_time_and_order_of_arrival_changes_nothing() -> None:
    requests = traffic(10, 190)
    pairs = pair_up(requests, set(), most=100, block=4)
    assert max(abs(c.at - p.canary.at) for p in pairs for c in p.champions) < timedelta(seconds=25)
    assert pair_up(requests[::-1], set(), most=100, block=4) == pairs
    assert all(a.canary.at <= b.canary.at for a, b in pairwise(pairs))


def test_the_sample_is_stratified_and_leaves_out_what_is_used() -> None:
    requests = traffic(30, 300, "billing") + traffic(10, 100, "setup")
    pairs = pair_up(requests, set(), most=20, block=4)
    assert sum(pair.canary.segment == "billing" for pair in pairs) == 15
    assert all(champion.segment == pair.canary.segment for pair in pairs for champion in pair.champions)
    used = {r.digest for pair in pairs for r in (pair.canary, *pair.champions)}
    again = pair_up(requests, used, most=20, block=4)
    assert not used & {r.digest for pair in again for r in (pair.canary, *pair.champions)}


def test_the_figures_of_the_benchmark_hold_in_a_small_form() -> None:
    worse = simulate(GATE_RULE, 0.83, 0.89, runs=20, seed=1)
    equal = simulate(GATE_RULE, 0.89, 0.89, runs=20, seed=2)
    assert worse.promoted <= 0.05
    assert worse.mean_requests <= 2 * wald_bound(0.83, 0.89)
    assert equal.promoted >= 0.8
    assert CanaryPolicy().margin == DELTA
