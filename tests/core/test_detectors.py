"""The two detectors: what must hold of their evidence, whatever the items are like."""

from __future__ import annotations

import json
import time
from itertools import product
from typing import Any

import numpy as np
import pytest

from benchmarks.detection import (
    LAWS,
    adaptive_calls,
    adaptive_year,
    delays,
    false_alarms,
    flips,
    years,
)
from touchstone.detectors import pack, unpack
from touchstone.drift import GradedDetector, PassFailDetector
from touchstone.itemprior import ItemModel, combine, fit_priors


def quiet_items(seed: int = 0, n: int = 60, runs: int = 20) -> tuple[Any, Any, Any]:
    """(rng, pass probabilities, calibration)."""
    rng = np.random.default_rng(seed)
    p = rng.beta(3.56, 0.44, n)
    return rng, p, flips(rng, np.tile(p, (runs, 1)))


# --- evidence A: property tests -------------------------------------------------------------------------------


def test_the_null_mean_of_one_step_is_one_by_enumeration() -> None:
    """All 2^n results of one run, each weighted by its probability under "nothing changed"."""
    passes, fails = np.array([20, 18, 3, 11]), np.array([0, 2, 17, 9])
    model = ItemModel.from_counts(passes, fails, fit_priors(passes, fails))
    mean = total = 0.0
    for result in product([0.0, 1.0], repeat=4):
        y = np.array(result)
        terms = model.log_terms(model.group, y, 1 - y)
        null = np.exp(terms[3:6].sum(axis=1)).mean()
        total += null
        mean += null * np.exp(combine(terms.sum(axis=1)))
    assert total == pytest.approx(1.0)
    assert mean == pytest.approx(1.0)


def test_two_steps_have_null_mean_one_too() -> None:
    passes, fails = np.array([19, 4]), np.array([1, 16])
    model = ItemModel.from_counts(passes, fails, fit_priors(passes, fails))
    mean = 0.0
    for result in product([0.0, 1.0], repeat=4):
        y = np.array(result[:2]) + np.array(result[2:])
        terms = model.log_terms(model.group, y, 2 - y)
        mean += np.exp(terms[3:6].sum(axis=1)).mean() * np.exp(combine(terms.sum(axis=1)))
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("phi_above_one", [False, True])
def test_splitting_a_run_into_batches_leaves_the_evidence_unchanged(phi_above_one: bool) -> None:
    rng, p, calibration = quiet_items(1)
    if phi_above_one:
        calibration[::4] = flips(rng, np.tile(p * 0.6, (5, 1)))
    whole, split = PassFailDetector(calibration), PassFailDetector(calibration)
    assert (whole.phi > 1.2) == phi_above_one
    for _ in range(4):
        scores = flips(rng, np.tile(p * 0.9, (2, 1)))
        whole.update(scores)
        for number, columns in enumerate(np.array_split(rng.permutation(60), 5)):
            for repeat, row in enumerate(scores):
                batch = np.full(60, np.nan)
                batch[columns] = row[columns]
                split.update(batch, continues=number + repeat > 0)
        assert split.log_e_value == pytest.approx(whole.log_e_value, abs=1e-9)


def test_relabelling_items_leaves_the_evidence_unchanged() -> None:
    rng, p, calibration = quiet_items(2)
    order = rng.permutation(60)
    one, other = PassFailDetector(calibration), PassFailDetector(calibration[:, order])
    for scores in flips(rng, np.tile(p * 0.8, (5, 1))):
        one.update(scores)
        other.update(scores[order])
    assert other.log_e_value == pytest.approx(one.log_e_value, abs=1e-9)


def test_better_is_the_mirror_image_of_worse() -> None:
    rng, p, calibration = quiet_items(3)
    worse, better = PassFailDetector(calibration), PassFailDetector(1 - calibration, direction="better")
    for scores in flips(rng, np.tile(p * 0.8, (5, 1))):
        assert worse.update(scores) == better.update(1 - scores)
    assert better.log_e_value == worse.log_e_value


