"""`touchstone gate` from end to end, with the emulated vendor: verdicts, exit codes, resume, evidence, ledger, CI."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.promotions import promote
from tasks.releases import append_release, read_release
from tasks.spool import Spool
from tests.conftest import Project, VendorControl
from touchstone import release_steps
from touchstone.ledger import EventKind, gate_subject
from touchstone.release import ReleaseState

GOOD = "Context: Larkvane opens at 9. It closes at 17.\nQuestion: {question}"
OTHER = "Context: Larkvane opens at 9. It closes at 18.\nQuestion: {question}"
WORSE = "Context: Larkvane opens at 10. It closes at 17.\nQuestion: {question}"
CASES = [
    {
        "id": f"case-{number:02}",
        "question": f"When does Larkvane open on day {number}?",
        "reference": "It opens at 9.",
        "segment": "even" if number % 2 == 0 else "odd",
        "expect": {"contains": ["9"]},
    }
    for number in range(40)
]
POLICY = {
    "gate": {"ok": {"margin": 0.25, "floor": 0.5}},
    "release": {"max_repeats": 2, "approval": {"required": 0}, "canary": {"required": False}},
    "minimum_cases": 10,
}


class Shop:
    """A project with bundles that differ in their prompt, and a golden set that asks for opening hours."""

    def __init__(self, project: Project, vendor: VendorControl, touchstone: Callable[..., tuple[int, Any]]) -> None:
        self.project, self.vendor, self._touchstone = project, vendor, touchstone
        for name, prompt in (("hours", GOOD), ("hours-other", OTHER), ("hours-worse", WORSE)):
            project.prompt_bundle(name, vendor, prompt={"user": prompt})
        self.dataset = project.golden_set("hours", CASES, **POLICY)

    def gate(self, bundle: str, *arguments: str, dataset: str | None = None) -> tuple[int, Any]:
        given = ("--bundle", bundle, "--dataset", dataset or self.dataset, "--by", "Ada")
        return self._touchstone("gate", *given, "--no-prefect", "--json", *arguments)

    def eval(self, bundle: str, *arguments: str) -> str:
        given = ("--bundle", bundle, "--dataset", self.dataset, "--no-prefect")
        return self._touchstone("eval", "run", *given, "--json", *arguments)[1]["run_key"]

    def release(self, bundle: str) -> None:
        """Gate it, and let it out to all traffic."""
        assert self.gate(bundle)[0] == 0
        with closing(self.ledger()) as ledger:
            promote(load_settings(), ledger, "Ada", "the first one")

    def ledger(self) -> Ledger:
        settings = load_settings()
        return Ledger(settings.ledger, settings.environment)

    def state(self) -> ReleaseState:
        with closing(self.ledger()) as ledger:
            return read_release(ledger)

    def decisions(self, bundle: str) -> list[dict[str, Any]]:
        with closing(self.ledger()) as ledger:
            return [event.payload for event in ledger.events(EventKind.GATE_DECIDED, gate_subject(bundle))]


@pytest.fixture
def shop(project: Project, vendor: VendorControl, touchstone, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr("tasks.gating.BLOCK", 20)
    monkeypatch.setenv("TOUCHSTONE_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there: a gate needs none
    return Shop(project, vendor, touchstone)


def test_a_first_release_then_a_good_change_pass_and_become_the_candidate(shop: Shop) -> None:
    code, first = shop.gate("hours")
    assert (code, first["decision"]["is_first_release"], first["is_candidate"]) == (0, True, True)
    with closing(shop.ledger()) as ledger:
        promote(load_settings(), ledger, "Ada", "the first one")
    champion = shop.state().champion
    assert champion is not None
    code, report = shop.gate("hours-other")
    assert (code, report["decision"]["verdict"], report["decision"]["changed"]) == (0, "pass", ["prompt"])
    candidate = shop.state().candidate
    assert candidate is not None
    deployment = candidate.deployment
    assert deployment.name == "hours-other"
    assert (deployment.gate_key, list(deployment.run_keys)) == (report["gate_key"], report["run_keys"])
    assert deployment.scores == {"ok": 1.0}
    assert deployment.policy.max_repeats == 2
    (payload,) = shop.decisions("hours-other")
    assert payload["against"] == champion.deployment.fingerprint
    assert (payload["verdict"], payload["by"], payload["role"]) == ("pass", "Ada", "candidate")
    with closing(shop.ledger()) as ledger:
        event = ledger.latest(EventKind.GATE_DECIDED, gate_subject("hours-other"))
        assert event is not None
        assert json.loads(ledger.content(event))["decision"]["comparisons"][0]["n"] == 40


def test_a_worse_one_fails_early_with_exit_code_1_and_is_no_candidate(shop: Shop) -> None:
    shop.release("hours")
    before = shop.vendor.counters()["calls"]
    code, report = shop.gate("hours-worse")
    assert (code, report["decision"]["verdict"]) == (1, "fail")
    assert "ok certainly lower" in report["ended_early"]
    assert shop.vendor.counters()["calls"] - before == 2 * 20  # one block of each side
    assert shop.state().candidate is None
    assert shop.decisions("hours-worse")[0]["verdict"] == "fail"
    assert report["decision"]["regressions"][0]["candidate_answer"].startswith("Larkvane opens at 10.")


def test_a_champion_is_run_as_it_was_although_its_file_has_changed(shop: Shop) -> None:
    shop.release("hours")
    shop.project.prompt_bundle("hours", shop.vendor, prompt={"user": WORSE})
    code, report = shop.gate("hours")
    assert (code, report["bundle"], report["against_bundle"]) == (1, "hours", "hours")


def test_an_outage_is_unmeasurable_and_a_resume_pays_only_for_what_failed(shop: Shop) -> None:
    shop.release("hours")
    shop.vendor.fault("content_filter", share=0.5)
    code, report = shop.gate("hours-other")
    assert (code, report["decision"]["verdict"]) == (3, "unmeasurable")
    assert "have failed" in report["ended_early"]
    shop.vendor.heal()
    code, healed = shop.gate("hours-other", "--resume", report["gate_key"])
    assert (code, healed["gate_key"], healed["is_candidate"]) == (0, report["gate_key"], True)
    assert [payload["verdict"] for payload in shop.decisions("hours-other")] == ["unmeasurable", "pass"]


def test_a_gate_that_is_killed_is_resumed_and_nothing_is_paid_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.release("hours")
    before = shop.vendor.counters()["completed"]

    def power_cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.gating.early_end", power_cut)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever a process dies of
            shop.gate("hours-other")
    (key,) = [path.name for path in (shop.project.state / "gates").glob("gate-hours-other-*")]
    shop.project.prompt_bundle("hours-other", shop.vendor, prompt={"user": WORSE})  # its file is another by now
    code, report = shop.gate("hours-other", "--resume", key)
    assert (code, report["decision"]["verdict"]) == (0, "pass")
    assert shop.vendor.counters()["completed"] - before == 2 * 40
    again = shop.gate("hours-other", "--resume", key)[1]
    assert again["recorded"] == report["recorded"]
    assert len(shop.decisions("hours-other")) == 1
    assert shop.vendor.counters()["completed"] - before == 2 * 40


def test_a_pass_that_could_make_no_candidate_is_bad_input_before_it_is_paid(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.release("hours")

    def power_cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.gating.early_end", power_cut)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever a process dies of
            shop.gate("hours-other")
    (key,) = [path.name for path in (shop.project.state / "gates").glob("gate-hours-other-*")]
    shop.project.prompt_bundle("hours-third", shop.vendor, prompt={"user": f"{GOOD} "})
    assert shop.gate("hours-third")[0] == 0
    with closing(shop.ledger()) as ledger:
        state = read_release(ledger)
        payload = release_steps.start_canary(state, "c-1", "salt", "Ada")
        append_release(ledger, state, EventKind.CANARY_STARTED, payload)
    paid = shop.vendor.counters()["calls"]
    for more in ((), ("--resume", key)):
        code, error = shop.gate("hours-other", *more)
        assert code == 2
        assert "hours-third is on canary traffic" in error["error"]
    with closing(shop.ledger()) as ledger:
        promote(load_settings(), ledger, "Ada", "good")
    code, error = shop.gate("hours-other", "--resume", key)
    assert code == 2
    assert "no longer serves" in error["error"]
    assert shop.vendor.counters()["calls"] == paid
    assert shop.decisions("hours-other") == []


def test_the_spend_cap_is_of_both_runs_together_and_exit_code_4(shop: Shop) -> None:
    shop.release("hours")
    code, report = shop.gate("hours-other", "--max-cost", "0.003")
    assert code == 4
    assert report["cost_usd"] <= 0.003
    assert "spend cap" in report["decision"]["reason"]
    assert shop.gate("hours-other", "--resume", report["gate_key"], "--max-cost", "1")[0] == 0


def test_a_case_without_tolerance_stops_the_gate(shop: Shop) -> None:
    shop.release("hours")
    rules = POLICY["release"] | {"zero_tolerance": [{"metric": "ok", "segments": ["odd"]}]}
    shop.project.golden_set("hours", CASES, **(POLICY | {"release": rules}))
    code, report = shop.gate("hours-worse")
    assert code == 1
    assert report["ended_early"].startswith("zero tolerance odd")


def test_the_champion_itself_and_two_factors_at_once_are_bad_input(shop: Shop) -> None:
    shop.release("hours")
    code, message = shop.gate("hours")
    assert code == 2
    assert "candidate = champion" in message["error"]
    shop.project.prompt_bundle("both", shop.vendor, prompt={"user": OTHER}, model="openai/extractive-2026-02-01")
    code, message = shop.gate("both")
    assert code == 2
    assert "nobody could tell which one did it" in message["error"]
    code, report = shop.gate("both", "--allow-several")
    assert (code, report["decision"]["changed"]) == (0, ["model", "prompt"])


def test_a_fallback_is_recorded_and_is_no_candidate(shop: Shop) -> None:
    shop.release("hours")
    code, report = shop.gate("hours-other", "--role", "fallback")
    assert (code, report["is_candidate"]) == (0, False)
    assert shop.decisions("hours-other")[0]["role"] == "fallback"
    assert shop.state().candidate is None


def test_progress_does_not_pass_its_total_when_more_trials_are_bought(capsys: pytest.CaptureFixture[str]) -> None:
    from cli.output import case_progress

    with case_progress(10, "hours") as note:
        for _ in range(15):
            note(None)
    lines = capsys.readouterr().err.splitlines()
    assert (lines[9], lines[-1]) == ("hours: 10/10 cases", "hours: 10/10 cases, 5 more trials")


def test_without_a_champion_there_is_nobody_to_stand_in_for(shop: Shop) -> None:
    code, message = shop.gate("hours-other", "--role", "fallback")
    assert (code, shop.decisions("hours-other"), shop.vendor.counters()["calls"]) == (2, [], 0)
    assert "`touchstone promote` makes the first one" in message["error"]


def test_two_bundles_are_compared_without_a_champion_and_nothing_is_recorded(shop: Shop) -> None:
    code, report = shop.gate("hours-worse", "--against", "hours", "--no-record")
    assert (code, report["recorded"], report["against_bundle"]) == (1, None, "hours")
    assert shop.decisions("hours-worse") == []


def test_another_bundle_than_the_champion_makes_no_candidate(shop: Shop) -> None:
    shop.release("hours")
    code, message = shop.gate("hours-other", "--against", "hours-worse")
    assert code == 2
    assert "default serves hours" in message["error"]


def test_two_finished_evals_decide_without_a_call(shop: Shop) -> None:
    shop.release("hours")
    new, old = shop.eval("hours-other"), shop.eval("hours")
    calls = shop.vendor.counters()["calls"]
    code, report = shop.gate("hours-other", "--run", new, "--against-run", old)
    assert (code, report["run_keys"], report["is_candidate"]) == (0, [new, old], True)
    assert shop.vendor.counters()["calls"] == calls


def test_evals_of_a_part_of_the_golden_set_pass_nothing(shop: Shop) -> None:
    """The cases without tolerance may be among those that were left out."""
    shop.release("hours")
    runs = [shop.eval(bundle, "--limit", "30") for bundle in ("hours-other", "hours")]
    code, report = shop.gate("hours-other", "--run", runs[0], "--against-run", runs[1])
    assert (code, report["decision"]["verdict"], report["is_candidate"]) == (3, "unmeasurable", False)
    assert "only 30 of 40 cases of the candidate were run" in report["decision"]["reason"]
    assert shop.state().candidate is None


def test_evidence_that_is_of_something_else_is_bad_input(shop: Shop) -> None:
    shop.release("hours")
    new, old, short = shop.eval("hours-other"), shop.eval("hours"), shop.eval("hours", "--limit", "30")

    def complaint(*arguments: str, bundle: str = "hours-other") -> str:
        code, message = shop.gate(bundle, *arguments)
        assert code == 2
        return message["error"]

    assert "are of different cases (40 and 30)" in complaint("--run", new, "--against-run", short)
    assert "but the champion is hours" in complaint("--run", new, "--against-run", new)
    assert "--against-run is missing" in complaint("--run", new)
    assert "but the candidate is hours-worse" in complaint("--run", new, "--against-run", old, bundle="hours-worse")
    _backdate(shop.project.state / "runs" / old, hours=25)
    stale = complaint("--run", new, "--against-run", old)
    assert "stale evidence" in stale
    assert "Leave out --run and --against-run" in stale
    shop.project.golden_set("hours", CASES[:39], **POLICY)
    assert "gate on different golden sets" in complaint("--run", new, "--against-run", old)
    assert shop.decisions("hours-other") == []


def _backdate(folder: Path, hours: float) -> None:
    spool = Spool(folder)
    manifest = spool.read_json("manifest.json")
    manifest["created_at"] = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    spool.write_json("manifest.json", json.dumps(manifest))


def test_both_runs_are_in_mlflow_with_the_key_of_their_gate(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("TOUCHSTONE_MLFLOW_TRACKING_URI")
    monkeypatch.setenv("TOUCHSTONE_MLFLOW_UI_URL", "http://mlflow.example")
    _, report = shop.gate("hours-other", "--against", "hours", "--no-record")
    client = MlflowClient(f"sqlite:///{shop.project.state / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.gate = '{report['gate_key']}'")
    assert {run.data.tags["touchstone.run_key"] for run in found} == set(report["run_keys"])
    assert {run.data.tags["purpose"] for run in found} == {"gate"}
    assert "compareToRunUuid=" in report["mlflow_compare_url"]


def test_one_side_of_a_gate_is_not_resumed_as_an_eval(shop: Shop, touchstone) -> None:
    _, report = shop.gate("hours")
    code, message = touchstone("eval", "run", "--resume", report["run_keys"][0], "--json")
    assert code == 2
    assert f"touchstone gate --resume {report['gate_key']}" in message["error"]


def test_ci_gets_a_junit_file_annotations_and_the_changed_answers(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, _ = shop.gate("hours-worse", "--against", "hours", "--no-record", "--junit", "out/gate.xml", "--github")
    assert code == 1
    suite = ET.parse(shop.project.root / "out" / "gate.xml").getroot()
    failed = {case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None}
    assert {"ok", "floor of ok"} <= failed
    assert any(str(name).startswith("case-") for name in failed)
    assert int(suite.get("failures", "0")) == len(failed)
    page = summary.read_text()
    assert page.startswith("## FAIL: hours-worse against hours (prompt)")
    assert "20 of 20 answers changed" in page
    assert "<del>9.</del> <ins>10.</ins>" in page


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--resume", "gate-nothing"], "gate 'gate-nothing' not found"),
        (["--resume", "../x"], "is not a gate key"),
        (["--role", "king"], "--role king"),
        (["--max-cost", "0"], "--max-cost 0"),
        (["--against-run", "x"], "--against-run needs --run"),
        (["--against", "nobody"], "bundle 'nobody' not found"),
    ],
)
def test_bad_input_is_exit_code_2_with_its_reason(shop: Shop, arguments: list[str], complaint: str) -> None:
    code, message = shop.gate("hours", *arguments)
    assert code == 2
    assert complaint in message["error"]
