"""Probes of a vendor: what is learned, what moves the level, what is told, and what says nothing."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from touchstone.bundle import Endpoint, Price
from touchstone.probe_records import (
    Probe,
    ProbeLevel,
    ProbeReport,
    ProbeRun,
    ProbeState,
    VendorFacts,
    probe_fingerprint,
)
from touchstone.probes import CALIBRATION_RUNS, Probed, decide_probe, probe_policy

MODEL = "gpt-4o-2024-11-20"
ABOUT = Probed("support", Endpoint(model=f"openai/{MODEL}"), "support", "f")
UNPINNED = Probed("support", Endpoint(model="openai/gpt-4o", allow_unpinned=True), "support", "f")
FACTS = VendorFacts(
    served_models=(MODEL,), fingerprints=("fp_a",), price=Price(input_per_million=1, output_per_million=2)
)
USUAL = {f"p{number}": "Yes" for number in range(32)}
START = datetime(2026, 3, 1, tzinfo=UTC)


class Vendor:
    """Probe runs one after the other, an hour apart, each decided on what the one before left."""

    def __init__(self, about: Probed = ABOUT, hours_between: float = 1) -> None:
        self.about, self.hours_between = about, hours_between
        self.state: ProbeState | None = None
        self.runs = 0

    def look(self, tokens: dict[str, str] = USUAL, *, announce: bool = True, **fields: object) -> ProbeReport:
        self.runs += 1
        at = (START + timedelta(hours=self.runs * self.hours_between)).isoformat()
        run = ProbeRun.model_validate(
            {"run_key": f"run-{self.runs}", "at": at, "tokens": tokens, "facts": FACTS} | fields
        )
        report, state = decide_probe(self.about, run, self.state, probe_policy(), announce=announce)
        self.state = ProbeState.model_validate_json(state.model_dump_json())  # as a restart would find it
        return report

    def away(self) -> ProbeReport:
        return self.look({}, failures={"vendor_error": 32}, facts=FACTS.model_copy(update={"served_models": ()}))

    def learn(self) -> ProbeReport:
        return [self.look() for _ in range(CALIBRATION_RUNS)][-1]


def changed(count: int, token: str = "No") -> dict[str, str]:
    return USUAL | {f"p{number}": token for number in range(count)}


def test_the_first_day_is_learned_from_and_judges_nothing() -> None:
    vendor = Vendor()
    first = vendor.look(changed(3))
    assert (first.level, first.n_calibration, first.transition) == (ProbeLevel.LEARNING, 1, None)
    for _ in range(CALIBRATION_RUNS - 2):
        vendor.look()
    assert "complete" in vendor.look().reason
    assert vendor.look().level is ProbeLevel.STABLE
    assert vendor.state is not None
    assert vendor.state.reference is not None
    assert vendor.state.reference.usual == USUAL  # not what came once


def test_other_answers_are_detected_once_and_their_end_is_told_once() -> None:
    vendor = Vendor()
    vendor.learn()
    report = vendor.look(changed(8))
    assert (report.level, report.transition) == (ProbeLevel.DETECTED, "detected")
    assert report.usual_share == pytest.approx(24 / 32)
    assert report.changed[0] == ("p0", "Yes", "No")
    assert vendor.look(changed(8)).transition is None
    assert [vendor.look().transition for _ in range(4)] == ["recovered", None, None, None]


def test_one_odd_answer_now_and_then_is_no_change_of_a_vendor_that_has_them() -> None:
    """As often after calibration as in it: 1 % of answers."""
    random, vendor = np.random.default_rng(7), Vendor()
    reports = [
        vendor.look({probe: "No" if random.random() < 0.01 else "Yes" for probe in USUAL}) for _ in range(24 * 5)
    ]
    assert {report.level for report in reports[CALIBRATION_RUNS:]} == {ProbeLevel.STABLE}
    assert any(report.changed for report in reports[CALIBRATION_RUNS:])


def test_few_changed_answers_are_found_by_looking_again() -> None:
    random, vendor = np.random.default_rng(3), Vendor()
    noisy = dict.fromkeys(USUAL, 0.05)
    for _ in range(CALIBRATION_RUNS):
        vendor.look({probe: "No" if random.random() < odd else "Yes" for probe, odd in noisy.items()})
    worse = noisy | {f"p{number}": 0.6 for number in range(5)}
    levels = [
        vendor.look({probe: "No" if random.random() < odd else "Yes" for probe, odd in worse.items()}).level
        for _ in range(24)
    ]
    assert levels.index(ProbeLevel.DETECTED) > 0


def test_an_outage_is_unmeasurable_moves_no_evidence_and_is_not_learned_from() -> None:
    vendor = Vendor()
    assert vendor.away().level is ProbeLevel.UNMEASURABLE
    assert vendor.look().n_calibration == 1
    for _ in range(CALIBRATION_RUNS - 1):
        vendor.look()
    vendor.look(changed(8))
    report = vendor.away()
    assert (report.level, report.transition) == (ProbeLevel.UNMEASURABLE, None)
    assert vendor.look(changed(8)).transition is None  # it was told before the outage


def test_a_pin_that_does_not_hold_is_detected_at_once_also_while_learning() -> None:
    report = Vendor().look(facts=FACTS.model_copy(update={"served_models": ("gpt-4o-2025-03-01",)}))
    assert (report.level, report.transition) == (ProbeLevel.DETECTED, "detected")
    assert "the pin does not hold" in report.reason


def test_of_an_unpinned_model_another_name_than_in_calibration_is_detected() -> None:
    vendor = Vendor(UNPINNED)
    vendor.learn()
    report = vendor.look(facts=FACTS.model_copy(update={"served_models": ("gpt-4o-2025-03-01",)}))
    assert [signal.what for signal in report.signals] == ["served_model"]
    assert report.transition == "detected"
    assert vendor.look().transition == "recovered"


def test_fingerprints_that_come_and_go_are_flagged_once() -> None:
    vendor = Vendor()
    vendor.learn()
    other = FACTS.model_copy(update={"fingerprints": ("fp_b",)})
    both = FACTS.model_copy(update={"fingerprints": ("fp_b", "fp_c")})
    told = [vendor.look(facts=facts).transition for facts in (other, other, both, other, both)]
    assert told == ["flagged", None, "flagged", None, None]


def test_a_price_or_a_date_of_retirement_that_changed_is_flagged() -> None:
    vendor = Vendor()
    vendor.learn()
    dearer = FACTS.model_copy(update={"price": Price(input_per_million=3, output_per_million=2)})
    report = vendor.look(facts=dearer)
    assert (report.level, report.transition) == (ProbeLevel.FLAGGED, "flagged")
    assert "3 / 2 USD" in report.reason
    later = dearer.model_copy(update={"retires": "2027-01-01"})
    assert "2027-01-01" in vendor.look(facts=later).reason


def test_a_retirement_that_comes_near_is_told_once_and_again_when_it_is_past() -> None:
    vendor = Vendor(hours_between=12)
    retiring = FACTS.model_copy(update={"retires": (START.date() + timedelta(days=31)).isoformat()})
    days = []
    for _ in range(2 * 33):
        report = vendor.look(facts=retiring)
        if report.transition:
            days.append(((date.fromisoformat(report.checked_at[:10]) - START.date()).days, report.transition))
    assert days == [(1, "flagged"), (32, "flagged")]


def test_a_model_that_is_gone_is_detected_and_no_outage() -> None:
    vendor = Vendor()
    vendor.learn()
    report = vendor.look(
        {}, failures={"vendor_error": 32}, refused="404: no such model", facts=VendorFacts(price=FACTS.price)
    )
    assert (report.level, report.transition) == (ProbeLevel.DETECTED, "detected")
    assert "gone" in report.reason


def test_a_look_that_does_not_announce_leaves_the_news_to_the_next_that_does() -> None:
    vendor = Vendor()
    vendor.learn()
    silent = vendor.look(changed(8), announce=False)
    assert (silent.level, silent.transition) == (ProbeLevel.DETECTED, None)
    assert vendor.look(changed(8)).transition == "detected"


def test_another_probe_or_another_model_is_another_reference() -> None:
    probes = [Probe(id="a", user="One word?"), Probe(id="b", user="Another?")]
    known = probe_fingerprint("openai/m-2024-01-01", probes)
    assert probe_fingerprint("openai/m-2024-01-01", list(probes)) == known
    assert probe_fingerprint("openai/m-2024-02-01", probes) != known
    assert probe_fingerprint("openai/m-2024-01-01", [probes[0], Probe(id="b", user="Else?")]) != known


def test_a_report_is_json() -> None:
    vendor = Vendor()
    vendor.learn()
    assert json.loads(json.dumps(vendor.look(changed(8)).summary(), allow_nan=False))["level"] == "detected"
