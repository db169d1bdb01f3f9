"""The decision over one run: what it says, when it says it, and what it remembers."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from touchstone.drift import (
    Baseline,
    DriftDecision,
    DriftPolicy,
    DriftState,
    MetricScores,
    MetricSpec,
    RunScores,
    Verdict,
    decide_drift,
    freeze_baseline,
)
from touchstone.errors import BadInput

ACCURACY = MetricSpec(name="accuracy", kind="pass_fail")
GRADE = MetricSpec(name="grade", kind="graded")
LENGTH = MetricSpec(name="length", kind="graded", higher_is_better=None)
LATENCY = MetricSpec(name="latency", kind="graded", higher_is_better=False)


def make_run(key: str, metrics: Mapping[str, Sequence[Any]], **changed: Any) -> RunScores:
    """A run over cases c0, c1, ...; a score may be a number, a tuple of repeats, or None for a failure."""
    n = max(map(len, metrics.values()))
    ids = [f"c{index}" for index in range(n)]
    scores = {}
    for name, values in metrics.items():
        found = {case: value for case, value in zip(ids, values, strict=False) if value is not None}
        repeats = tuple(value if isinstance(value, tuple) else (float(value),) for value in found.values())
        scores[name] = MetricScores(case_ids=tuple(found), scores=repeats)
    defaults = {"at": "2026-03-01T06:00:00+00:00", "n_cases": n, "case_digests": dict.fromkeys(ids, "v1")}
    return RunScores(run_key=key, metrics=scores, **(defaults | changed))


def answers(passing: int, n: int = 150) -> list[float]:
    return [1.0] * passing + [0.0] * (n - passing)


def noisy_runs(count: int, rate: float = 0.89, n: int = 150, seed: int = 0, spec: str = "accuracy") -> list[RunScores]:
    rng = np.random.default_rng(seed)
    p = np.random.default_rng(99).beta(4 * 0.89, 4 * 0.11, n) * rate / 0.89
    return [make_run(f"s{seed}-{i}", {spec: list((rng.random(n) < p).astype(float))}) for i in range(count)]


class Watch:
    """Decides on run after run, its state going through JSON in between."""

    def __init__(self, baseline: Baseline, **policy: Any) -> None:
        self.baseline, self.policy = baseline, DriftPolicy(**policy)
        self.state: DriftState | None = None

    def see(self, run: RunScores, minimum_cases: int = 20, maximum_failure_share: float = 0.1) -> DriftDecision:
        decision, state = decide_drift(
            run,
            self.baseline,
            self.state,
            self.policy,
            minimum_cases=minimum_cases,
            maximum_failure_share=maximum_failure_share,
        )
        self.state = DriftState.model_validate_json(state.model_dump_json())
        return DriftDecision.model_validate_json(decision.model_dump_json())


def told(decision: DriftDecision) -> tuple[str, str | None]:
    return decision.verdict.value, decision.direction.value if decision.direction else None


def kinds(decision: DriftDecision) -> list[tuple[str, str]]:
    return [(transition.kind, transition.stream) for transition in decision.transitions]


def provisional(run: RunScores, *specs: MetricSpec, **policy: Any) -> Watch:
    return Watch(freeze_baseline([run], specs or [ACCURACY]), **policy)


def replayed(run: RunScores, *specs: MetricSpec, **policy: Any) -> Watch:
    """A full baseline of 20 identical runs."""
    runs = [run.model_copy(update={"run_key": f"calibration-{index}"}) for index in range(20)]
    return Watch(freeze_baseline(runs, specs or [ACCURACY]), **policy)


# --- the real case, in synthetic numbers of the same size and on the recorded answers -------------------------


def pairs(both: int, only_before: int, only_after: int, neither: int) -> tuple[RunScores, RunScores]:
    before = [1.0] * (both + only_before) + [0.0] * (only_after + neither)
    after = [1.0] * both + [0.0] * only_before + [1.0] * only_after + [0.0] * neither
    return make_run("old", {"accuracy": before}), make_run("new", {"accuracy": after})


@pytest.mark.parametrize("baseline", [provisional, replayed])
@pytest.mark.parametrize(
    ("counts", "direction", "means"),
    [
        ((363, 477, 139, 21), "worse", "fell 0.840 -> 0.502 on 1000 of 1000"),
        ((276, 242, 404, 78), "better", "rose 0.518 -> 0.680 on 1000 of 1000"),
        ((4, 142, 0, 4), "worse", "fell 0.973 -> 0.027 on 150 of 150"),
        ((8, 2, 112, 28), "better", "rose 0.067 -> 0.800 on 150 of 150"),
    ],
)
def test_a_swapped_snapshot_is_drifted_at_once_and_its_return_is_stable(baseline, counts, direction, means) -> None:
    old, new = pairs(*counts)
    watch = baseline(old)
    assert told(watch.see(old)) == ("stable", None)
    swapped = watch.see(new)
    assert told(swapped) == ("drifted", direction)
    assert means in swapped.reason
    assert kinds(swapped) == [("detected", f"accuracy/all/{direction}")]
    assert swapped.change_point == "new"
    assert kinds(watch.see(new)) == []
    back = watch.see(old)
    assert told(back) == ("stable", None)
    assert kinds(back) == [("recovered", f"accuracy/all/{direction}")]
    assert kinds(watch.see(old)) == []


SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SNAPSHOTS = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", SHARED)) / "gpt-snapshots"


def recorded_run(snapshot: str, n: int) -> RunScores:
    cases = [json.loads(line) for line in (SNAPSHOTS / "cases.jsonl").read_text().splitlines()]
    with gzip.open(SNAPSHOTS / "recording.jsonl.gz", "rt") as lines:
        said = {row["prompt"]: row["answer"] for row in map(json.loads, lines) if row["model"] == snapshot}
    passed = []
    for case in cases[:n]:
        found = re.findall(r"\[(yes|no)\]", said[case["question"]], re.IGNORECASE)
        passed.append(float(bool(found) and found[-1].lower() == case["reference"].lower()))
    return make_run(snapshot, {"accuracy": passed})


@pytest.mark.skipif(not SNAPSHOTS.is_dir(), reason=f"no recorded snapshots at {SNAPSHOTS}; set TOUCHSTONE_SHARED_DATA")
@pytest.mark.parametrize("baseline", [provisional, replayed])
@pytest.mark.parametrize(("frozen", "n"), [(1000, 1000), (1000, 150), (150, 150)])
@pytest.mark.parametrize(
    ("old", "new", "direction", "means"),
    [
        ("gpt-4-0314", "gpt-4-0613", "worse", "0.840 -> 0.502"),
        ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613", "better", "0.518 -> 0.680"),
    ],
)
def test_recorded_snapshots_drift_as_published(baseline, frozen, n, old, new, direction, means) -> None:
    watch = baseline(recorded_run(old, frozen))
    assert told(watch.see(recorded_run(old, n))) == ("stable", None)
    decision = watch.see(recorded_run(new, n))
    assert told(decision) == ("drifted", direction)
    assert (means in decision.reason) == (n == 1000)
    assert told(watch.see(recorded_run(old, n))) == ("stable", None)


# --- verdicts -------------------------------------------------------------------------------------------------


def test_quiet_runs_are_stable_and_say_what_they_could_have_seen() -> None:
    watch = Watch(freeze_baseline(noisy_runs(20), [ACCURACY]))
    decisions = [watch.see(run) for run in noisy_runs(15, seed=1)]
    assert {told(decision) for decision in decisions} == {("stable", None)}
    last = decisions[-1]
    assert not last.provisional
    assert last.n_paired == 150
    assert 0.02 < (last.minimum_detectable_effect or 0) < 0.06
    assert "within 7 runs" in last.reason


def test_a_moderate_fall_is_flagged_then_drifted_and_dated() -> None:
    watch = Watch(freeze_baseline(noisy_runs(20), [ACCURACY]))
    for run in noisy_runs(5, seed=1):
        watch.see(run)
    decisions = [watch.see(run) for run in noisy_runs(8, rate=0.83, seed=2)]
    assert told(decisions[-1]) == ("drifted", "worse")
    assert decisions[-1].change_point in {"s2-0", "s2-1"}
    raised = [kind for decision in decisions for kind, _ in kinds(decision)]
    assert raised in (["detected"], ["flagged", "detected"])


def test_the_change_point_stays_while_a_drift_goes_on() -> None:
    watch = Watch(freeze_baseline(noisy_runs(20), [ACCURACY]))
    decisions = [watch.see(run) for run in noisy_runs(45, rate=0.75, seed=2)]
    assert decisions[-1].verdict is Verdict.DRIFTED
    assert decisions[-1].change_point == decisions[12].change_point


def test_flags_come_before_acts_and_go_silently() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}))
    flagged = watch.see(make_run("odd", {"accuracy": answers(127)}))  # 13 pairs, all worse
    assert told(flagged) == ("flagged", "worse")
    assert "flag at 0.1, act at 1" in flagged.reason
    assert kinds(flagged) == [("flagged", "accuracy/all/worse")]
    quiet = watch.see(make_run("even", {"accuracy": answers(140)}))
    assert (told(quiet), kinds(quiet)) == (("stable", None), [])


def test_with_persistence_evidence_flags_at_once_and_acts_when_it_stood_for_runs_in_a_row() -> None:
    old, new = pairs(4, 142, 0, 4)
    watch = provisional(old, persistence=3)
    assert [watch.see(run).verdict for run in (new, new, old, new, new, new)] == [
        "flagged",
        "flagged",
        "stable",
        "flagged",
        "flagged",
        "drifted",
    ]


def test_without_the_old_answers_a_drift_ends_after_some_quiet_runs() -> None:
    """Back at the baseline's rate, but case by case not far from the run that triggered: no move back to be proven."""
    old = make_run("old", {"accuracy": answers(140)})
    watch = provisional(old, recovery_runs=3)
    assert watch.see(make_run("low", {"accuracy": answers(123)})).verdict == "drifted"
    trigger = {"accuracy": [1.0] * 123 + [0.0] * 12 + [1.0] * 5 + [0.0] * 10}
    assert watch.see(make_run("still", trigger)).verdict == "drifted"  # 12 pairs worse: not quiet
    almost = {"accuracy": [0.0] * 4 + [1.0] * 119 + [0.0] * 13 + [1.0] * 4 + [1.0] * 10}
    mixed = {"accuracy": [0.0] * 3 + [1.0] * 120 + [0.0] * 7 + [1.0] * 10 + [1.0] * 10}
    assert watch.see(make_run("almost", almost)).verdict == "drifted"
    verdicts = [watch.see(make_run(f"mixed-{index}", mixed)).verdict for index in range(3)]
    assert verdicts[-1] == "stable"


