"""`touchstone eval` from end to end, with the emulated vendor: verdicts, exit codes, failures, cost, resume."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.server import EmulatorOptions, running
from tasks.spool import Spool
from tests.conftest import VendorControl

PROMPT = "Context: Larkvane opens at 9. It closes at 17.\nQuestion: {question}"
OPENS = [
    {
        "id": f"case-{number:02}",
        "question": f"When does Larkvane open on day {number}?",
        "reference": "It opens at 9.",
        "segment": "even" if number % 2 == 0 else "odd",
        "expect": {"contains": ["9"]},
    }
    for number in range(30)
]


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[VendorControl]:
    """An emulated vendor that also has a snapshot `hours-wrong`: it answers every question of OPENS falsely."""
    lines = [
        {"model": "hours-wrong", "prompt": PROMPT.format(question=case["question"]), "answer": "It opens at 10."}
        for case in OPENS
    ]
    recording = tmp_path / "wrong.jsonl"
    recording.write_text("\n".join(json.dumps(line) for line in lines))
    with running(EmulatorOptions(recordings=(recording,))) as url:
        yield VendorControl(url)


def swap(vendor: VendorControl) -> None:
    """The vendor serves another model under the same name, and says nothing."""
    vendor.put("aliases", {"extractive-2026-01-15": "hours-wrong"})


@pytest.fixture
def run(project, vendor, touchstone):
    """Runs the eval of a small golden set and returns (exit code, report)."""
    project.prompt_bundle("hours", vendor, prompt={"user": PROMPT})
    dataset = project.golden_set("hours", OPENS, maximum_failure_share=0.2)

    def run_eval(*arguments: str, bundle: str = "hours", dataset: str = dataset):
        return touchstone("eval", "run", "--bundle", bundle, "--dataset", dataset, "--json", *arguments)

    return run_eval


def test_the_first_run_is_stable_and_freezes_a_provisional_baseline(run) -> None:
    code, report = run()
    assert (code, report["verdict"], report["provisional"]) == (0, "stable", True)
    assert report["metrics"]["ok"]["mean"] == 1.0
    assert report["metrics"]["ok"]["n"] == report["n_cases"] == report["n_scored"] == 30
    assert set(report["segments"]) == {"even", "odd"}
    assert report["served_models"] == {"extractive-2026-01-15": 30}
    assert report["calls"] == 30
    assert report["cost_usd"] > 0
    assert report["latency_ms"]["p95"] >= report["latency_ms"]["p50"] > 0


def test_a_swapped_model_is_drifted_worse_and_exit_code_1(run, vendor) -> None:
    run()
    swap(vendor)
    code, report = run()
    assert (code, report["verdict"], report["direction"]) == (1, "drifted", "worse")
    assert report["served_models"] == {"extractive-2026-01-15": 30}


def test_an_outage_is_unmeasurable_and_exit_code_3(run, vendor) -> None:
    run()
    vendor.fault("server_error", status=503)
    code, report = run()
    assert (code, report["verdict"]) == (3, "unmeasurable")
    assert report["failures"] == {"vendor_error": 30}
    assert report["metrics"] == {}
    vendor.heal()
    assert run()[1]["verdict"] == "stable"


def test_an_outage_on_the_first_run_freezes_nothing(run, vendor) -> None:
    vendor.fault("server_error")
    assert run()[0] == 3
    vendor.heal()
    assert run()[1]["reason"].startswith("first run")


def test_a_few_failures_are_left_out_of_the_mean_and_shown(run, vendor) -> None:
    vendor.fault("content_filter", share=0.06)
    code, report = run()
    failed = report["failures"]["refused"]
    assert 0 < failed <= 6
    assert (code, report["n_failed"], report["metrics"]["ok"]["n"]) == (0, failed, 30 - failed)
    assert report["metrics"]["ok"]["mean"] == 1.0


def test_the_spend_cap_is_never_passed_and_exit_code_is_4(run, vendor) -> None:
    code, report = run("--max-cost", "0.0027")
    assert code == 4
    assert report["cost_usd"] <= 0.0027
    assert report["failures"]["budget"] == 30 - vendor.counters()["calls"]
    code, resumed = run("--max-cost", "1", "--resume", report["run_key"], "--retry-failures")
    assert (code, resumed["n_failed"]) == (0, 0)
    assert vendor.counters()["completed"] == vendor.counters()["completed_distinct"] == 30


def test_a_resumed_run_pays_nothing_twice(run, vendor) -> None:
    vendor.fault("content_filter", share=0.3)
    _, broken = run()
    paid = vendor.counters()["completed"]
    assert run("--resume", broken["run_key"])[1]["failures"] == broken["failures"]
    assert vendor.counters()["completed"] == paid
    vendor.heal()
    code, healed = run("--resume", broken["run_key"], "--retry-failures")
    assert (code, healed["n_failed"], healed["n_scored"]) == (0, 0, 30)
    assert vendor.counters()["completed"] == paid + broken["failures"]["refused"]


def test_two_processes_cannot_run_one_run_at_once(run, project) -> None:
    _, report = run()
    with Spool(project.state / "runs" / report["run_key"]).locked():
        code, message = run("--resume", report["run_key"])
    assert code == 2
    assert "is being run by another process" in message["error"]


def test_a_run_whose_scorers_changed_cannot_be_resumed(run, project) -> None:
    _, report = run()
    scorers = [{"name": "ok", "kind": "contains", "texts": ["9"]}]
    project.golden_set("hours", OPENS, scorers=scorers)
    code, message = run("--resume", report["run_key"])
    assert code == 2
    assert "scorers_digest was" in message["error"]


@pytest.mark.parametrize("amount", ["0", "-1", "nan"])
def test_a_cap_that_is_no_amount_is_bad_input(run, amount: str) -> None:
    code, message = run("--max-cost", amount)
    assert code == 2
    assert "--max-cost" in message["error"]


def test_a_model_without_a_vendor_is_bad_input(run, project, vendor) -> None:
    project.prompt_bundle("nobody", vendor, model="extractive-2026-01-15")
    code, message = run(bundle="nobody")
    assert code == 2
    assert "LiteLLM knows no such vendor" in message["error"]


def test_a_remote_address_without_its_key_is_bad_input(run, project, vendor) -> None:
    project.prompt_bundle("remote", vendor, api_base="https://models.example/v1")
    code, message = run(bundle="remote")
    assert code == 2
    assert "api_key_env" in message["error"]


def test_a_run_of_a_changed_bundle_cannot_be_resumed(run, project, vendor, touchstone) -> None:
    _, report = run()
    project.prompt_bundle("hours", vendor, prompt={"user": "Answer briefly. Question: {question}"})
    code, message = run("--resume", report["run_key"])
    assert code == 2
    assert "bundle_fingerprint was" in message["error"]


def test_repeats_are_trials_of_the_same_case(run) -> None:
    _, report = run("--repeats", "3", "--limit", "10")
    assert (report["n_cases"], report["calls"], report["metrics"]["ok"]["n"]) == (10, 30, 10)
    assert report["flaky"]["ok"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bundle", "nobody"], "bundle 'nobody' not found"),
        (["--dataset", "nowhere"], "dataset 'nowhere' not found"),
        (["--resume", "nothing"], "run 'nothing' not found"),
        (["--retry-failures"], "--retry-failures needs --resume"),
    ],
)
def test_bad_input_is_exit_code_2_with_its_reason(run, touchstone, arguments: list[str], complaint: str) -> None:
    code, message = touchstone("eval", "run", "--json", *arguments)
    assert code == 2
    assert complaint in message["error"]


def test_an_unknown_price_under_a_cap_is_bad_input_before_any_call(run, project, vendor) -> None:
    project.prompt_bundle("priceless", vendor, price=None)
    code, message = run("--max-cost", "1", bundle="priceless")
    assert code == 2
    assert "the price of openai/extractive-2026-01-15 is unknown" in message["error"]
    assert vendor.counters()["calls"] == 0
    code, report = run(bundle="priceless")
    assert (code, report["cost_usd"]) == (0, None)


def test_a_missing_key_is_bad_input_before_any_call(run, project, vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    project.prompt_bundle("keyless", vendor, model="openai/gpt-4o-2024-11-20", api_base=None)
    code, message = run(bundle="keyless")
    assert code == 2
    assert "OPENAI_API_KEY is not set" in message["error"]


def test_another_model_than_the_pinned_one_is_unmeasurable(run, vendor) -> None:
    vendor.fault("wrong_model", model="extractive-2026-09-09")
    code, report = run()
    assert code == 3
    assert report["failures"] == {"invalid": 30}
    assert "the pin does not hold" in report["failure_examples"]["invalid"]


def test_a_changed_fingerprint_is_signalled_at_once(run, vendor) -> None:
    run()
    vendor.fault("fingerprint", value="fp_other")
    code, report = run()
    assert (code, report["verdict"]) == (0, "flagged")
    assert "fp_other" in report["reason"]


def test_a_junit_report_has_a_test_case_per_case_and_the_verdict(run, project) -> None:
    run("--junit", "out/junit.xml")
    suite = ET.parse(project.root / "out" / "junit.xml").getroot()
    assert suite.get("tests") == "31"
    assert suite.get("failures") == suite.get("errors") == "0"


def test_compare_names_the_cases_that_flipped(run, vendor, touchstone) -> None:
    before = run()[1]["run_key"]
    swap(vendor)
    after = run()[1]["run_key"]
    code, found = touchstone("eval", "compare", before, after, "--json")
    (change,) = found["metrics"]
    assert code == 0
    assert change["difference"] == -1.0
    assert len(change["worse"]) == 30


def test_estimate_counts_the_calls_that_a_run_then_makes(project, vendor, touchstone) -> None:
    arguments = ("--bundle", "support-fast", "--policy", "policy-judged", "--limit", "12", "--json")
    _, estimated = touchstone("eval", "estimate", *arguments)
    assert vendor.counters()["calls"] == 0
    _, report = touchstone("eval", "run", *arguments)
    assert estimated["generation_calls"] + estimated["judge_calls"] == report["calls"]
    assert report["cost_usd"] <= estimated["worst_cost_usd"]


def test_ragas_and_the_rubric_score_each_dimension_on_its_own(project, touchstone) -> None:
    _, report = touchstone(
        "eval", "run", "--bundle", "support-fast", "--policy", "policy-judged", "--limit", "12", "--json"
    )
    judged = {"faithfulness", "answer_relevancy", "context_precision", "context_recall"}
    rubric = {"judge_faithfulness", "judge_relevance", "judge_completeness"}
    assert judged | rubric <= set(report["metrics"])
    assert all(0 <= report["metrics"][name]["mean"] <= 1 for name in judged)
    assert all(1 <= report["metrics"][name]["mean"] <= 5 for name in rubric)


def test_a_broken_judge_is_a_failure_of_its_metric_not_a_score(project, vendor, touchstone) -> None:
    vendor.fault("malformed_json", models=["judge-2026-01-15"])
    code, report = touchstone(
        "eval", "run", "--bundle", "support-fast", "--policy", "policy-judged", "--limit", "5", "--json"
    )
    assert code == 3
    assert report["failures"] == {"judge_error": 5}
    assert "faithfulness" not in report["metrics"]
    assert report["metrics"]["answer_ok"]["n"] == 5


def test_show_lists_the_runs_and_prints_one(run, touchstone) -> None:
    key = run()[1]["run_key"]
    assert touchstone("eval", "show", "--json")[1]["runs"][0]["run_key"] == key
    assert touchstone("eval", "show", key, "--json")[1]["metrics"]["ok"]["mean"] == 1.0
