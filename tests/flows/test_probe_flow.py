"""Probes of the emulated vendor, over HTTP, through the vendor adapter and the ledger."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest

from flows.probe import conduct, final_state
from tasks.announce_probe import event_payload, markdown
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.probes import ask, decide_and_record, plan_probe
from tests.conftest import Project, VendorControl
from touchstone.errors import BadInput
from touchstone.ledger import EventKind
from touchstone.probe_records import ProbeLevel, ProbeReport
from touchstone.probes import CALIBRATION_RUNS, probe_policy

MODEL = "extractive-2026-01-15"


def look(**options: Any) -> ProbeReport:
    return conduct(load_settings(), "support", "support", **options)


def learned() -> None:
    """A day of looks; the vendor is asked once, for the emulator answers a probe the same each time."""
    settings = load_settings()
    plan = plan_probe(settings, "support", "support")
    run = ask(settings, plan)
    for number in range(CALIBRATION_RUNS):
        hour = run.model_copy(update={"run_key": f"{run.run_key}-{number}"})
        decide_and_record(settings, plan, hour, probe_policy(), announce=True)


def test_a_silent_swap_behind_the_same_name_is_detected_recorded_and_told(
    project: Project, vendor: VendorControl
) -> None:
    learned()
    quiet = look()
    assert (quiet.level, quiet.calls, quiet.n_answered) == (ProbeLevel.STABLE, 32, 32)
    assert quiet.cost_usd == pytest.approx(0.00024, rel=0.1)
    assert final_state(quiet).is_completed()
    vendor.put("aliases", {MODEL: f"{MODEL}-lite"})
    found = look()
    assert (found.level, found.transition) == (ProbeLevel.DETECTED, "detected")
    assert found.facts.served_models == (MODEL,)  # what the vendor says of itself shows nothing
    assert (final_state(found).name, final_state(found).is_failed()) == ("Drifted", True)
    assert "| `plans` | `I` | `The` |" in markdown(found)
    payload = event_payload(found)
    assert payload["event"] == "touchstone.probe.detected"
    assert json.loads(json.dumps(payload))["bundle"] == "support"
    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        events = ledger.events(EventKind.PROBE_CHECKED)
    assert len(events) == CALIBRATION_RUNS + 2
    assert {"bundle", "level", "transition", "reason", "cost_usd"} <= events[-1].payload.keys()
    assert events[-1].payload["transition"] == "detected"
    vendor.put("aliases", {MODEL: None})
    assert look().transition == "recovered"


def test_one_token_is_all_that_is_asked_for(project: Project, vendor: VendorControl) -> None:
    settings = load_settings()
    run = ask(settings, plan_probe(settings, "support", "support"))
    assert set(map(len, map(str.split, run.tokens.values()))) == {1}
    assert run.failures == {}


def test_a_vendor_that_is_away_is_unmeasurable_and_the_command_says_so(
    project: Project, vendor: VendorControl, touchstone: Any
) -> None:
    vendor.fault("server_error", status=503)
    code, found = touchstone("probe", "--json")
    assert (code, found["level"], found["n_answered"]) == (3, "unmeasurable", 0)
    assert "503" in found["reason"] or "ServiceUnavailable" in found["reason"]
    vendor.heal()
    assert touchstone("probe", "--json")[1]["n_calibration"] == 1


def test_a_retired_model_is_detected(project: Project, vendor: VendorControl, touchstone: Any) -> None:
    vendor.fault("deprecated")
    code, found = touchstone("probe", "--json")
    assert (code, found["level"]) == (1, "detected")
    assert "gone" in found["reason"]


def test_relearning_forgets_what_was_usual(project: Project, vendor: VendorControl, touchstone: Any) -> None:
    learned()
    vendor.put("aliases", {MODEL: f"{MODEL}-lite"})
    assert touchstone("probe", "--json")[0] == 1
    code, found = touchstone("probe", "--relearn", "--json")
    assert (code, found["level"], found["n_calibration"]) == (0, "learning", 1)
    assert touchstone("probe", "--json")[1]["n_calibration"] == 2


def test_a_golden_set_without_probes_is_asked_its_own_questions(project: Project, vendor: VendorControl) -> None:
    cases = [{"id": f"c{number}", "question": f"Is {number} a number?"} for number in range(40)]
    settings, own = load_settings(), project.golden_set("own", cases)
    plan = plan_probe(settings, "support", own)
    assert [probe.id for probe in plan.probes] == [f"c{number}" for number in range(32)]
    assert ask(settings, plan).failures == {}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a"}'], "probes.jsonl:1: field user"),
        (['{"id": "a", "user": "x"}', '{"id": "a", "user": "y"}'], "probes.jsonl:2: field id: 'a' is the id of line 1"),
        (['{"id": "a", "user": "x"}'], "1 probes; at least 8"),
    ],
)
def test_probes_that_cannot_be_used_are_named(project: Project, lines: list[str], message: str) -> None:
    own = project.golden_set("own", [{"id": "c", "question": "Well?"}])
    project.write(f"{own}/probes.jsonl", "\n".join(lines))
    with pytest.raises(BadInput, match=message):
        plan_probe(load_settings(), "support", own)


def test_an_app_of_ones_own_has_no_vendor_to_probe(project: Project) -> None:
    project.write("bundles/app.yaml", {"name": "app", "target": {"http": "http://127.0.0.1:1/ask"}})
    with pytest.raises(BadInput, match="an app of your own"):
        plan_probe(load_settings(), "app", "support")
