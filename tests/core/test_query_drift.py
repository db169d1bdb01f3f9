"""Query drift: figures without sampling bias, few false flags, real shifts found; levels, persistence, recovery."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from touchstone.drift import Verdict
from touchstone.query_drift import (
    QueryDriftDecision,
    QueryDriftState,
    Transition,
    decide_query_drift,
    farthest_queries,
    judge_window,
    windows_until,
)
from touchstone.query_shift import ProjectionShift, QueryShift, measure_shift, nearest_similarity, stability_index
from touchstone.retrieval_config import QueryDriftPolicy

POLICY = QueryDriftPolicy()
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOPICS, DIMENSION = 12, 48

Floats = NDArray[np.float64]


class Questions:
    """Unit vectors of questions around the centres of topics, with a direction that all share, as texts have."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        centres = self.rng.normal(size=(TOPICS, DIMENSION)) + 1.5 * self.rng.normal(size=DIMENSION)
        self._centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def ask(self, count: int, topics: range) -> Floats:
        near = self._centres[self.rng.choice(list(topics), count)]
        rows = near + 0.8 * self.rng.normal(size=near.shape) / np.sqrt(DIMENSION)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def with_new_topic(self, count: int, share: float, known: range, new: range) -> Floats:
        asked_new = round(count * share)
        return np.vstack([self.ask(count - asked_new, known), self.ask(asked_new, new)])


@pytest.mark.parametrize(("reference", "newest"), [(1_000, 100), (100, 100), (1_000, 300), (1_000, 1_000)])
def test_identical_traffic_is_hardly_ever_flagged(reference: int, newest: int) -> None:
    questions = Questions(seed=newest + reference)
    known = range(TOPICS)
    shifts = [measure_shift(questions.ask(reference, known), questions.ask(newest, known), POLICY) for _ in range(8)]
    assert [judge_window(shift, POLICY) for shift in shifts] == [Verdict.STABLE] * 8
    if newest == 100:  # the figures as computed would have flagged each of these windows
        assert all(max(line.psi for line in shift.projections) > POLICY.psi_flag for shift in shifts)


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("newest", [300, 1_000])
def test_a_new_topic_is_found(share: float, newest: int) -> None:
    known, new = range(TOPICS - 1), range(TOPICS - 1, TOPICS)
    for seed in range(2):
        questions = Questions(seed)
        shifted = questions.with_new_topic(newest, share, known, new)
        shift = measure_shift(questions.ask(1_000, known), shifted, POLICY)
        assert shift.is_significant
        assert judge_window(shift, POLICY) in (
            {Verdict.DRIFTED} if share == 0.4 else {Verdict.FLAGGED, Verdict.DRIFTED}
        )


@pytest.mark.parametrize("newest", [100, 300, 1_000])
def test_all_topics_replaced_is_beyond_the_limit_that_acts(newest: int) -> None:
    questions = Questions(seed=5)
    shift = measure_shift(questions.ask(1_000, range(6)), questions.ask(newest, range(6, TOPICS)), POLICY)
    assert judge_window(shift, POLICY) is Verdict.DRIFTED
    assert shift.psi > 1


def test_under_no_change_the_test_rejects_as_often_as_it_says() -> None:
    questions = Questions(seed=6)
    known = range(TOPICS)
    tests = [measure_shift(questions.ask(60, known), questions.ask(40, known), POLICY) for _ in range(100)]
    for p in ([t.centroid_p for t in tests], [t.psi_p for t in tests]):
        assert 0.1 < np.mean(np.array(p) <= 0.2) < 0.32
        assert 0.36 < np.mean(np.array(p) <= 0.5) < 0.64


def test_the_cosine_has_no_sampling_bias() -> None:
    questions = Questions(seed=7)
    pairs = [(questions.ask(100, range(TOPICS)), questions.ask(100, range(TOPICS))) for _ in range(20)]
    shifts = [measure_shift(*pair, POLICY) for pair in pairs]
    raw = np.mean([shift.centroid_cosine_raw for shift in shifts])
    corrected = np.mean([shift.centroid_cosine or 0 for shift in shifts])  # at most 1 each, so a little below 1
    assert raw < 0.99 < 0.997 < corrected


