"""The currency: envelopes, bets, and families of e-values."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import integrate, stats

from touchstone.evalues import (
    YearlyBudget,
    alarm_threshold,
    bounded_exp,
    change_point_posterior,
    change_point_set,
    e_bh,
    e_bh_adjusted,
    log_envelope,
    log_paired_sign_e_value,
    log_shift_ratio,
    log_sign_e_value,
    log_sum_exp,
    minimum_detectable_effect,
    smallest_sign_alarm,
)

SHIFTS = np.array([0.75, 1.5, 3.0, 6.0])


def test_the_threshold_is_the_years_runs_over_alpha() -> None:
    assert alarm_threshold(365, 0.05) == pytest.approx(7300)


@pytest.mark.parametrize(("runs", "alpha"), [(0, 0.05), (-1, 0.05), (float("nan"), 0.05), (365, 0), (365, 1)])
def test_a_threshold_without_meaning_is_refused(runs: float, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"runs_per_year|alpha"):
        alarm_threshold(runs, alpha)


def test_events_spend_from_the_same_yearly_budget() -> None:
    budget = YearlyBudget(365, events_per_year=10, event_share=0.2)
    assert 365 * budget.scheduled + 10 * budget.event == pytest.approx(365)
    assert budget.event > budget.scheduled


def test_unplanned_events_have_no_weight() -> None:
    assert (YearlyBudget(365).scheduled, YearlyBudget(365).event) == (1.0, 0.0)


def test_the_envelope_is_the_weighted_sum_of_its_starts() -> None:
    assert np.exp(log_envelope(np.log([2.0, 3.0]), [1.0, 4.0])) == pytest.approx(14)
    assert log_envelope([], []) == -np.inf


def test_the_change_point_is_where_the_evidence_started() -> None:
    posterior = change_point_posterior(np.log([1.0, 96.0, 3.0]), [1, 1, 1])
    assert posterior == pytest.approx([0.01, 0.96, 0.03])
    assert change_point_set(posterior) == (1, 1)
    assert change_point_set([0.25, 0.25, 0.25, 0.25]) == (0, 4)


def test_log_sum_exp_survives_nothing_and_everything() -> None:
    assert log_sum_exp([-np.inf, -np.inf]) == -np.inf
    assert log_sum_exp([1000.0, 1000.0]) == pytest.approx(1000 + np.log(2))
    assert bounded_exp(1e6) == pytest.approx(1e300)


def test_e_bh_rejects_the_k_largest_that_reach_k_over_their_rank() -> None:
    # Of 4 streams the largest needs 4, the two largest 2 each, the three largest 4/3 each.
    assert e_bh([4.1, 0.1, 0.1, 0.1]).tolist() == [True, False, False, False]
    assert e_bh([3.9, 0.1, 0.1, 0.1]).tolist() == [False] * 4
    assert e_bh([2.0, 0.1, 2.5, 0.1]).tolist() == [True, False, True, False]
    assert e_bh([1.0, 1.0, 1.0, 1.0]).all()


def test_one_stream_alone_is_not_adjusted() -> None:
    assert e_bh_adjusted([0.7]).tolist() == [0.7]
    assert e_bh_adjusted([]).size == 0


@pytest.mark.parametrize("side", ["worse", "better", "both"])
def test_the_sign_e_value_has_mean_one_under_fair_coins(side) -> None:
    for pairs in (0, 1, 2, 7, 30):
        mean = sum(comb(pairs, k) / 2**pairs * np.exp(log_sign_e_value(k, pairs - k, side)) for k in range(pairs + 1))
        assert mean == pytest.approx(1.0)


def test_the_sign_bet_is_the_uniform_mixture_over_coins_that_favour_worse() -> None:
    expected, _ = integrate.quad(lambda theta: 2 * theta**9 * (1 - theta) ** 3 * 2**12, 0.5, 1)
    assert np.exp(log_sign_e_value(9, 3)) == pytest.approx(expected)


def test_the_sign_test_is_one_sided_and_its_sides_mirror_each_other() -> None:
    assert log_sign_e_value(0, 142) < 0 < log_sign_e_value(142, 0)
    assert log_sign_e_value(3, 40, "better") == log_sign_e_value(40, 3, "worse")
    assert log_sign_e_value(0, 5000) == -np.inf


def test_ties_and_unmeasured_cases_carry_nothing() -> None:
    now = [0.1 + 0.2, 1.0, np.nan, 0.0]
    before = [0.3, 1.0, 1.0, np.nan]
    assert log_paired_sign_e_value(now, before) == 0.0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        log_sign_e_value(-1, 2)


def test_sixteen_one_sided_pairs_are_the_fewest_that_act_in_one_run() -> None:
    assert smallest_sign_alarm(7300) == 16


def test_the_minimum_detectable_effect_matches_the_published_table() -> None:
    sigma = np.sqrt(0.89 * 0.11 * 0.5)
    points = [100 * minimum_detectable_effect(sigma, n, 1, 7, 7300) for n in (50, 150, 500)]
    assert points == pytest.approx([6.0, 3.5, 1.9], abs=0.06)


def test_more_items_and_more_repeats_see_smaller_shifts() -> None:
    few = minimum_detectable_effect(0.2, 100, 1, 7, 7300)
    assert minimum_detectable_effect(0.2, 400, 1, 7, 7300) == pytest.approx(few / 2)
    assert minimum_detectable_effect(0.2, 100, 4, 7, 7300) == pytest.approx(few / 2)


@pytest.mark.parametrize(("m", "new", "mean"), [(3, 1, 0.5), (20, 1, 2.5), (20, 30, -1.0), (20, 8, 4.0)])
def test_the_shift_ratio_is_the_ratio_of_marginal_likelihoods(m: int, new: int, mean: float) -> None:
    """Against quadrature over sigma, mu integrated out by hand."""
    x = mean + 0.1 * np.arange(new)
    calibration = stats.norm.ppf((np.arange(m) + 0.5) / m)
    calibration /= calibration.std(ddof=1)
    data, last = np.concatenate([calibration, x]), np.arange(m + new) >= m

    def log_marginal(shift: float) -> float:
        def log_density(log_sigma: float) -> float:
            z = data / np.exp(log_sigma) - shift * last
            return -(m + new - 1) * log_sigma - ((z - z.mean()) ** 2).sum() / 2

        grid = np.linspace(-5, 5, 2_001)
        values = np.array([log_density(s) for s in grid])
        return float(log_sum_exp(values))

    expected = log_sum_exp([log_marginal(d) - log_marginal(0.0) for d in SHIFTS]) - np.log(4)
    found = log_shift_ratio(m, np.array([new]), np.array([x.sum()]), np.array([(x**2).sum()]), SHIFTS)
    assert found[0] == pytest.approx(float(expected), abs=1e-6)


def test_e_bh_keeps_its_promise_whatever_the_dependence() -> None:
    """False discovery rate at most alpha: with no true drift, any rejection counts."""
    rng = np.random.default_rng(3)
    common = rng.random(20_000) < 0.05
    streams = np.where(common[:, None], 20.0, 0.0) * 0.05 * np.ones(5)  # scaled: 1 is a stream's own alarm
    rejected = [bool(e_bh(row).any()) for row in streams[:4000]]
    assert np.mean(rejected) <= 0.06


def test_enumerated_families_are_monotone_in_each_e_value() -> None:
    for row in product([0.2, 1.0, 2.0, 5.0], repeat=3):
        raised = (row[0] * 2, *row[1:])
        assert (e_bh_adjusted(raised) >= e_bh_adjusted(row) - 1e-12).all()
