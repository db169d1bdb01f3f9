"""The paired non-inferiority decision: its verdicts, its bound, and that nobody worse gets through too often."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from touchstone.noninferiority import decide, e_values, fewest_cases, lower_bound

ONES = np.ones(150)


def with_drops(count: int, n: int = 150, size: float = 1.0) -> np.ndarray:
    """Old scores of 1; this many of the new ones are lower, spread over the list."""
    new = np.ones(n)
    new[np.linspace(0, n - 1, count).astype(int)] -= size
    return new


def test_equal_scores_on_enough_cases_are_not_inferior() -> None:
    found = decide(ONES[:100], ONES[:100], margin=0.05)
    assert (found.verdict, found.difference, found.needed_cases) == ("not_inferior", 0.0, None)
    assert -0.05 < found.lower_bound < -0.029  # 100 cases without a difference cannot tell more than 1 - 0.05^(1/100)


def test_equal_scores_on_59_cases_pass_a_margin_of_5_points_and_58_cannot() -> None:
    assert fewest_cases(0.05) == 59
    assert decide(ONES[:59], ONES[:59], margin=0.05).verdict == "not_inferior"
    found = decide(ONES[:58], ONES[:58], margin=0.05)
    assert (found.verdict, found.needed_cases) == ("undecided", 59)
    assert "1 more case like these would decide, or a margin of 0.06" in found.reason


def test_many_large_drops_are_inferior() -> None:
    found = decide(with_drops(20), ONES, margin=0.05)
    assert (found.verdict, found.needed_cases) == ("inferior", None)
    assert found.difference == pytest.approx(-20 / 150)
    assert "0.867 against 1.000 over 150 cases" in found.reason


def test_a_few_drops_that_could_be_the_margin_are_undecided_and_more_cases_would_tell() -> None:
    found = decide(with_drops(4), ONES, margin=0.05)
    assert found.verdict == "undecided"
    assert found.needed_cases is not None
    times = -(-found.needed_cases // 150)
    assert times >= 2
    assert decide(np.tile(with_drops(4), times), np.ones(150 * times), margin=0.05).verdict == "not_inferior"


def test_a_drop_beyond_the_margin_on_few_cases_is_undecided_not_inferior() -> None:
    found = decide(with_drops(2, 30), np.ones(30), margin=0.05)
    assert found.verdict == "undecided"
    assert found.needed_cases is not None
    assert found.needed_cases > 30


def test_too_few_cases_are_unmeasurable_whatever_they_say() -> None:
    for new in (np.ones(19), np.zeros(19)):
        found = decide(new, np.ones(19), margin=0.05)
        assert found.verdict == "unmeasurable"
        assert found.needed_cases is not None
        assert found.needed_cases >= 20


def test_no_case_is_unmeasurable_and_has_no_mean() -> None:
    found = decide([], [], margin=0.05)
    assert (found.verdict, found.n, found.mean_new, found.difference, found.lower_bound) == (
        "unmeasurable",
        0,
        None,
        None,
        -1.0,
    )
    assert found.needed_cases == 59


def test_a_clear_gain_has_a_positive_bound() -> None:
    found = decide(np.full(100, 0.9), np.full(100, 0.5), margin=0.02)
    assert found.verdict == "not_inferior"
    assert 0.25 < found.lower_bound < 0.4


def test_a_wider_margin_never_turns_a_pass_into_something_else() -> None:
    verdicts = [decide(with_drops(3), ONES, margin).verdict for margin in (0.02, 0.05, 0.08, 0.1, 0.2, 0.5)]
    assert verdicts == sorted(verdicts, key=["undecided", "not_inferior"].index)
    assert {"undecided", "not_inferior"} == set(verdicts)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.2])
def test_the_verdict_and_the_bound_agree(margin: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        new, old = rng.choice([0.0, 0.5, 1.0], (2, 90), p=[0.05, 0.05, 0.9])
        found = decide(new, old, margin)
        assert (found.verdict == "not_inferior") == (found.lower_bound >= -margin)
        assert found.difference is not None
        assert -1 <= found.lower_bound < found.difference


def test_a_smaller_alpha_asks_for_more() -> None:
    bounds = [lower_bound(np.zeros(100), alpha) for alpha in (0.1, 0.05, 0.01)]
    assert bounds == sorted(bounds, reverse=True)


def test_under_the_worst_allowed_law_the_expected_evidence_is_exactly_one() -> None:
    """All outcomes of six cases that break with the probability of the margin, each with its probability."""
    margin, total = 0.3, 0.0
    for outcome in itertools.product([0.0, -1.0], repeat=6):
        probability = np.prod([margin if broken else 1 - margin for broken in outcome])
        total += probability * e_values(np.array(outcome), [-margin])[0]
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("drops", "drop", "gains"), [(0.05, 1.0, 0.0), (0.10, 1.0, 0.05), (0.10, 0.5, 0.0), (0.15, 0.5, 0.05)]
)
def test_what_is_worse_by_the_margin_passes_in_at_most_one_of_twenty(drops: float, drop: float, gains: float) -> None:
    rng = np.random.default_rng(11)
    for n in (60, 150):
        u = rng.random((1000, n))
        differences = np.where(u < drops, -drop, np.where(u > 1 - gains, drop, 0.0))
        assert np.mean(e_values(differences, [-0.05]) >= 20) <= 0.05


def test_most_releases_that_are_equal_pass_with_150_cases() -> None:
    rng = np.random.default_rng(12)
    u = rng.random((500, 150))
    differences = np.where(u < 0.05, -0.4, np.where(u > 0.95, 0.4, 0.0))
    assert np.mean(e_values(differences, [-0.05]) >= 20) > 0.95


def test_equal_releases_are_called_inferior_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(13)
    new, old = (rng.random((2, 1000, 100)) < 0.8).astype(float)
    certainly_lower = e_values(old - new, [0.0])[:, 0] >= 20
    assert 0 < np.mean(certainly_lower) <= 0.05  # and beyond the margin besides
    first = int(np.flatnonzero(certainly_lower)[0])
    assert decide(new[first], old[first], margin=0.05).verdict == "inferior"


def test_thousands_of_cases_are_decided_by_means_of_neighbours() -> None:
    rng = np.random.default_rng(14)
    old = (rng.random(20_000) < 0.8).astype(float)
    new = np.where(rng.random(20_000) < 0.02, 1 - old, old)
    found = decide(new, old, margin=0.05)
    assert found.verdict == "not_inferior"
    assert found.difference is not None
    assert found.difference - found.lower_bound < 0.01


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        ([1.0, float("nan")], [1.0, 1.0], "new scores"),
        ([1.0, 1.0], [1.0, 5.0], "old scores"),
        ([1.0, 1.0], [1.0], "2 new and 1 old"),
        ([[1.0], [1.0]], [1.0, 1.0], "new scores"),
    ],
)
def test_scores_that_are_no_pairs_of_shares_are_refused(new: list, old: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decide(new, old, margin=0.05)


@pytest.mark.parametrize(("margin", "alpha"), [(0.0, 0.05), (1.0, 0.05), (0.05, 0.0), (float("nan"), 0.05)])
def test_a_margin_or_alpha_outside_0_to_1_is_refused(margin: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        decide(ONES, ONES, margin, alpha)