@pytest.mark.parametrize("law", list(LAWS))
def test_few_quiet_years_alarm_whatever_the_items_are_like(law: str) -> None:
    """A small form: the benchmark has the figures. 5 % a year is promised; 4 years see 2 alarms with p < 0.02."""
    assert false_alarms(law, 4, seed=11, direction="worse") <= 1 / 4


def test_quiet_years_stay_quiet_when_every_batch_is_looked_at() -> None:
    found = [
        adaptive_year(year, np.random.default_rng(index), None, year.p)
        for law in ("two clusters .98/.40", "near-deterministic")
        for index, year in enumerate(years(law, 2, 5))
    ]
    assert sum(alarm >= 0 for alarm, _ in found) == 0
    assert np.mean([np.mean(calls) for _, calls in found]) < 75  # instead of 150


def test_a_fall_from_89_to_83_is_found_within_days_and_dated() -> None:
    found = delays("Beta .89, ICC .5", lambda p: p * 0.83 / 0.89, 25, seed=7)
    assert found.delays.mean() <= 3
    assert found.missed + found.early == 0
    assert found.exact >= 0.75


def test_adaptive_runs_need_no_more_days_than_fixed_ones() -> None:
    runs, calls = adaptive_calls("Beta .89, ICC .5", lambda p: p * 0.83 / 0.89, 15, seed=8)
    assert runs <= 3
    assert calls <= 400


# --- evidence A: input ----------------------------------------------------------------------------------------


def test_identical_calibration_runs_of_a_replayed_vendor_stay_quiet() -> None:
    answers = (np.arange(150) % 10 > 0).astype(float)
    detector = PassFailDetector(np.tile(answers, (20, 1)))
    assert detector.phi == 1.0
    assert not any(detector.update(answers) for _ in range(60))
    assert detector.e_value < 1e-3


def test_a_replayed_vendor_that_swaps_answers_alarms_at_once() -> None:
    answers = (np.arange(150) % 10 > 0).astype(float)
    detector = PassFailDetector(np.tile(answers, (20, 1)))
    detector.update(answers)
    assert detector.update(np.where(np.arange(150) < 40, 0.0, answers))
    assert detector.change_point() == (1, 1)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_sets_of_any_size_work(n: int) -> None:
    _, p, calibration = quiet_items(4, n)
    for direction in ("worse", "better"):
        detector = PassFailDetector(calibration, direction=direction)
        for _ in range(35):
            detector.update((p > 0.5).astype(float))
        assert np.isfinite(detector.e_value)
        assert detector.run(lambda indices: np.ones(len(indices)))[1] <= 3 * n


def test_ten_thousand_items_update_well_under_a_second_and_persist_small() -> None:
    rng, p, calibration = quiet_items(5, 10_000)
    detector = PassFailDetector(calibration)
    for _ in range(30):
        detector.update(flips(rng, p))
    begun = time.process_time()
    detector.update(flips(rng, p))
    assert time.process_time() - begun < 0.5
    assert len(json.dumps(detector.state())) < 300_000


def test_an_item_that_was_not_measured_says_nothing() -> None:
    rng, p, calibration = quiet_items(6)
    calibration[rng.random(calibration.shape) < 0.1] = np.nan
    detector = PassFailDetector(calibration)
    detector.update(flips(rng, p))
    before = detector.log_e_value
    detector.update(np.full(60, np.nan), continues=True)
    assert detector.log_e_value == before


def test_a_run_without_any_result_adds_no_evidence() -> None:
    _, _, calibration = quiet_items(6)
    detector = PassFailDetector(calibration)
    detector.update(np.full(60, np.nan))
    assert detector.single_run_e_value == pytest.approx(1.0)


def test_all_repeats_of_a_run_count() -> None:
    _, p, calibration = quiet_items(7)
    once, thrice = PassFailDetector(calibration), PassFailDetector(calibration)
    scores = np.where(np.arange(60) < 12, 0.0, (p > 0.3).astype(float))
    once.update(scores)
    thrice.update(np.tile(scores, (3, 1)))
    assert thrice.log_e_value > once.log_e_value