def test_a_metric_where_less_is_better_gets_worse_when_it_rises() -> None:
    rng = np.random.default_rng(1)
    runs = [make_run(f"c{i}", {"latency": list(rng.gamma(9, 20, 60))}) for i in range(20)]
    watch = Watch(freeze_baseline(runs, [LATENCY]))
    decisions = [watch.see(make_run(f"r{i}", {"latency": list(rng.gamma(9, 27, 60))})) for i in range(4)]
    assert told(decisions[-1]) == ("drifted", "worse")
    assert "rose" in decisions[-1].reason


def test_a_metric_without_good_or_bad_is_changed() -> None:
    rng = np.random.default_rng(2)
    runs = [make_run(f"c{i}", {"length": list(rng.normal(50, 5, 60).round())}) for i in range(20)]
    for mean in (44, 56):
        watch = Watch(freeze_baseline(runs, [LENGTH]))
        shifted = [make_run(f"r{i}", {"length": list(rng.normal(mean, 5, 60).round())}) for i in range(3)]
        assert told([watch.see(run) for run in shifted][-1]) == ("drifted", "changed")


def test_many_cases_that_flip_both_ways_are_changed() -> None:
    old, new = pairs(300, 100, 100, 100)
    watch = replayed(old)
    assert told(watch.see(new)) == ("drifted", "changed")
    assert [watch.see(old).verdict for _ in range(3)] == ["drifted", "drifted", "stable"]


