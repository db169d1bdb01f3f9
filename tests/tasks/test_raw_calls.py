"""Raw answers stay on disk until their case is finished, so that a resumed run has the verdict of an unbroken one."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.calls import ResponseCache
from tasks.raw_calls import forget_raw_texts
from tasks.spool import FinishedCall, Spool
from tests.conftest import Project, VendorControl
from touchstone.results import Call

SNAPSHOT, PHONE = "clerk-2026-01-15", "020 7946 0958"
CASES = [
    # The check reads digits that are scrubbed: a case that was scored on what is stored would fail.
    {"id": f"case-{n}", "question": f"Whom do I call about {n}?", "expect": {"regex": r"020 7\d+ \d+"}}
    for n in range(12)
]
SCORERS = [{"name": "ok", "kind": "expect"}, {"name": "judge", "kind": "rubric", "dimensions": ["accuracy"]}]


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[VendorControl]:
    lines = [{"model": SNAPSHOT, "prompt": case["question"], "answer": f"Call {PHONE} now."} for case in CASES]
    recording = tmp_path / "clerk.jsonl"
    recording.write_text("\n".join(map(json.dumps, lines)))
    with running(EmulatorOptions(recordings=(recording,))) as url:
        yield VendorControl(url)


@pytest.fixture
def run(project: Project, vendor: VendorControl, touchstone: Any, monkeypatch: Any) -> Callable[..., dict[str, Any]]:
    monkeypatch.setenv("TOUCHSTONE_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    judge = {"model": "openai/judge-2026-01-15", "api_base": vendor.api_base, "prompt": "judge@1.0.0"}
    judge |= {"price": {"input_per_million": 1, "output_per_million": 2}}
    project.prompt_bundle("clerk", vendor, model=f"openai/{SNAPSHOT}", judge=judge)
    dataset = project.golden_set("calls", CASES, scorers=SCORERS, maximum_failure_share=1.0)

    def run_eval(*arguments: str) -> dict[str, Any]:
        given = ("--bundle", "clerk", "--dataset", dataset, "--no-prefect", "--json")
        return touchstone("eval", "run", *given, *arguments)[1]

    return run_eval


def texts(project: Project, run_key: str) -> str:
    return (project.state / "runs" / run_key / "calls.jsonl").read_text()


def test_a_resumed_run_is_scored_on_what_was_said_and_then_forgets_it(
    project: Project, vendor: VendorControl, run: Callable[..., dict[str, Any]]
) -> None:
    unbroken = run()
    assert PHONE not in texts(project, unbroken["run_key"])
    (project.state / "response_cache.db").unlink()

    vendor.put("faults", [{"kind": "server_error", "models": ["judge-2026-01-15"]}])
    broken = run()
    assert broken["n_failed"] == len(CASES)
    assert PHONE in texts(project, broken["run_key"]), "its judge is still to be asked"
    file = project.state / "runs" / broken["run_key"] / "calls.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    vendor.heal()
    resumed = run("--resume", broken["run_key"], "--retry-failures")
    assert resumed["metrics"] == unbroken["metrics"]
    assert resumed["verdict"] == unbroken["verdict"]
    assert resumed["pii"] == unbroken["pii"] == {"phone": len(CASES)}
    assert PHONE not in texts(project, broken["run_key"])
    stored = (project.state / "runs" / broken["run_key"] / "cases.jsonl").read_text()
    assert "Call [phone] now." in stored
    assert PHONE not in stored


def test_what_the_golden_case_says_itself_stays_so_that_its_answer_can_be_measured_again(
    project: Project, run: Callable[..., dict[str, Any]]
) -> None:
    own = [case | {"reference": f"Call {PHONE}."} for case in CASES]
    project.golden_set("calls", own, scorers=SCORERS, maximum_failure_share=1.0)
    report = run()
    assert PHONE in (project.state / "runs" / report["run_key"] / "cases.jsonl").read_text()


def finished(key: str, text: str) -> FinishedCall:
    call = Call(role="generation", requested_model="m", cost_usd=0.25)
    return FinishedCall(key=key, text=text, call=call)


def test_only_texts_of_finished_cases_go_and_every_call_is_still_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    for key in ("a:1/0:0:abc", "a:1/1:0:abc", "b/0:0:abc"):
        spool.append_call(finished(key, "what was said"))
    with (spool.folder / "calls.jsonl").open("a") as file:
        file.write('{"key":"b/0:1:abc","text":"what was sa')
    forget_raw_texts(spool, [("a:1", 0)])
    left = {key: call.text for key, call in spool.calls().items()}
    assert left == {"a:1/0:0:abc": None, "a:1/1:0:abc": "what was said", "b/0:0:abc": "what was said"}
    assert spool.spent_usd() == 0.75
    spool.append_call(finished("c/0:0:abc", "more"))
    assert len(spool.calls()) == 4
    assert [path.name for path in spool.folder.iterdir()] == ["calls.jsonl"]


def test_a_judges_reply_with_personal_data_is_not_kept_for_later_runs(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "cache.db")
    cache.put(finished("plain", '{"reason": "it is right"}'))
    cache.put(finished("private", json.dumps({"reason": f"first line\n{PHONE} is right"})))
    vectors = Call(role="embedding", requested_model="m")
    cache.put(FinishedCall(key="vectors", text="4111111111111111", call=vectors))
    assert [bool(cache.get(key)) for key in ("plain", "private", "vectors")] == [True, False, True]
    cache.close()