def test_the_expected_psi_of_a_fixed_projection_is_that_of_two_samples() -> None:
    """(bins - 1) (1/m + 1/n), the first order of the mean of PSI when nothing changed."""
    questions = Questions(seed=8)
    shift = measure_shift(questions.ask(1_000, range(TOPICS)), questions.ask(500, range(TOPICS)), POLICY)
    assert shift.projections[0].expected == pytest.approx(9 * (1 / 1_000 + 1 / 500), rel=0.25)
    assert shift.projections[-1].expected > 1.5 * shift.projections[0].expected  # chosen to separate the two


def test_psi_counts_both_windows_in_the_bins_of_the_reference() -> None:
    reference = np.arange(100.0)[None]  # ten in each bin, edges at 10, 20, ...
    newest = np.concatenate([np.full(50, 5.0), np.full(50, 95.0)])[None]
    p = np.full(10, 10.5) / 105
    q = (np.array([50, 0, 0, 0, 0, 0, 0, 0, 0, 50]) + 0.5) / 105
    assert stability_index(reference, newest)[0] == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    assert stability_index(reference, reference)[0] == pytest.approx(0)
    far_outside = np.full((1, 100), 1e6)
    assert np.isfinite(stability_index(reference, far_outside)).all()


def test_the_unit_of_a_projection_does_not_matter_to_psi() -> None:
    rng = np.random.default_rng(9)
    reference, newest = rng.normal(size=(2, 300)), rng.normal(0.5, 1, size=(2, 200))
    assert stability_index(3 * reference + 1, 3 * newest + 1) == pytest.approx(stability_index(reference, newest))


def test_one_question_asked_again_and_again_is_stable() -> None:
    same = np.tile(Questions().ask(1, range(1)), (200, 1))
    shift = measure_shift(same[:120], same[120:], POLICY)
    assert judge_window(shift, POLICY) is Verdict.STABLE
    assert shift.centroid_cosine == pytest.approx(1)
    assert (shift.psi, shift.spread) == (pytest.approx(0), pytest.approx(0))


def test_popular_questions_that_repeat_are_stable_however_often_they_are_drawn() -> None:
    questions = Questions(seed=10)
    asked = questions.ask(40, range(TOPICS))
    share = 1 / np.arange(1, 41)
    for _ in range(10):
        rows = questions.rng.choice(40, 1_300, p=share / share.sum())
        assert judge_window(measure_shift(asked[rows[:1_000]], asked[rows[1_000:]], POLICY), POLICY) is Verdict.STABLE


def test_queries_in_all_directions_have_no_centroid_and_no_alarm() -> None:
    one = np.eye(4)[np.arange(100) % 4] * np.where(np.arange(100) < 50, 1, -1)[:, None]
    shift = measure_shift(one, one, POLICY)
    assert shift.centroid_cosine is None
    assert judge_window(shift, POLICY) is Verdict.STABLE


def test_spread_is_the_distance_to_the_own_centroid() -> None:
    questions = Questions(seed=11)
    narrow, broad = questions.ask(500, range(1)), questions.ask(500, range(TOPICS))
    shift = measure_shift(broad, narrow, POLICY)
    centre = broad.mean(axis=0)
    distance = 1 - (broad @ centre / np.linalg.norm(centre)).mean()
    assert shift.reference_spread == pytest.approx(distance, abs=0.01)
    assert shift.spread_ratio is not None
    assert shift.spread_ratio < 0.8


def test_the_same_windows_give_the_same_answer() -> None:
    questions = Questions(seed=12)
    reference, newest = questions.ask(200, range(6)), questions.ask(150, range(5, TOPICS))
    first = measure_shift(reference, newest, POLICY)
    assert first == measure_shift(reference, newest, POLICY)
    assert first.permutations > measure_shift(reference, reference, POLICY).permutations  # spared when there is no need


# --- the decision ---


def shift_of(cosine: float | None = 1.0, psi: float = 0.0, p: float = 0.0005) -> QueryShift:
    return QueryShift(
        n=400,
        reference_n=1_000,
        centroid_cosine=cosine,
        centroid_cosine_raw=0.97,
        centroid_p=p,
        spread=0.5,
        reference_spread=0.5,
        projections=(ProjectionShift(name="direction between the two centroids", psi=psi + 0.05, expected=0.05),),
        psi_p=p,
        permutations=999,
    )


