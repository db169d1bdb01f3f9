"""The weekly sample: every stratum has a voice, nobody is asked too much, and weights give the traffic back."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from touchstone.errors import BadInput
from touchstone.label_sampling import Candidate, Week, draw, sample_digest

candidates = st.lists(
    st.builds(
        Candidate,
        trace_id=st.integers(0, 400).map(lambda number: f"tr-{number}"),
        segment=st.sampled_from(["billing", "orders", "setup"]),
        arm=st.sampled_from(["champion", "canary"]),
        bundle=st.just("support"),
        refused=st.booleans(),
        judge_score=st.none() | st.floats(0, 1),
    ),
    max_size=120,
    unique_by=lambda one: one.trace_id,
)


@given(candidates, st.integers(1, 60), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_every_stratum_gives_some_none_gives_more_than_it_has_and_the_number_is_kept(
    found: list[Candidate], most: int, minimum: int
) -> None:
    sample = draw(found, most, minimum, "2026-W48")
    strata = Counter(one.stratum for one in found)
    chosen = Counter(one.candidate.stratum for one in sample.chosen)
    assert set(chosen) == set(strata)
    assert all(chosen[name] <= size for name, size in strata.items())
    assert len(sample.chosen) == (len(strata) if len(strata) > most else min(most, len(found)))
    if sum(min(minimum, size) for size in strata.values()) <= most:
        assert all(chosen[name] >= min(minimum, size) for name, size in strata.items())


@given(candidates, st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_the_weights_of_a_stratum_add_up_to_its_size(found: list[Candidate], most: int) -> None:
    sample = draw(found, most, 2, "2026-W48")
    for name, (_, size) in sample.counts.items():
        weights = [one.weight for one in sample.chosen if one.candidate.stratum == name]
        assert math.isclose(math.fsum(weights), size)


@given(candidates, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_same_traffic_gives_the_same_sample_in_whatever_order_it_is_read(found: list[Candidate], random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    first, second = draw(found, 20, 2, "a"), draw(shuffled, 20, 2, "a")
    assert {one.candidate.trace_id for one in first.chosen} == {one.candidate.trace_id for one in second.chosen}
    assert sample_digest(one.candidate.trace_id for one in first.chosen) == sample_digest(
        one.candidate.trace_id for one in second.chosen
    )


def test_another_week_asks_about_other_answers_and_each_is_as_likely() -> None:
    found = [Candidate(f"tr-{n}", "all", "champion", "support", False) for n in range(20)]
    chosen = Counter(one.candidate.trace_id for w in range(2000) for one in draw(found, 5, 1, f"w{w}").chosen)
    # 500 each; the standard deviation is 19.4, and 4.5 of them hold for all 20 with chance 0.9999
    assert all(abs(chosen[one.trace_id] - 500) < 88 for one in found)


def test_weighted_shares_are_those_of_the_traffic_although_small_strata_are_asked_more() -> None:
    common = [Candidate(f"a{n}", "all", "champion", "support", refused=False) for n in range(950)]
    rare = [Candidate(f"b{n}", "all", "champion", "support", refused=True) for n in range(50)]
    sample = draw(common + rare, 50, 20, "w")
    refused = math.fsum(one.weight for one in sample.chosen if one.candidate.refused)
    assert sum(one.candidate.refused for one in sample.chosen) >= 20
    assert math.isclose(refused / math.fsum(one.weight for one in sample.chosen), 0.05)


def test_a_band_is_the_judges_where_it_scored_else_refused_or_answered() -> None:
    bands = [Candidate("t", "s", "a", "b", refused=True, judge_score=score).band for score in (None, 0.2, 0.5, 0.75)]
    assert bands == ["refused", "judged low", "judged middle", "judged high"]
    assert Candidate("t", "s", "a", "b", refused=False).stratum == "s / a b / answered"


def test_a_week_is_an_iso_week_in_utc() -> None:
    week = Week.parse("2026-W01")
    assert (week.start, week.end) == (datetime(2025, 12, 29, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC))
    assert Week.before(datetime(2026, 11, 30, 6, tzinfo=UTC)).name == "2026-W48"  # a Monday morning
    assert Week.of(datetime(2027, 1, 3, 23, tzinfo=UTC)).name == "2026-W53"


@pytest.mark.parametrize("name", ["2026-48", "2026-W54", "2025-W53", "W48", "2026-W00", "x"])
def test_what_is_no_iso_week_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="write it as 2026-W48"):
        Week.parse(name)
