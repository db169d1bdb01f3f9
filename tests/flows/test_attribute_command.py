"""`touchstone attribute` from end to end: what fell between two real runs, replayed on the emulated vendor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from flows.attribution import choose_runs
from flows.golden_eval import conduct
from tasks.announce_attribution import markdown
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.plan import EvalRequest, plan_eval
from tests.conftest import Project, VendorControl
from touchstone.attribution_records import AttributionReport
from touchstone.errors import BadInput
from touchstone.ledger import EventKind

OPEN = "Context: Larkvane opens at 9. It closes at 17.\nQuestion: {question}"
POLITE = "Context: Larkvane opens at 9. It closes at 17.\nBe polite.\nQuestion: {question}"
WRONG = "Context: Larkvane opens at 10. It closes at 17.\nQuestion: {question}"
QUESTIONS = [f"When does Larkvane open on day {number}?" for number in range(14)]
CASES = [{"id": f"case-{n:02}", "question": text, "expect": {"contains": ["9"]}} for n, text in enumerate(QUESTIONS)]


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[VendorControl]:
    """An emulated vendor with a snapshot `hours-wrong-2026-01-15` that answers every question falsely."""
    lines = [
        {"model": "hours-wrong-2026-01-15", "prompt": prompt.format(question=question), "answer": "It opens at 10."}
        for question in QUESTIONS
        for prompt in (OPEN, POLITE, WRONG)
    ]
    recording = tmp_path / "wrong.jsonl"
    recording.write_text("\n".join(json.dumps(line) for line in lines))
    with running(EmulatorOptions(recordings=(recording,))) as url:
        yield VendorControl(url)


class Hours:
    """A project whose bundle `hours` changes between runs."""

    def __init__(self, project: Project, vendor: VendorControl, touchstone: Any) -> None:
        self.project, self.vendor, self._touchstone = project, vendor, touchstone
        self.dataset = project.golden_set("hours", CASES)

    def run(self, prompt: str = OPEN, dataset: str = "", **fields: Any) -> str:
        """One eval of the bundle as it is then; without MLflow, which no attribution looks at."""
        self.project.prompt_bundle("hours", self.vendor, prompt={"user": prompt}, **fields)
        plan = plan_eval(load_settings(), EvalRequest(bundle="hours", dataset=dataset or self.dataset))
        return asyncio.run(conduct(plan)).run_key

    def attribute(self, *arguments: str) -> tuple[int, Any]:
        return self._touchstone("attribute", "--json", *arguments)

    def swap_silently(self) -> None:
        self.vendor.put("aliases", {"extractive-2026-01-15": "hours-wrong-2026-01-15"})


@pytest.fixture
def hours(project: Project, vendor: VendorControl, touchstone: Any) -> Hours:
    return Hours(project, vendor, touchstone)


def test_the_prompt_is_named_beside_a_harmless_new_model_and_the_ledger_keeps_it(hours: Hours) -> None:
    before, after = hours.run(), hours.run(WRONG, model="openai/extractive-2026-02-20")
    calls = hours.vendor.counters()["calls"]
    code, report = hours.attribute("--before", before, "--after", after)
    assert (code, report["culprit"], report["decision"]["culprits"]) == (0, "prompt", ["prompt"])
    assert report["calls"] == hours.vendor.counters()["calls"] - calls == 36
    assert (report["fell"], report["mean_before"], report["mean_after"]) == (14, 1, 0)
    with closing(Ledger(f"sqlite:///{hours.project.state / 'ledger.db'}", "default")) as ledger:
        event = ledger.latest(EventKind.ATTRIBUTION_DECIDED, "attribution:hours")
        assert event is not None
        assert (event.payload["culprits"], event.payload["metric"]) == (["prompt"], "ok")
        stored = AttributionReport.model_validate_json(ledger.content(event))
    assert "| prompt | inline | inline (edited) | 12 | 12 of 12 |" in markdown(stored)


def test_a_model_that_moved_behind_its_name_is_named_by_elimination(hours: Hours) -> None:
    hours.run()
    hours.swap_silently()
    hours.run(POLITE)
    code, report = hours.attribute()  # the latest run, and the last good one before it
    assert (code, report["culprit"], report["decision"]["by_elimination"]) == (0, "model", True)


def test_a_fall_that_has_passed_is_undecided_and_pays_for_no_swap(hours: Hours) -> None:
    before = hours.run()
    hours.swap_silently()
    after = hours.run(POLITE)
    hours.vendor.put("aliases", {"extractive-2026-01-15": None})
    code, report = hours.attribute("--before", before, "--after", after)
    assert (code, report["culprit"], report["calls"]) == (3, "undecided", 10)
    assert "does not fail any more" in report["decision"]["reason"]


def test_replays_are_no_runs_and_the_runs_stay_as_they_were(hours: Hours, touchstone: Any) -> None:
    before, after = hours.run(), hours.run(WRONG)
    hours.attribute("--before", before, "--after", after)
    assert {run["run_key"] for run in touchstone("eval", "show", "--json")[1]["runs"]} == {before, after}


def test_too_few_calls_to_decide_are_told_before_any_is_made(hours: Hours) -> None:
    before, after = hours.run(), hours.run(WRONG)
    calls = hours.vendor.counters()["calls"]
    code, message = hours.attribute("--before", before, "--after", after, "--max-calls", "10")
    assert (code, hours.vendor.counters()["calls"]) == (4, calls)
    assert "10 calls cannot decide" in message["error"]


def test_a_spend_cap_that_is_too_small_is_kept_and_is_exit_code_4(hours: Hours) -> None:
    before, after = hours.run(), hours.run(WRONG)
    code, report = hours.attribute("--before", before, "--after", after, "--max-cost", "0.0022")
    assert (code, report["culprit"], report["stopped_by"]) == (4, "undecided", "cost")
    assert report["cost_usd"] <= 0.0022


def test_a_vendor_that_is_away_is_unmeasurable(hours: Hours) -> None:
    before, after = hours.run(), hours.run(WRONG)
    hours.vendor.fault("content_filter")
    code, message = hours.attribute("--before", before, "--after", after)
    assert code == 3
    assert "none of the cases could be replayed" in message["error"]


def test_a_former_model_that_is_retired_cannot_be_replayed_and_is_told(hours: Hours) -> None:
    before = hours.run()
    after = hours.run(model="openai/hours-wrong-2026-01-15")
    hours.vendor.fault("deprecated", models=["extractive-2026-01-15"])
    code, report = hours.attribute("--before", before, "--after", after)
    assert (code, report["culprit"]) == (3, "undecided")
    model = next(state for state in report["factors"] if state["factor"] == "model")
    assert model["standing"] == "cannot be replayed"
    assert "deprecated" in model["note"]


def test_cases_that_were_edited_are_left_out_and_told(hours: Hours) -> None:
    before = hours.run()
    edited = [case | {"question": case["question"] + " Sharp?"} if n < 4 else case for n, case in enumerate(CASES)]
    hours.project.golden_set("hours", edited)
    code, report = hours.attribute("--before", before, "--after", hours.run(WRONG))
    assert (code, report["culprit"], report["fell"]) == (0, "prompt", 10)
    assert report["left_out"]["edited"] == ["case-00", "case-01", "case-02", "case-03"]


def test_a_scorer_that_was_edited_is_no_cause(hours: Hours) -> None:
    before, after = hours.run(), hours.run(POLITE)
    hours.project.golden_set("hours", [case | {"expect": {"contains": ["9"]}} for case in CASES], minimum_cases=2)
    code, message = hours.attribute("--before", before, "--after", after)
    assert code == 2
    assert "nothing fell" in message["error"]


def test_bad_input_names_what_is_wrong(hours: Hours) -> None:
    before, after = hours.run(), hours.run(WRONG)
    other = hours.project.golden_set("other", CASES)
    elsewhere = hours.run(dataset=other)
    both = ("--before", before, "--after", after)
    told = {
        ("--before", after, "--after", after): "is named twice",
        ("--before", before, "--after", elsewhere): "give two runs of one golden set",
        ("--before", after, "--after", before): "nothing fell",
        (*both, "--metric", "style"): "no scorer yields the metric 'style'",
        (*both, "--max-cost", "0"): "--max-cost 0",
        ("--release", "--after", after): "--release chooses both runs",
        ("--release",): "no champion before the present one",
        ("--before", "nothing", "--after", after): "run 'nothing' not found",
    }
    for arguments, complaint in told.items():
        code, message = hours.attribute(*arguments)
        assert code == 2, arguments
        assert complaint in message["error"]
    (hours.project.state / "runs" / before / "definition.json").unlink()
    code, message = hours.attribute(*both)
    assert code == 2
    assert "an older touchstone" in message["error"]


def test_an_event_tells_the_runs_and_without_one_they_are_the_latest_and_the_last_good_one(
    hours: Hours,
) -> None:
    good, other, bad = hours.run(), hours.run(), hours.run(WRONG)
    settings = load_settings()
    event = {"run_key": bad, "bundle": "hours", "dataset": "hours", "change_point": other}
    assert choose_runs(settings, None, None, event) == (good, bad)
    assert choose_runs(settings, None, None) == (other, bad)
    with pytest.raises(BadInput, match="whole payload"):
        choose_runs(settings, None, None, {"bundle": "hours"})