QUIET, FLAG, ACT = shift_of(p=0.4), shift_of(psi=0.15), shift_of(psi=0.3)


def check(
    shift: QueryShift | None,
    state: QueryDriftState | None = None,
    at: datetime = NOON,
    policy: QueryDriftPolicy = POLICY,
) -> tuple[QueryDriftDecision, QueryDriftState]:
    windows = windows_until(at, policy).model_copy(update={"n": shift.n if shift else 7, "reference_n": 1_000})
    return decide_query_drift(windows, shift, state, policy)


def run(*shifts: QueryShift | None, policy: QueryDriftPolicy = POLICY) -> list[QueryDriftDecision]:
    state, decisions = None, []
    for day, shift in enumerate(shifts):
        decision, state = check(shift, state, NOON + timedelta(days=day), policy)
        decisions.append(decision)
    return decisions


def levels(decisions: list[QueryDriftDecision]) -> list[str]:
    return [decision.verdict.value for decision in decisions]


def told(decisions: list[QueryDriftDecision]) -> list[str]:
    return [decision.transition.value for decision in decisions if decision.transition]


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (shift_of(), "stable"),
        (shift_of(cosine=0.89), "flagged"),
        (shift_of(cosine=0.84), "drifted"),
        (shift_of(psi=0.11), "flagged"),
        (shift_of(psi=0.21), "drifted"),
        (shift_of(cosine=0.89, psi=0.21), "drifted"),
        (shift_of(cosine=None, psi=0.11), "flagged"),
        (shift_of(cosine=0.5, psi=0.9, p=0.01), "stable"),  # by chance, at this size of the windows
    ],
)
def test_one_window_is_judged_by_limits_and_by_chance(shift: QueryShift, verdict: str) -> None:
    assert judge_window(shift, POLICY).value == verdict


def test_a_flag_comes_at_once_and_drift_only_when_it_persists() -> None:
    decisions = run(QUIET, ACT, ACT, ACT, ACT)
    assert levels(decisions) == ["stable", "flagged", "flagged", "drifted", "drifted"]
    assert told(decisions) == ["flagged", "drifted"]


def test_an_interrupted_row_begins_anew() -> None:
    assert levels(run(ACT, ACT, FLAG, ACT, ACT, ACT))[-2:] == ["flagged", "drifted"]
    assert "drifted" not in levels(run(ACT, ACT, QUIET, ACT, ACT, QUIET))


def test_with_one_window_it_drifts_at_once() -> None:
    decisions = run(ACT, QUIET, policy=QueryDriftPolicy(windows=1))
    assert levels(decisions) == ["drifted", "stable"]
    assert told(decisions) == ["drifted", "recovered"]


def test_recovery_is_told_once_and_needs_quiet_windows_in_a_row() -> None:
    decisions = run(ACT, ACT, ACT, QUIET, QUIET, FLAG, QUIET, QUIET, QUIET, QUIET)
    assert levels(decisions)[5:] == ["drifted", "drifted", "drifted", "stable", "stable"]
    assert told(decisions) == ["flagged", "drifted", "recovered"]
    assert "again like those of the reference" in decisions[-2].reason


def test_a_flag_falls_back_silently() -> None:
    decisions = run(FLAG, QUIET, QUIET, QUIET)
    assert levels(decisions) == ["flagged", "flagged", "flagged", "stable"]
    assert told(decisions) == ["flagged"]


def test_a_level_that_comes_and_goes_makes_no_storm_of_notices() -> None:
    assert told(run(*[FLAG, QUIET] * 20)) == ["flagged"]
    assert told(run(ACT, ACT, ACT, *[FLAG, QUIET, ACT] * 10)) == ["flagged", "drifted"]


def test_too_few_queries_are_unmeasurable_and_move_nothing() -> None:
    state = QueryDriftState(level=Verdict.FLAGGED, acting=2, counted_until=NOON - timedelta(days=1))
    decision, after = check(None, state)
    assert (decision.verdict, decision.counted, decision.transition) == (Verdict.UNMEASURABLE, False, None)
    assert after == state
    assert "7 production queries in the newest window (2026-11-19 12:00 to 2026-11-20 12:00)" in decision.reason
    assert "query_drift.minimum_queries is 100" in decision.reason
    assert levels(run(ACT, ACT, None, ACT)) == ["flagged", "flagged", "unmeasurable", "drifted"]