def test_calibration_may_have_repeats() -> None:
    _, _, calibration = quiet_items(8, runs=40)
    flat, deep = PassFailDetector(calibration), PassFailDetector(calibration.reshape(20, 2, 60))
    assert deep.phi == flat.phi
    assert deep.sigma == flat.sigma


def test_runs_that_vary_as_wholes_weigh_less_and_take_one_fixed_pass() -> None:
    rng, p, _ = quiet_items(9)
    calibration = np.stack([flips(rng, np.clip(p + shift, 0, 1)) for shift in np.tile([-0.12, 0.1], 10)])
    detector = PassFailDetector(calibration)
    assert detector.phi > 1.18
    assert detector.run(lambda indices: flips(rng, p[indices]))[1] == 60


@pytest.mark.parametrize(
    ("calibration", "scores", "message"),
    [
        (np.ones(5), None, "shape"),
        (np.ones((0, 5)), None, "shape"),
        (np.full((20, 3), 0.5), None, "GradedDetector"),
        (np.ones((20, 3)), np.ones(4), "3 items"),
        (np.ones((20, 3)), np.array([1, 0, 2]), "GradedDetector"),
    ],
)
def test_what_is_no_pass_or_fail_is_refused(calibration: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PassFailDetector(calibration).update(scores)


def test_a_direction_is_worse_or_better() -> None:
    with pytest.raises(ValueError, match="direction"):
        PassFailDetector(np.ones((20, 3)), direction="sideways")  # pyright: ignore[reportArgumentType]


# --- both: state, weights, change point -----------------------------------------------------------------------


def detectors() -> list[Any]:
    rng, p, calibration = quiet_items(10)
    means = calibration.mean(axis=1)
    return [
        (PassFailDetector(calibration), flips(rng, np.tile(p * 0.95, (40, 1)))),
        (PassFailDetector(calibration, direction="better"), flips(rng, np.tile(p, (40, 1)))),
        (GradedDetector(means), rng.normal(means.mean(), means.std(), 40)),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_persisting_and_reloading_gives_identical_evidence(which: int) -> None:
    kept, runs = detectors()[which]
    reloaded = type(kept).from_state(json.loads(json.dumps(kept.state())))
    for scores in runs:
        kept.update(scores)
        reloaded.update(scores)
        reloaded = type(kept).from_state(json.loads(json.dumps(reloaded.state())))
        assert reloaded.e_value == kept.e_value
        assert reloaded.change_point() == kept.change_point()


def test_the_state_of_another_detector_is_refused() -> None:
    graded = GradedDetector(np.arange(20.0))
    with pytest.raises(ValueError, match="'graded'"):
        PassFailDetector.from_state(graded.state())


def test_a_heavier_run_raises_the_alarm_sooner() -> None:
    (light, runs), (heavy, _) = detectors()[0], detectors()[0]
    light.update(runs[0])
    heavy.update(runs[0], weight=20.0)
    assert heavy.e_value == pytest.approx(20 * light.e_value)
    with pytest.raises(ValueError, match="weight"):
        light.update(runs[0], weight=0.0)


def test_before_the_first_run_there_is_no_evidence_and_no_change_point() -> None:
    detector = PassFailDetector(np.ones((20, 3)))
    assert (detector.e_value, detector.alarm) == (0.0, False)
    with pytest.raises(ValueError, match="no run"):
        detector.change_point()


def test_packing_returns_the_same_array() -> None:
    for array in (np.arange(300).reshape(3, 100), np.array([0.1, np.nan]), np.zeros((0, 4), int)):
        assert np.array_equal(unpack(json.loads(json.dumps(pack(array)))), array, equal_nan=array.dtype.kind == "f")


# --- evidence B -----------------------------------------------------------------------------------------------


def test_graded_evidence_does_not_change_with_the_unit() -> None:
    rng = np.random.default_rng(1)
    calibration, runs = rng.normal(0.8, 0.02, 20), rng.normal(0.77, 0.02, 12)
    for a, b in ((1000.0, 0.0), (3.7, -12.0), (0.001, 5.0)):
        one, other = GradedDetector(calibration), GradedDetector(a * calibration + b)
        for mean in runs:
            one.update(mean)
            other.update(a * mean + b)
        assert other.log_e_value == pytest.approx(one.log_e_value, abs=1e-6)


def test_graded_better_is_the_mirror_image_of_worse() -> None:
    rng = np.random.default_rng(2)
    calibration, runs = rng.normal(0, 1, 20), rng.normal(2, 1, 6)
    better, worse = GradedDetector(calibration, direction="better"), GradedDetector(-calibration)
    assert [better.update(x) for x in runs] == [worse.update(-x) for x in runs]
    assert better.log_e_value == pytest.approx(worse.log_e_value)


def test_quiet_graded_years_stay_quiet() -> None:
    alarms = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        detector = GradedDetector(rng.beta(4, 1, (20, 150)).mean(axis=1))
        alarms += any(detector.update(mean) for mean in rng.beta(4, 1, (365, 150)).mean(axis=1))
    assert alarms <= 1


def test_graded_evidence_has_null_mean_one() -> None:
    """Over calibration and one later run together, as the prior on mean and sigma is invariant."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(4000):
        x = rng.normal(5, 3, 21)
        detector = GradedDetector(x[:20])
        detector.update(x[20])
        found.append(detector.single_run_e_value)
    assert np.mean(found) == pytest.approx(1.0, abs=0.15)


def test_a_graded_shift_of_three_sigma_is_found_within_a_few_runs_and_dated() -> None:
    rng = np.random.default_rng(4)
    detector = GradedDetector(rng.normal(0.8, 0.01, 20))
    days = [detector.update(mean) for mean in [*rng.normal(0.8, 0.01, 30), *rng.normal(0.77, 0.01, 6)]]
    assert not any(days[:30])
    assert days[-1]
    assert abs(detector.change_point()[0] - 30) <= 1


def test_a_constant_calibration_is_neither_blind_nor_infinitely_sensitive() -> None:
    detector = GradedDetector(np.full(20, 0.8))
    assert not any(detector.update(0.8 + 1e-6 * (day % 3 - 1)) for day in range(60))
    assert any(detector.update(0.5) for _ in range(3))
    assert not GradedDetector(np.zeros(20)).update(0.0)


def test_a_floor_under_sigma_limits_the_sensitivity() -> None:
    calibration = 0.8 + 0.0001 * np.sin(np.arange(20))
    sharp, blunt = GradedDetector(calibration), GradedDetector(calibration, sigma_floor=0.01)
    assert [sharp.update(0.79), sharp.update(0.79)][-1]
    assert not [blunt.update(0.79), blunt.update(0.79)][-1]


def test_a_graded_run_takes_its_scores_and_skips_what_was_not_measured() -> None:
    calibration = np.random.default_rng(5).normal(0.8, 0.01, 20)
    by_mean, by_scores = GradedDetector(calibration), GradedDetector(calibration, cases=4)
    by_mean.update(0.75)
    alarm, calls = by_scores.run(lambda indices: np.array([0.7, 0.8, np.nan, 0.75])[indices])
    assert (alarm, calls) == (False, 4)
    assert by_scores.e_value == pytest.approx(by_mean.e_value)
    by_scores.update([np.nan])
    assert by_scores.e_value == pytest.approx(by_mean.e_value)


@pytest.mark.parametrize("calibration", [np.ones(2), np.ones((3, 3)), np.array([1.0, 2.0, np.nan])])
def test_run_means_that_cannot_calibrate_are_refused(calibration: Any) -> None:
    with pytest.raises(ValueError, match="run means"):
        GradedDetector(calibration)