def test_graded_scores_are_judged_by_their_run_means() -> None:
    rng = np.random.default_rng(3)
    base = rng.beta(6, 2, 150)

    def grades(key: str, shift: float) -> RunScores:
        return make_run(key, {"grade": list(np.clip(base + rng.normal(shift, 0.08, 150), 0, 1))})

    watch = Watch(freeze_baseline([grades(f"c{i}", 0) for i in range(20)], [GRADE]))
    assert {watch.see(grades(f"q{i}", 0)).verdict for i in range(10)} == {"stable"}
    assert told([watch.see(grades(f"d{i}", -0.03)) for i in range(5)][-1]) == ("drifted", "worse")


def test_a_constant_graded_calibration_bears_one_odd_answer_but_not_ten() -> None:
    steady = [0.9, 0.7, 1.0] * 50
    watch = replayed(make_run("old", {"grade": steady}), GRADE)
    assert watch.see(make_run("odd", {"grade": [0.8, *steady[1:]]})).verdict == "stable"
    assert watch.see(make_run("bad", {"grade": [0.0] * 15 + steady[15:]})).verdict == "drifted"


def test_failed_cases_neither_shift_nor_scale_graded_evidence() -> None:
    rng = np.random.default_rng(4)
    base = np.linspace(0.1, 0.9, 100)
    runs = [make_run(f"c{i}", {"grade": list(base + rng.normal(0, 0.02, 100))}) for i in range(20)]
    watch = Watch(freeze_baseline(runs, [GRADE]))
    for index in range(10):
        scores: list[float | None] = list(base + rng.normal(0, 0.02, 100))
        for case in range(91, 100):  # the highest grades fail
            scores[case] = None
        assert watch.see(make_run(f"r{index}", {"grade": scores}, n_failed=9)).verdict == "stable"