def reference_ends(*found: str, days: float = 5) -> list[float]:
    """Days between the reference and the newest window, for each day of "act", "flag" or "quiet"."""
    policy, state, gaps = QueryDriftPolicy(reference_days=days, windows=2), None, []
    for day, name in enumerate(found):
        windows = windows_until(NOON + timedelta(days=day), policy, state)
        shift = {"act": ACT, "flag": FLAG, "quiet": QUIET}[name]
        _, state = decide_query_drift(windows.model_copy(update={"n": 400, "reference_n": 1_000}), shift, state, policy)
        assert windows.reference_end - windows.reference_start == timedelta(days=days)
        gaps.append((windows.start - windows.reference_end) / timedelta(days=1))
    return gaps


def test_the_reference_holds_no_window_that_drifted_until_it_is_long_gone() -> None:
    assert reference_ends("quiet", "flag", "quiet") == [0, 0, 0]
    assert reference_ends("quiet", "act", *["quiet"] * 8) == [0, 0, 1, 2, 3, 4, 5, 0, 0, 0]
    assert reference_ends("act", "act", *["quiet"] * 7) == [0, 1, 2, 3, 4, 5, 6, 0, 0]


def test_a_drift_that_stays_for_a_whole_reference_window_becomes_the_new_normal() -> None:
    assert reference_ends(*["act"] * 6, "quiet", "quiet") == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_second_look_at_the_same_window_counts_no_second_time() -> None:
    _, state = check(ACT)
    for hours in (0, 1, 12, 17):
        decision, after = check(ACT, state, NOON + timedelta(hours=hours))
        assert (decision.counted, decision.transition, after) == (False, None, state)
        assert "second look" in decision.reason
    for hours in (18, 23, 25, 60):  # a schedule may be late, and a day of summer time has 23 hours
        decision, after = check(ACT, state, NOON + timedelta(hours=hours))
        assert (decision.counted, after.acting) == (True, 2)


def test_the_reason_says_figures_limits_and_sizes() -> None:
    reason = run(shift_of(cosine=0.843, psi=0.234))[0].reason
    for part in (
        "0.843",
        "act < 0.85",
        "0.234",
        "act > 0.2",
        "direction between",
        "400 queries against 1000",
        "acts once (3 make it drifted)",
    ):
        assert part in reason
    assert "chance alone gives as much (p = 0.01)" in run(shift_of(psi=0.9, p=0.01))[0].reason


def test_examples_are_the_queries_least_like_any_of_the_reference() -> None:
    questions = Questions(seed=13)
    reference, newest = questions.ask(50, range(3)), questions.ask(30, range(3))
    newest[4] = newest[9] = -reference.mean(axis=0) / np.linalg.norm(reference.mean(axis=0))
    texts = [f"question {number}" for number in range(30)]
    texts[4] = texts[9] = "  something\nelse " + 300 * "x"
    far = farthest_queries(texts, newest, reference)
    assert far[0].text.startswith("something else xxx")
    assert len(far[0].text) <= 200
    assert len({query.text for query in far}) == 5
    assert [query.similarity for query in far] == sorted(query.similarity for query in far)
    assert far[0].similarity == pytest.approx(nearest_similarity(reference, newest).min(), abs=0.001)


@pytest.mark.parametrize(
    ("query", "private"),
    [
        ("my api key is sk-abcDEF1234567890abcdef, why is it refused?", "sk-abcDEF"),
        ("please write to jane.doe@mail.example.com about my order", "jane.doe"),
    ],
)
def test_examples_show_no_secret_and_no_address(query: str, private: str) -> None:
    text = farthest_queries([query], np.eye(1, 4), np.eye(2, 4))[0].text
    assert private not in text
    assert "[" in text


def test_a_decision_and_its_state_survive_json() -> None:
    decision, state = check(ACT)
    assert QueryDriftDecision.model_validate_json(decision.model_dump_json()) == decision
    assert QueryDriftState.model_validate(state.model_dump(mode="json")) == state
    assert decision.transition is Transition.FLAGGED
