"""Which factor is named, from the scores of replayed cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from touchstone.attribution import decide_attribution, pairs_needed
from touchstone.attribution_records import AttributionDecision, Evidence, FactorState, Fallen, Replay, Standing
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.errors import BadInput
from touchstone.factor_swaps import SWAPS, Swap, differing, movers, swapped
from touchstone.index import IndexVersion
from touchstone.policy import Policy
from touchstone.prompts import Prompt
from touchstone.retrieval_config import RetrievalConfig

N = 12
CASES = [f"case-{number}" for number in range(N)]
FALLEN = tuple(Fallen(case_id=case, before=1, after=0) for case in CASES)


def scores(passing: int, trials: int = 1, cases: Sequence[str] = CASES) -> dict[str, tuple[float | None, ...]]:
    """The first `passing` cases pass, in every trial."""
    return {case: (float(number < passing),) * trials for number, case in enumerate(cases)}


def decide(
    swaps: dict[tuple[Swap, ...], int] | None = None,
    control: int | None = 0,
    stuck: Sequence[Swap] = (),
    **more: Any,
) -> AttributionDecision:
    """The decision where each swap restores so many of 12 cases, and so many pass in the control anyway."""
    swaps = swaps or {}
    alone = {factor for arm in swaps for factor in arm}
    factors = tuple(
        FactorState(
            factor=factor,
            standing=Standing.SWAPPABLE if factor in alone else Standing.STUCK if factor in stuck else Standing.SAME,
            note="its index was cleaned away" if factor in stuck else "",
        )
        for factor in SWAPS
    )
    now = scores(control) if control is not None else {}
    replays = tuple(Replay(swaps=arm, scores=scores(passing), control=now) for arm, passing in swaps.items())
    fields = {"fallen": FALLEN, "fell": N, "rose": 0, "factors": factors, "control": now, "replays": replays}
    return decide_attribution(Evidence.model_validate(fields | more))


def test_the_factor_whose_swap_alone_restores_the_cases_is_named() -> None:
    decision = decide({("model",): 0, ("prompt",): 12, ("retrieval",): 1})
    assert (decision.verdict, decision.culprits, decision.next) == ("named", ("prompt",), None)
    assert not decision.by_elimination
    assert "12 of 12 cases are good again" in decision.reason


def test_a_swap_that_helps_too_few_cases_names_nobody() -> None:
    decision = decide({("prompt",): 4, ("model",): 0, ("prompt", "model"): 4})
    assert decision.verdict == "undecided"
    assert decision.next == "more"
    assert "more cases" in decision.would_decide


def test_the_more_factors_are_tried_the_more_pairs_are_needed() -> None:
    assert [pairs_needed(swappable) for swappable in (1, 2, 5)] == [7, 9, 10]
    assert decide({("prompt",): 7}).culprits == ("prompt",)
    assert decide({("prompt",): 7, ("model",): 0, ("prompt", "model"): 7}).verdict == "undecided"


def test_what_passes_without_any_swap_is_no_restoration() -> None:
    decision = decide({("prompt",): 6, ("model",): 6}, control=6)
    assert decision.verdict == "undecided"
    assert all(not finding.restores and finding.better == 0 for finding in decision.findings)


def test_before_any_swap_the_swaps_are_asked_for() -> None:
    evidence = Evidence(
        fallen=FALLEN,
        fell=N,
        rose=0,
        factors=(FactorState(factor="prompt", standing=Standing.SWAPPABLE),),
        control=scores(0),
    )
    assert decide_attribution(evidence).next == "swaps"


def test_a_fall_that_does_not_recur_is_transient_and_no_swap_is_paid_for() -> None:
    decision = decide(control=11, swaps={})
    assert (decision.verdict, decision.next) == ("undecided", None)
    assert "does not fail any more" in decision.reason


def test_nothing_of_ours_differs_and_it_still_fails_so_the_vendors_model_is_named() -> None:
    decision = decide()
    assert (decision.culprits, decision.by_elimination) == (("model",), True)
    assert "behind its unchanged name" in decision.reason


def test_the_vendor_is_named_only_once_all_of_ours_is_swapped_back_together() -> None:
    alone: dict[tuple[Swap, ...], int] = {("prompt",): 0, ("index",): 0}
    assert decide(alone).next == "together"
    alone[("prompt", "index")] = 0
    decision = decide(alone)
    assert (decision.culprits, decision.by_elimination) == (("model",), True)


def test_two_factors_that_only_together_restore_are_an_interaction() -> None:
    decision = decide({("prompt",): 0, ("retrieval",): 0, ("prompt", "retrieval"): 12})
    assert (decision.verdict, decision.culprits) == ("interaction", ("prompt", "retrieval"))
    assert "no swap alone" in decision.reason


def test_two_factors_that_each_restore_alone_are_an_interaction() -> None:
    decision = decide({("prompt",): 12, ("retrieval",): 11, ("model",): 0})
    assert (decision.verdict, decision.culprits) == ("interaction", ("prompt", "retrieval"))
    assert "alone" in decision.reason


def test_a_factor_that_explains_a_small_part_is_not_named_before_all_are_swapped_together() -> None:
    cases = [f"case-{number}" for number in range(30)]
    fallen = tuple(Fallen(case_id=case, before=1, after=0) for case in cases)
    factors = tuple(FactorState(factor=factor, standing=Standing.SWAPPABLE) for factor in ("prompt", "retrieval"))
    control = scores(0, cases=cases)

    def after(*found: tuple[tuple[Swap, ...], int]) -> AttributionDecision:
        replays = tuple(Replay(swaps=arm, scores=scores(n, cases=cases), control=control) for arm, n in found)
        return decide_attribution(
            Evidence(fallen=fallen, fell=30, rose=0, factors=factors, control=control, replays=replays)
        )

    alone: list[tuple[tuple[Swap, ...], int]] = [(("prompt",), 10), (("retrieval",), 0)]
    assert after(*alone).next == "together"
    assert after(*alone, (("prompt", "retrieval"), 30)).verdict == "interaction"
    rest = after(*alone, (("prompt", "retrieval"), 10))
    assert rest.culprits == ("prompt",)
    assert "20 stay low" in rest.reason


def test_a_factor_that_cannot_be_replayed_keeps_the_vendor_from_being_named() -> None:
    decision = decide({("prompt",): 0}, stuck=["index"])
    assert decision.verdict == "undecided"
    assert "index version differs and cannot be replayed" in decision.reason
    assert "cleaned away" in decision.would_decide


def test_a_factor_that_cannot_be_replayed_does_not_keep_another_from_being_named() -> None:
    assert decide({("prompt",): 12}, stuck=["index"]).culprits == ("prompt",)


def test_a_fall_that_as_many_cases_rise_against_names_no_vendor() -> None:
    decision = decide(fell=12, rose=10)
    assert decision.verdict == "undecided"
    assert "may be chance" in decision.reason


def test_of_two_fallen_cases_nothing_is_said() -> None:
    decision = decide(fallen=FALLEN[:2])
    assert (decision.verdict, decision.next) == ("undecided", None)


def test_repeats_count_but_never_make_one_case_enough() -> None:
    factors = (FactorState(factor="prompt", standing=Standing.SWAPPABLE),)

    def after(helped: int) -> AttributionDecision:
        control = scores(0, trials=8)
        replays = (Replay(swaps=("prompt",), scores=scores(helped, trials=8), control=control),)
        return decide_attribution(
            Evidence(fallen=FALLEN, fell=N, rose=0, factors=factors, control=control, replays=replays)
        )

    assert after(2).verdict == "undecided"
    assert after(3).findings[0].restores


def test_a_replay_that_failed_is_left_out_and_is_no_score() -> None:
    control = scores(0)
    mixed: dict[str, tuple[float | None, ...]] = {
        case: (1.0 if number < 7 else None,) for number, case in enumerate(CASES)
    }
    evidence = Evidence(
        fallen=FALLEN,
        fell=N,
        rose=0,
        factors=(FactorState(factor="prompt", standing=Standing.SWAPPABLE),),
        control=control,
        replays=(Replay(swaps=("prompt",), scores=mixed, control=control),),
    )
    (finding,) = decide_attribution(evidence).findings
    assert (finding.n_pairs, finding.failing, finding.restored) == (7, 7, 7)


def test_a_graded_case_is_good_again_from_half_way_up() -> None:
    fallen = tuple(Fallen(case_id=case, before=0.9, after=0.5) for case in CASES)
    control: dict[str, tuple[float | None, ...]] = dict.fromkeys(CASES, (0.5,))
    found: dict[str, tuple[float | None, ...]] = {
        case: (0.8 if number < 9 else 0.6,) for number, case in enumerate(CASES)
    }
    evidence = Evidence(
        fallen=fallen,
        fell=N,
        rose=0,
        factors=(FactorState(factor="prompt", standing=Standing.SWAPPABLE),),
        control=control,
        replays=(Replay(swaps=("prompt",), scores=found, control=control),),
    )
    (finding,) = decide_attribution(evidence).findings
    assert (finding.better, finding.restored) == (12, 9)


def test_where_only_the_judge_differs_recorded_answers_decide_without_a_generation() -> None:
    judged = scores(0)
    factors = (FactorState(factor="judge", standing=Standing.SWAPPABLE),)
    replays = (Replay(swaps=("judge",), scores=scores(12), control=judged),)
    evidence = Evidence(fallen=FALLEN, fell=N, rose=0, factors=factors, replays=replays, judged=True)
    assert decide_attribution(evidence).culprits == ("judge",)
    unhelped = (Replay(swaps=("judge",), scores=scores(0), control=judged),)
    assert decide_attribution(evidence.model_copy(update={"replays": unhelped})).next == "control"


@pytest.mark.parametrize(("low", "culprit"), [(12, "judge"), (0, "model")])
def test_the_answers_of_before_judged_again_tell_a_moved_judge_from_a_moved_model(low: int, culprit: str) -> None:
    assert decide(judged=True).next == "judge"
    again = {case: float(number >= low) for number, case in enumerate(CASES)}
    decision = decide(judged=True, judged_now=again)
    assert (decision.culprits, decision.by_elimination) == ((culprit,), True)


def test_a_metric_of_what_was_retrieved_never_blames_the_model() -> None:
    assert decide(model_moves=False).verdict == "undecided"
    policy = Policy()
    assert movers(policy, "ndcg_at_8") == ("retrieval", "index")
    assert "judge" not in movers(policy, "answer_ok")
    with pytest.raises(BadInput, match="no better direction"):
        movers(policy, "length")
    with pytest.raises(BadInput, match="no scorer yields the metric 'accuracy'"):
        movers(policy, "accuracy")


def definition(
    model: str = "a-2026-01-15",
    template: str = "{context} {question}",
    top_k: int = 4,
    chunk: int = 256,
    version: int = 1,
) -> Definition:
    config = RetrievalConfig.model_validate(
        {"name": "help", "version": "1.0.0", "source": {"path": "help"}, "top_k": top_k, "chunk_size": chunk}
    )
    index = IndexVersion(
        table=f"help_{config.index_fingerprint}",
        version=version,
        config_name="help",
        config_version="1.0.0",
        fingerprint=config.index_fingerprint,
        embedding_model="hashing",
        documents=3,
        chunks=3,
        content_digest=f"content-{version}",
        built_at="2026-11-01T00:00:00+00:00",
    )
    fields = {"name": "b", "model": f"openai/{model}", "prompt": {"user": template}, "retrieval": "help"}
    bundle = Bundle.model_validate(fields | {"judge": "j-2026-01-15"})
    return Definition(bundle=bundle, prompt=Prompt(version="1.0.0", template=template), retrieval=config, index=index)


def test_only_what_differs_is_swapped_and_the_rest_stays_as_after() -> None:
    before, after = definition(), definition("b-2026-02-02", "{context}: {question}", 8, version=2)
    assert differing(before, after) == ("model", "prompt", "retrieval", "index")
    found = swapped(before, after, ["prompt"])
    assert (found.prompt, found.model, found.index) == (before.prompt, after.model, after.index)
    assert swapped(before, after, ["retrieval"]).index == after.index
    assert swapped(before, after, ["index"]).retrieval == after.retrieval
    assert differing(before, swapped(before, after, SWAPS)) == ()


def test_an_index_that_only_its_own_config_can_search_goes_with_that_config() -> None:
    before, after = definition(), definition(chunk=128, version=2)
    assert differing(before, after) == ("retrieval",)
    assert swapped(before, after, ["retrieval"]).index == before.index


def test_a_prompt_that_needs_a_context_cannot_go_back_alone_to_a_bundle_without_retrieval() -> None:
    before = definition()
    after = definition(template="{question}").model_copy(update={"retrieval": None, "index": None})
    with pytest.raises(BadInput, match="needs a context"):
        swapped(before, after, ["prompt"])
    assert swapped(before, after, ["prompt", "retrieval"]).retrieval == before.retrieval