def test_a_segment_is_watched_on_its_own() -> None:
    segments = {f"c{index}": "billing" if index < 30 else "other" for index in range(150)}
    old = make_run("old", {"accuracy": [1.0] * 150}, segments=segments)
    new = make_run("new", {"accuracy": [0.0] * 20 + [1.0] * 130}, segments=segments)
    decision = provisional(old).see(new)
    levels = {stream.key: stream.level.value for stream in decision.streams}
    assert levels["accuracy/billing/worse"] == "drifted"
    assert levels["accuracy/other/worse"] == "stable"
    found = next(stream for stream in decision.streams if stream.key == "accuracy/billing/worse")
    assert (found.n, found.n_planned, found.mean_now) == (30, 30, pytest.approx(1 / 3))


def test_a_segment_of_a_few_cases_has_no_stream() -> None:
    segments = {f"c{index}": "rare" if index < 7 else "common" for index in range(150)}
    run = make_run("old", {"accuracy": answers(140)}, segments=segments)
    assert {stream.segment for stream in provisional(run).see(run).streams} == {"all", "common"}


def test_more_streams_ask_for_more_evidence() -> None:
    """e-BH: evidence in one of many streams is worth less than the same evidence alone."""
    old, new = pairs(100, 17, 0, 33)
    assert provisional(old).see(new).verdict == "drifted"
    specs = [ACCURACY, *(MetricSpec(name=f"m{i}", kind="pass_fail") for i in range(9))]

    def wide(run: RunScores) -> RunScores:
        flat = MetricScores(case_ids=run.metrics["accuracy"].case_ids, scores=((1.0,),) * 150)
        return run.model_copy(update={"metrics": {s.name: flat for s in specs} | {"accuracy": run.metrics["accuracy"]}})

    assert provisional(wide(old), *specs).see(wide(new)).verdict == "flagged"


