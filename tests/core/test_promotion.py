"""The gate's decision: a test per rule and verdict, and that what is worse by the margin seldom passes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from touchstone import noninferiority
from touchstone.cases import GoldenCase
from touchstone.errors import BadInput
from touchstone.policy import Policy
from touchstone.promotion import (
    GateDecision,
    GateVerdict,
    Stage,
    case_order,
    cases_to_repeat,
    decide_gate,
    early_end,
)
from touchstone.results import Answer, Call, CaseResult, Failure, FailureKind, Score

N = 100
CASES = [
    GoldenCase(
        id=f"case-{n:03}", question=f"Question {n}?", segment="hard" if n % 4 == 0 else "easy", tags=("odd",) * (n % 2)
    )
    for n in range(N)
]
ONES = [1.0] * N


def policy(**fields: Any) -> Policy:
    given = {
        "scorers": [{"name": "ok", "kind": "expect"}],
        "gate": {"ok": {"margin": 0.1}},
        "minimum_cases": 20,
        "release": {"forbidden_pii": []},
    }
    return Policy.model_validate(given | fields)


def released(**release: Any) -> Policy:
    return policy(release={"forbidden_pii": []} | release)


def results(
    scores: Sequence[float | None],
    *,
    trial: int = 0,
    metric: str = "ok",
    cost: float | None = 0.001,
    latency_ms: float = 100,
    answer: str = "An answer.",
    kind: FailureKind = FailureKind.VENDOR_ERROR,
) -> list[CaseResult]:
    """A result per case; None is a failure."""
    call = Call(role="generation", requested_model="m", cost_usd=cost, latency_ms=latency_ms)
    found = []
    for case, score in zip(CASES, scores, strict=False):
        known = {"case_id": case.id, "trial": trial, "question": case.question, "segment": case.segment}
        if score is None:
            found.append(CaseResult(**known, failure=Failure(kind=kind, reason="away")))
        else:
            scored = {metric: Score(value=score)}
            found.append(CaseResult(**known, answer=Answer(text=answer), scores=scored, calls=(call,)))
    return found


def with_losses(count: int, start: int = 0) -> list[float]:
    """This many cases lost, spread over all segments alike."""
    lost = {(start + 7 * step) % N for step in range(count)}
    return [0.0 if n in lost else 1.0 for n in range(N)]


def decide(candidate: Sequence[CaseResult], champion: Sequence[CaseResult] | None, **given: Any) -> GateDecision:
    return decide_gate(CASES, candidate, champion, given.pop("policy", policy()), **given)


def check(decision: GateDecision, name: str) -> Any:
    return next(found for found in decision.checks if found.name.startswith(name))


def test_equal_on_enough_cases_passes_and_shows_its_numbers() -> None:
    decision = decide(results(ONES), results(ONES))
    (whole, *segments) = decision.comparisons
    assert decision.verdict == "pass"
    assert (whole.verdict, whole.n, whole.of, whole.difference, whole.trials) == ("not_inferior", N, N, 0.0, 1)
    assert {row.segment for row in segments} == {"easy", "hard"}
    assert {row.verdict for row in segments} == {"no_certain_loss"}
    assert "ok 1.000 against 1.000" in decision.reason


def test_many_losses_fail_with_the_worst_cases_named() -> None:
    decision = decide(results(with_losses(25)), results(ONES))
    assert decision.verdict == "fail"
    assert "lower with 97.5% confidence" in decision.reason
    assert decision.n_worse == 25
    assert len(decision.regressions) == 20
    assert (decision.regressions[0].champion, decision.regressions[0].candidate) == (1.0, 0.0)
    assert decision.improvements == ()


def test_a_loss_that_could_be_the_margin_is_unmeasurable_and_says_what_would_decide() -> None:
    decision = decide(results(with_losses(6)), results(ONES))
    assert decision.verdict == "unmeasurable"
    assert [row.name for row in decision.undecided] == ["ok"]
    assert (decision.undecided[0].needed_cases or 0) > N
    assert "would decide" in decision.reason


def test_trials_that_disagree_tell_how_many_repeats_would_decide() -> None:
    rng = np.random.default_rng(4)
    sides = [[], []]
    for side in sides:
        for trial in range(2):
            side += results((rng.random(N) < 0.7).astype(float).tolist(), trial=trial)
    decision = decide(*sides, stage=Stage(2, 2), policy=policy(gate={"ok": {"margin": 0.06}}))
    (row,) = decision.undecided
    assert row.needed_repeats is not None
    assert row.needed_repeats > 2
    assert f"{row.needed_repeats} trials per case" in decision.reason


def test_a_certain_loss_within_a_segment_fails_although_the_whole_is_within_the_margin() -> None:
    lost = [0.0 if case.segment == "hard" and n < 60 else 1.0 for n, case in enumerate(CASES)]
    decision = decide(results(lost), results(ONES), policy=policy(gate={"ok": {"margin": 0.3}}))
    assert decision.verdict == "fail"
    assert "ok in hard lower" in decision.reason
    assert decision.comparisons[0].verdict == "not_inferior"


def test_a_segment_with_a_margin_of_its_own_must_be_shown_not_inferior() -> None:
    one_lost = [0.0 if n == 0 else 1.0 for n in range(N)]  # of 25 hard ones
    narrow = policy(gate={"ok": {"margin": 0.1, "segment_margin": 0.15}})
    wide = policy(gate={"ok": {"margin": 0.1, "segment_margin": 0.3}})
    assert decide(results(one_lost), results(ONES), policy=wide).verdict == "pass"
    decision = decide(results(one_lost), results(ONES), policy=narrow)
    assert decision.verdict == "unmeasurable"
    assert [row.name for row in decision.undecided] == ["ok in hard"]


def test_any_metric_that_is_worse_fails_and_all_must_be_shown() -> None:
    two = policy(
        scorers=[{"name": "ok", "kind": "expect"}, {"name": "judge", "kind": "rubric", "dimensions": ["tone"]}],
        gate={"ok": {"margin": 0.1}, "judge_tone": {"margin": 0.4}},
    )

    def both(tone: float) -> list[CaseResult]:
        return [
            result.model_copy(update={"scores": {**result.scores, "judge_tone": Score(value=tone)}})
            for result in results(ONES)
        ]

    assert decide(both(5.0), both(5.0), policy=two).verdict == "pass"
    decision = decide(both(4.0), both(5.0), policy=two)
    tone = next(row for row in decision.comparisons if row.name == "judge_tone")
    assert decision.verdict == "fail"
    assert (tone.champion, tone.candidate, tone.difference, tone.margin) == (5.0, 4.0, -1.0, 0.4)  # in its own units
    assert -1.5 < tone.bound < -1.0


def test_retrieval_gates_are_asked_only_when_retrieval_changed() -> None:
    asked = policy(
        scorers=[{"name": "ok", "kind": "expect"}, {"name": "retrieval", "kind": "retrieval"}],
        release={"forbidden_pii": [], "gates": {"retrieval": {"ndcg_at_8": {"margin": 0.1}}}},
    )
    same = results(ONES)
    assert decide(same, same, policy=asked, changed=("prompt",)).verdict == "pass"
    decision = decide(same, same, policy=asked, changed=("retrieval",))  # nobody scored it
    assert decision.verdict == "unmeasurable"
    assert "ndcg_at_8" in decision.reason


def test_a_mean_below_the_floor_fails_also_when_the_champion_is_no_better() -> None:
    low = [1.0] * 60 + [0.0] * 40
    decision = decide(results(low), results(low), policy=policy(gate={"ok": {"margin": 0.1, "floor": 0.7}}))
    assert decision.verdict == "fail"
    assert check(decision, "floor of ok").detail == "ok 0.600 over 100 cases, at least 0.7 is required"


def test_the_prompts_required_score_is_a_floor_of_the_first_metric() -> None:
    low = [1.0] * 60 + [0.0] * 40
    assert decide(results(low), results(low), required_score=0.6).verdict == "pass"
    assert decide(results(low), results(low), required_score=0.65).verdict == "fail"
    with pytest.raises(BadInput, match=r"eval_score_required: 4 is outside 0\.\.1"):
        decide(results(low), results(low), required_score=4)


def test_a_case_without_tolerance_that_fails_in_any_trial_fails_the_gate() -> None:
    strict = released(zero_tolerance=[{"metric": "ok", "segments": ["hard"]}])
    champion = results(ONES) + results(ONES, trial=1)
    candidate = results(ONES) + results([0.0 if n == 4 else 1.0 for n in range(N)], trial=1)
    decision = decide(candidate, champion, policy=strict)
    assert decision.verdict == "fail"
    assert check(decision, "zero tolerance").cases == ("case-004",)


def test_a_case_without_tolerance_that_has_no_score_is_unmeasurable() -> None:
    strict = released(zero_tolerance=[{"metric": "ok", "tags": ["odd"]}])
    decision = decide(results([None if n == 5 else 1.0 for n in range(N)]), results(ONES), policy=strict)
    assert decision.verdict == "unmeasurable"
    assert check(decision, "zero tolerance #odd").cases == ("case-005",)


def test_a_broken_answer_is_broken_also_in_an_outage() -> None:
    strict = released(zero_tolerance=[{"metric": "ok", "segments": ["hard"]}])
    scores: list[float | None] = [None] * N
    scores[0] = 0.0
    assert decide(results(scores), results(ONES), policy=strict).verdict == "fail"


def test_zero_tolerance_of_no_case_is_bad_input() -> None:
    strict = released(zero_tolerance=[{"metric": "ok", "segments": ["adversarail"]}])
    with pytest.raises(BadInput, match="no golden case is in adversarail"):
        decide(results(ONES), results(ONES), policy=strict)


def test_personal_data_that_neither_question_nor_reference_holds_fails() -> None:
    iban = "DE89 3704 0044 0532 0130 00"
    careful = released(forbidden_pii=["iban"])
    decision = decide(results(ONES, answer=f"Pay to {iban}."), results(ONES), policy=careful)
    assert decision.verdict == "fail"
    assert check(decision, "personal data").detail == "answers hold iban (100 cases)"
    asked = [case.model_copy(update={"question": f"Is {iban} yours?"}) for case in CASES]
    answered = results(ONES, answer=f"No, {iban} is not ours.")
    assert decide_gate(asked, answered, results(ONES), careful).verdict == "pass"
    assert iban not in decision.model_dump_json()


@pytest.mark.parametrize(("candidate", "verdict"), [(0.0011, "pass"), (0.0013, "fail"), (None, "unmeasurable")])
def test_a_cost_beyond_the_limit_fails_and_an_unknown_one_is_unmeasurable(candidate: Any, verdict: str) -> None:
    decision = decide(results(ONES, cost=candidate), results(ONES), policy=released(max_cost_increase=0.2))
    assert decision.verdict == verdict


def test_latency_is_always_shown_and_asked_only_by_the_policy() -> None:
    slow = results(ONES, latency_ms=300)
    decision = decide(slow, results(ONES))
    assert decision.verdict == "pass"
    assert decision.latency_p95_ms.increase == pytest.approx(2.0)
    assert decide(slow, results(ONES), policy=released(max_latency_increase=0.5)).verdict == "fail"


@pytest.mark.parametrize("side", ["candidate", "champion"])
def test_too_many_failures_on_either_side_are_unmeasurable(side: str) -> None:
    broken = results([None] * 11 + [1.0] * (N - 11))
    sides = (broken, results(ONES)) if side == "candidate" else (results(ONES), broken)
    decision = decide(*sides)
    assert decision.verdict == "unmeasurable"
    assert f"11 of 100 cases of the {side} failed (11 vendor_error; case-000: away)" in decision.reason


def test_a_few_failures_are_left_out_and_the_denominator_is_shown() -> None:
    decision = decide(results([None] * 5 + [1.0] * (N - 5)), results(ONES))
    assert decision.verdict == "pass"
    assert (decision.comparisons[0].n, decision.comparisons[0].of) == (95, 100)


def test_fewer_cases_than_the_policy_asks_for_are_unmeasurable() -> None:
    decision = decide(results(ONES), results(ONES), policy=policy(minimum_cases=101))
    assert decision.verdict == "unmeasurable"


def test_a_run_that_was_not_finished_cannot_pass() -> None:
    decision = decide(results(ONES[:90]), results(ONES[:90]))
    assert decision.verdict == "unmeasurable"
    assert "only 90 of 100 cases of the candidate were run" in decision.reason


def test_a_spend_cap_is_named_as_the_reason() -> None:
    decision = decide(results([1.0] * 95 + [None] * 5, kind=FailureKind.BUDGET), results(ONES))
    assert (decision.verdict, decision.is_over_budget) == ("unmeasurable", True)


def test_a_first_release_has_floors_and_hard_checks_only_and_says_so() -> None:
    first = policy(gate={"ok": {"margin": 0.1, "floor": 0.7}})
    decision = decide(results(with_losses(20)), None, policy=first)
    assert (decision.verdict, decision.is_first_release, decision.comparisons) == ("pass", True, ())
    assert decision.reason.startswith("first release, no champion to compare with")
    assert decide(results(with_losses(40)), None, policy=first).verdict == "fail"


def test_a_policy_that_compares_nothing_or_asks_the_impossible_is_bad_input() -> None:
    with pytest.raises(BadInput, match="field gate names no metric"):
        decide(results(ONES), results(ONES), policy=policy(gate={}))
    with pytest.raises(BadInput, match="the margin 0 of ok must lie between 0 and 1"):
        decide(results(ONES), results(ONES), policy=policy(gate={"ok": {"margin": 0}}))


def test_a_decision_survives_json() -> None:
    decision = decide(results(with_losses(25)), results(ONES))
    assert GateDecision.model_validate_json(decision.model_dump_json()) == decision


def test_another_trial_is_bought_for_all_cases_of_an_undecided_comparison() -> None:
    stage = Stage(1, 3, looks=True)
    decision = decide(results(with_losses(5)), results(ONES), stage=stage)
    assert decision.verdict == "unmeasurable"
    assert cases_to_repeat(decision, CASES, policy(), stage) == CASES
    assert cases_to_repeat(decision, CASES, policy(), Stage(3, 3)) == []


def test_a_segment_that_is_undecided_is_repeated_as_a_whole_and_nothing_else() -> None:
    narrow, stage = policy(gate={"ok": {"margin": 0.12, "segment_margin": 0.2}}), Stage(1, 2, looks=True)
    one_lost = [0.0 if n == 0 else 1.0 for n in range(N)]
    decision = decide(results(one_lost), results(ONES), policy=narrow, stage=stage)
    assert [row.name for row in decision.undecided] == ["ok in hard"]
    again = cases_to_repeat(decision, CASES, narrow, stage)
    assert again == [case for case in CASES if case.segment == "hard"]


def test_nothing_is_bought_that_no_repeat_could_decide() -> None:
    stage = Stage(1, 3, looks=True)
    tight = policy(gate={"ok": {"margin": 0.02}})  # 100 cases are too few, whatever they say
    decision = decide(results(ONES), results(ONES), policy=tight, stage=stage)
    assert decision.verdict == "unmeasurable"
    assert cases_to_repeat(decision, CASES, tight, stage) == []


def test_what_a_stage_settled_stays_settled() -> None:
    first = decide(results(ONES), results(ONES), stage=Stage(1, 2))
    assert first.verdict == "pass"
    later = results(ONES) + results(with_losses(8), trial=1)
    second = decide(later, results(ONES) + results(ONES, trial=1), stage=Stage(2, 2), settled=first.settled)
    assert second.comparisons[0] == first.comparisons[0]


def test_a_pass_has_room_for_cases_that_flip_at_random_once_they_are_repeated() -> None:
    flips, other = with_losses(4), with_losses(4, start=3)
    stage = Stage(2, 2)
    candidate = results(flips) + results(ONES, trial=1)
    champion = results(ONES) + results(other, trial=1)
    assert decide(results(flips), results(ONES), stage=Stage(1, 2)).verdict == "unmeasurable"
    assert decide(candidate, champion, stage=stage).verdict == "pass"


def test_the_first_pass_ends_where_the_rest_could_change_nothing() -> None:
    strict = released(zero_tolerance=[{"metric": "ok", "segments": ["hard"]}])
    stage, half = Stage(1, 3, looks=True), slice(0, 50)
    good = results(ONES)[half]
    assert early_end(CASES, good, good, strict, stage=stage) is None
    broken = results([0.0, *ONES[1:]])[half]
    found = early_end(CASES, broken, good, strict, stage=stage)
    assert found is not None
    assert found.reason.startswith("zero tolerance hard")
    away = results([None] * N)[half]
    assert "50 of 100 cases of the champion have failed" in str(early_end(CASES, good, away, strict, stage=stage))


def test_harm_that_is_certain_ends_the_first_pass_and_fails() -> None:
    stage, half = Stage(1, 3, looks=True), slice(0, 50)
    worse, good = results([float(n % 3 > 0) for n in range(N)])[half], results(ONES)[half]
    found = early_end(CASES, worse, good, policy(), stage=stage)
    assert found is not None
    assert found.harmed == ("ok",)
    decision = decide(worse, good, stage=stage, harmed=found.harmed)
    assert (decision.verdict, decision.comparisons[0].n) == ("fail", 50)


def test_every_stretch_of_the_order_holds_each_segment_in_its_share() -> None:
    order = case_order(CASES)
    assert sorted(case.id for case in order) == [case.id for case in CASES]
    assert order == case_order(list(reversed(CASES)))
    for start in range(0, N, 20):
        assert 4 <= Counter(case.segment for case in order[start : start + 20])["hard"] <= 6


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[GateVerdict]]:
    """Gates of two stages, each on cases drawn anew: one is lost with `loss`, and every answer flips with `noise`."""
    monkeypatch.setattr(noninferiority, "_MOST_NEEDED", 50)  # how many cases would decide is shown, and takes its time
    cases = [case.model_copy(update={"segment": "one"}) for case in CASES[:40]]
    asked = policy(gate={"ok": {"margin": 0.25}})

    def run_gates(loss: float, noise: float, runs: int, seed: int) -> Counter[GateVerdict]:
        rng, found = np.random.default_rng(seed), Counter()
        for _ in range(runs):
            lost, settled, sides = rng.random(40) < loss, (), ([], [])
            for number in (1, 2):
                stage = Stage(number, 2, looks=True)
                for side, spoiled in zip(sides, (lost, np.zeros(40, bool)), strict=True):
                    passes = ~spoiled ^ (rng.random(40) < noise)
                    side.extend(results(passes.astype(float).tolist(), trial=number - 1))
                decision = decide_gate(cases, sides[0], sides[1], asked, stage=stage, settled=settled)
                settled = decision.settled
                if not cases_to_repeat(decision, cases, asked, stage):
                    break
            found[decision.verdict] += 1
        return found

    return run_gates


def test_what_is_worse_by_the_margin_passes_in_at_most_one_of_twenty(simulate) -> None:
    runs, noise = 150, 0.05
    found = simulate(loss=0.25 / (1 - 2 * noise), noise=noise, runs=runs, seed=5)  # the mean differs by exactly 0.25
    assert found[GateVerdict.PASS] <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)
    assert found[GateVerdict.UNMEASURABLE] > 0


def test_what_is_equal_fails_in_at_most_one_of_twenty_and_mostly_passes(simulate) -> None:
    found = simulate(loss=0.0, noise=0.05, runs=100, seed=6)
    assert found[GateVerdict.FAIL] <= 5
    assert found[GateVerdict.PASS] > 60
