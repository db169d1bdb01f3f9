"""Judge against people: values by hand and by scipy, and no judge that passes everything is believed."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.stats import binomtest

from touchstone.calibration import Calibration, Rated, calibrate, clopper_pearson, cohens_kappa, settle
from touchstone.label_policy import CalibrationPolicy
from touchstone.labels import Label

POLICY = CalibrationPolicy()
AT = datetime(2026, 11, 23, tzinfo=UTC)


def table(both: int, only_human: int, only_judge: int, neither: int, weight: float | None = None) -> list[Rated]:
    pairs = [(True, True)] * both + [(True, False)] * only_human
    pairs += [(False, True)] * only_judge + [(False, False)] * neither
    return [Rated(human, judge, weight) for human, judge in pairs]


def run(rated: list[Rated], **more: int) -> Calibration:
    return calibrate("relevance", "judge_relevance", rated, POLICY, **more)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (45, 50), (267, 300), (1, 2)])
def test_bounds_are_clopper_and_pearsons(hits: int, n: int) -> None:
    low, high = clopper_pearson(hits, n, 0.95)
    # scipy's one-sided intervals
    assert math.isclose(low, binomtest(hits, n, alternative="greater").proportion_ci(0.95, "exact").low, abs_tol=1e-9)
    assert math.isclose(high, binomtest(hits, n, alternative="less").proportion_ci(0.95, "exact").high, abs_tol=1e-9)


def test_shares_and_kappa_are_those_computed_by_hand() -> None:
    result = run(table(200, 20, 16, 84))
    assert (result.agreement.value, result.agreement.n) == (pytest.approx(284 / 320), 320)
    assert (result.true_pass_rate.value, result.true_pass_rate.n) == (pytest.approx(200 / 220), 220)
    assert (result.true_fail_rate.value, result.true_fail_rate.n) == (pytest.approx(84 / 100), 100)
    expected = (220 * 216 + 100 * 104) / 320**2
    assert result.kappa == pytest.approx((284 / 320 - expected) / (1 - expected))
    assert result.verdict == "calibrated"
    assert not result.weighted


def test_kappas_bound_is_the_delta_methods() -> None:
    counts = np.array([84, 16, 20, 200], dtype=float)  # fail-fail, human fail only, human pass only, pass-pass
    p, n = counts / counts.sum(), counts.sum()

    def kappa(q: np.ndarray) -> float:
        expected = (q[0] + q[1]) * (q[0] + q[2]) + (q[2] + q[3]) * (q[1] + q[3])
        return (q[0] + q[3] - expected) / (1 - expected)

    step = 1e-6
    slope = np.array([(kappa(p + step * e) - kappa(p - step * e)) / (2 * step) for e in np.eye(4)])
    error = math.sqrt((slope @ np.diag(p) @ slope - (slope @ p) ** 2) / n)
    found, low = cohens_kappa([*[False] * 100, *[True] * 220], _judge(84, 16, 20, 200), np.ones(320), 0.95)
    assert found == pytest.approx(kappa(p))
    assert low == pytest.approx(kappa(p) - 1.6448536 * error, abs=1e-5)


def _judge(both_fail: int, only_human_fails: int, only_judge_fails: int, both: int) -> list[bool]:
    return [False] * both_fail + [True] * only_human_fails + [False] * only_judge_fails + [True] * both


@pytest.mark.parametrize("n", [100, 1000])
def test_a_judge_that_passes_everything_has_kappa_0_and_is_not_calibrated(n: int) -> None:
    result = run(table(round(0.89 * n), 0, round(0.11 * n), 0))
    assert result.agreement.value == pytest.approx(0.89)
    assert result.kappa == pytest.approx(0, abs=1e-12)
    assert result.verdict == "not calibrated"
    assert "fails what people fail 0.000" in result.reason


def test_too_few_labels_are_provisional_however_good_they_look() -> None:
    result = run(table(150, 0, 0, 100))
    assert result.verdict == "provisional"
    assert "250 labelled answers of the 300" in result.reason


def test_a_floor_must_be_reached_by_the_bound_and_not_by_the_value() -> None:
    near = run(table(164, 36, 10, 110))  # 0.82 of the passes, at least 0.77
    assert near.true_pass_rate.value == pytest.approx(0.82)
    assert near.verdict == "not calibrated"
    assert "its floor is not shown: passes what people pass" in near.reason


def test_labels_of_one_kind_only_cannot_tell() -> None:
    result = run(table(400, 0, 0, 0))
    assert (result.verdict, result.true_fail_rate.value, result.kappa) == ("unmeasurable", None, None)


def test_a_judge_that_often_gives_no_score_is_unmeasurable() -> None:
    assert run(table(200, 0, 0, 140), n_labelled=400).verdict == "unmeasurable"
    assert run(table(200, 0, 0, 140), n_labelled=350).verdict == "calibrated"
    assert run([], n_labelled=5).verdict == "unmeasurable"


def test_equal_weights_change_nothing_and_unequal_ones_cost_labels() -> None:
    plain, equal = run(table(200, 20, 16, 84)), run(table(200, 20, 16, 84, weight=7.0))
    assert equal.weighted
    assert equal.agreement.low == pytest.approx(plain.agreement.low)
    assert equal.kappa_low == pytest.approx(plain.kappa_low)
    # 100 agreeing answers that stand for 9 each, 100 others for 1 each: 0.9 of the traffic, worth 1000^2/8200 labels
    mixed = run([Rated(True, True, 9.0)] * 100 + [Rated(True, False, 1.0)] * 100)
    assert mixed.agreement.value == pytest.approx(0.9)
    assert mixed.agreement.effective_n == pytest.approx(1000**2 / 8200)
    assert mixed.agreement.low == pytest.approx(clopper_pearson(0.9 * 1000**2 / 8200, 1000**2 / 8200, 0.95)[0])


def test_one_label_without_a_weight_and_none_is_weighted() -> None:
    assert not run([*table(10, 0, 0, 10, weight=2.0), Rated(True, True)]).weighted


def label(by: str, value: object, **more: object) -> Label:
    given = {"id": "tr-1", "source": "trace", "question": "q", "answer": "a", "metric": "m", "at": AT}
    return Label.model_validate(given | {"by": by, "value": value} | more)


def test_the_majority_settles_and_ties_are_dropped_and_counted() -> None:
    said = [label("ada", "pass"), label("bob", "fail"), label("cem", "fail")]
    tied = [label("ada", "pass", id="tr-2"), label("bob", 3, id="tr-2")]
    settled, ties = settle([*said, *tied], 0.75)
    assert [(one.label.id, one.passes) for one in settled] == [("tr-1", False)]
    assert ties == 1


def test_another_answer_to_the_same_case_is_settled_by_itself() -> None:
    said = [label("ada", "pass", source="case"), label("bob", "fail", source="case", answer="another")]
    settled, ties = settle(said, 0.75)
    assert (len(settled), ties) == (2, 0)