# --- unmeasurable ---------------------------------------------------------------------------------------------


def test_an_outage_is_unmeasurable_not_drift() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}))
    half = [*answers(70, 75), *[None] * 75]
    decision = watch.see(
        make_run("out", {"accuracy": half}, n_failed=75, failures={"timeout": 70, "judge_error": 5}),
    )
    assert told(decision) == ("unmeasurable", None)
    assert "75 of 150 cases failed (50%; at most 10% may), mostly timeout (70)" in decision.reason


def test_an_unmeasurable_run_moves_no_evidence_and_no_level() -> None:
    old, new = pairs(4, 142, 0, 4)
    watch = replayed(old)
    watch.see(new)
    before = watch.state
    assert before is not None
    decision = watch.see(make_run("out", {"accuracy": answers(1)}, n_failed=149, failures={"timeout": 149}))
    assert (decision.verdict, kinds(decision)) == ("unmeasurable", [])
    assert "stays drifted" in decision.reason
    assert watch.state is not None
    assert watch.state.streams == before.streams
    assert watch.see(new).verdict == "drifted"


def test_an_unmeasurable_run_still_tells_what_the_vendor_said_of_itself() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}, served_models={"m-1": 150}))
    failed = make_run(
        "new", {"accuracy": answers(1)}, n_failed=149, failures={"invalid": 149}, served_models={"m-2": 150}
    )
    decision = watch.see(failed)
    assert (decision.verdict, kinds(decision)) == ("unmeasurable", [])
    assert "now returns model m-2" in decision.reason
    assert decision.metadata_signals[0].new == ("m-2",)


def test_too_few_cases_are_unmeasurable() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}))
    decision = watch.see(make_run("small", {"accuracy": answers(10, 10)}), minimum_cases=50)
    assert decision.verdict == "unmeasurable"
    assert "10 scored cases can be compared with the baseline, 50 are needed" in decision.reason


def test_a_changed_golden_set_is_unmeasurable_and_says_so() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}))
    edited = {f"c{index}": "v2" if index < 140 else "v1" for index in range(150)}
    decision = watch.see(make_run("new", {"accuracy": answers(20)}, case_digests=edited))
    assert decision.verdict == "unmeasurable"
    assert "140 have other content" in decision.reason
    assert "freeze a new baseline" in decision.reason


def test_cases_with_other_content_are_left_out_of_the_comparison() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(150)}))
    edited = {f"c{index}": "v2" if index < 60 else "v1" for index in range(150)}
    decision = watch.see(make_run("new", {"accuracy": [0.0] * 60 + [1.0] * 90}, case_digests=edited))
    assert (decision.verdict, decision.n_paired) == ("stable", 90)


@pytest.mark.parametrize("baseline", [provisional, replayed])
def test_a_run_over_part_of_the_set_is_compared_on_that_part(baseline) -> None:
    watch = baseline(make_run("old", {"accuracy": answers(600, 1000)}))
    part = watch.see(make_run("part", {"accuracy": [1.0] * 150}))
    assert (part.verdict, part.n_paired, part.streams[0].n_planned) == ("stable", 150, 150)
    assert watch.see(make_run("more", {"accuracy": answers(600, 1200)})).n_paired == 1000


def test_a_metric_that_half_failed_is_not_compared() -> None:
    """Which answers a judge cannot parse is no accident: the rest is no fair sample."""
    old = make_run("old", {"accuracy": answers(140), "grade": [0.9] * 150})
    watch = provisional(old, ACCURACY, GRADE)
    holes = [0.1 if index % 2 else None for index in range(150)]
    decision = watch.see(make_run("new", {"accuracy": answers(140), "grade": holes}))
    assert {stream.metric for stream in decision.streams} == {"accuracy"}
    only = provisional(old, GRADE).see(make_run("new", {"grade": holes}))
    assert only.verdict == "unmeasurable"
    assert "grade (75 of 150 cases have no score)" in only.reason


def test_another_scorer_is_not_compared() -> None:
    spec = MetricSpec(name="accuracy", kind="pass_fail", scorer_fingerprint="one")
    old = make_run("old", {"accuracy": answers(140)})
    scores = old.metrics["accuracy"].model_copy(update={"scorer_fingerprint": "two"})
    decision = provisional(old, spec).see(old.model_copy(update={"metrics": {"accuracy": scores}}))
    assert decision.verdict == "unmeasurable"
    assert "its scorer changed" in decision.reason


def test_fractions_of_a_pass_are_not_compared_as_passes() -> None:
    watch = provisional(make_run("old", {"accuracy": answers(140)}))
    decision = watch.see(make_run("new", {"accuracy": [0.5] * 150}))
    assert decision.verdict == "unmeasurable"
    assert "other than 0 and 1" in decision.reason


# --- what the vendor says of itself ---------------------------------------------------------------------------


def test_a_new_returned_model_is_drift_though_the_scores_stand_still() -> None:
    old = make_run("old", {"accuracy": answers(140)}, served_models={"gpt-4-0314": 150})
    watch = provisional(old)
    new = old.model_copy(update={"served_models": {"gpt-4-0314": 149, "gpt-4-0613": 1}})
    decision = watch.see(new)
    assert told(decision) == ("drifted", "changed")
    assert kinds(decision) == [("detected", "metadata/served_model")]
    assert "now returns model gpt-4-0613 (baseline: gpt-4-0314)" in decision.reason
    assert kinds(watch.see(new)) == []
    back = watch.see(old)
    assert (told(back), kinds(back)) == (("stable", None), [("recovered", "metadata/served_model")])


def test_a_new_system_fingerprint_is_flagged_once() -> None:
    old = make_run("old", {"accuracy": answers(140)}, fingerprints={"fp_1": 150})
    watch = provisional(old)
    new = old.model_copy(update={"fingerprints": {"fp_2": 150}})
    assert told(watch.see(new)) == ("flagged", "changed")
    assert (told(watch.see(new)), kinds(watch.see(new))) == (("flagged", "changed"), [])


def test_a_vendor_that_says_nothing_of_itself_raises_no_signal() -> None:
    quiet = make_run("old", {"accuracy": answers(140)})
    talking = make_run("new", {"accuracy": answers(140)}, served_models={"gpt-4": 150}, fingerprints={"fp": 150})
    assert provisional(quiet).see(talking).metadata_signals == ()
    assert provisional(talking).see(quiet).metadata_signals == ()


# --- baselines ------------------------------------------------------------------------------------------------


def test_a_baseline_of_few_runs_is_provisional_and_says_what_it_can_detect() -> None:
    runs = noisy_runs(3)
    baseline = freeze_baseline(runs, [ACCURACY])
    assert baseline.provisional
    assert not freeze_baseline(noisy_runs(20), [ACCURACY]).provisional
    decision = Watch(baseline).see(noisy_runs(1, seed=5)[0])
    assert decision.provisional
    assert "provisional baseline (3 of 20 runs)" in decision.reason
    assert (decision.minimum_detectable_effect or 0) >= 16 / 150


def test_a_provisional_baseline_seldom_alarms() -> None:
    """The per-run level is alpha / 365: thirty quiet runs against one noisy run."""
    watch = Watch(freeze_baseline(noisy_runs(1), [ACCURACY]))
    assert {watch.see(run).verdict for run in noisy_runs(30, seed=6)} == {"stable"}


def test_repeats_are_compared_over_as_many_as_both_runs_have() -> None:
    one = make_run("old", {"accuracy": answers(100)})
    three = make_run("new", {"accuracy": [(1.0, 0.0, 1.0)] * 100 + [(0.0, 1.0, 1.0)] * 50})
    decision = provisional(one).see(three)
    assert decision.verdict == "stable"
    assert decision.streams[0].e_value == pytest.approx(1 / 7300)


def test_freezing_is_deterministic_and_keeps_what_the_runs_said() -> None:
    runs = [
        make_run(f"r{i}", {"accuracy": answers(140)}, served_models={"m": 5}, fingerprints={"f": 5}) for i in (1, 2)
    ]
    baseline = freeze_baseline(runs, [ACCURACY, GRADE])
    assert baseline == freeze_baseline(runs, [ACCURACY, GRADE])
    assert Baseline.model_validate_json(baseline.model_dump_json()) == baseline
    assert (baseline.run_keys, baseline.served_models, baseline.fingerprints) == (("r1", "r2"), {"m": 10}, {"f": 10})
    assert baseline.specs == (ACCURACY,)
    assert baseline.id != freeze_baseline(runs[:1], [ACCURACY]).id


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "at least one run"),
        ([make_run("a", {"accuracy": [1.0]})] * 2, "a run comes twice"),
        ([make_run("a", {"grade": [1.0]})], "no run has a score of accuracy"),
        ([make_run("a", {"accuracy": [0.5]})], "pass/fail but scored"),
        (
            [make_run("a", {"accuracy": [1.0]}), make_run("b", {"accuracy": [1.0]}, case_digests={"c0": "v2"})],
            "golden set changed",
        ),
    ],
)
def test_runs_that_make_no_baseline_are_refused(runs: list[RunScores], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        freeze_baseline(runs, [ACCURACY])


def test_a_new_baseline_starts_anew() -> None:
    old, new = pairs(4, 142, 0, 4)
    watch = provisional(old)
    assert watch.see(new).verdict == "drifted"
    watch.baseline = freeze_baseline([new], [ACCURACY])
    assert watch.see(new).verdict == "stable"


# --- records --------------------------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_decisions() -> None:
    baseline, runs = freeze_baseline(noisy_runs(20), [ACCURACY]), noisy_runs(6, rate=0.8, seed=3)
    first, second = Watch(baseline), Watch(baseline)
    assert [first.see(run) for run in runs] == [second.see(run) for run in runs]
    assert first.state == second.state


def test_ten_thousand_cases_leave_a_small_state() -> None:
    watch = Watch(freeze_baseline(noisy_runs(20, n=10_000), [ACCURACY]))
    for run in noisy_runs(3, n=10_000, seed=1):
        watch.see(run)
    assert watch.state is not None
    assert len(watch.state.model_dump_json()) < 200_000


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"case_ids": ("a",), "scores": ()}, "1 case ids but 0 scores"),
        ({"case_ids": ("a", "a"), "scores": ((1.0,), (1.0,))}, "listed twice"),
        ({"case_ids": ("a",), "scores": ((float("nan"),),)}, "no finite number"),
        ({"case_ids": ("a",), "scores": ((),)}, "at least 1 item"),
    ],
)
def test_scores_that_are_none_are_refused(scores: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MetricScores(**scores)


def test_no_segment_may_be_called_all() -> None:
    with pytest.raises(ValidationError, match="rename it"):
        make_run("r", {"accuracy": [1.0]}, segments={"c0": "all"})


@pytest.mark.parametrize(
    "values", [{"alpha": 0}, {"alpha": 0.6, "flag_alpha": 0.5}, {"persistence": 0}, {"typo": 1}, {"runs_per_year": -1}]
)
def test_a_policy_without_meaning_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DriftPolicy(**values)
