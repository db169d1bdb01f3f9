"""A run on disk: what a crash tears loses itself alone, what is written later wins, nothing is half-written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tasks.spool import FinishedCall, Spool, existing_spool, run_folder, run_folders
from touchstone.errors import BadInput
from touchstone.results import Answer, Call, CaseResult, Failure, FailureKind, Score


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "run")


def finished(key: str, text: str = "It opens at 9.", cost_usd: float = 0.25) -> FinishedCall:
    call = Call(role="generation", requested_model="openai/gpt-4o-2024-11-20", cost_usd=cost_usd)
    return FinishedCall(key=key, text=text, call=call)


def result(case_id: str, trial: int = 0, text: str = "yes") -> CaseResult:
    scores = {"ok": Score(value=1.0)}
    return CaseResult(case_id=case_id, trial=trial, question="?", answer=Answer(text=text), scores=scores)


def after_a_crash(spool: Spool) -> Spool:
    """The same run, opened by the next process."""
    spool.close()
    return Spool(spool.folder)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_line_torn_by_a_crash_loses_only_itself(spool: Spool, share: float) -> None:
    spool.append_call(finished("a"))
    whole = finished("torn").model_dump_json().encode()
    with (spool.folder / "calls.jsonl").open("ab") as file:
        file.write(whole[: int(len(whole) * share)])
    resumed = after_a_crash(spool)
    assert list(resumed.calls()) == ["a"]
    resumed.append_call(finished("b"))
    resumed.append_call(finished("torn"))
    assert resumed.calls() == {key: finished(key) for key in ("a", "b", "torn")}


def test_a_character_torn_in_two_loses_only_its_line(spool: Spool) -> None:
    spool.append_case(result("a", text="größer"))
    line = result("torn", text="größer").model_dump_json().encode()
    with (spool.folder / "cases.jsonl").open("ab") as file:
        file.write(line[: line.index("ö".encode()) + 1])
    resumed = after_a_crash(spool)
    resumed.append_case(result("b", text="größer"))
    assert resumed.cases() == {(name, 0): result(name, text="größer") for name in ("a", "b")}


def test_what_is_appended_can_be_read_by_another_process_at_once(spool: Spool) -> None:
    spool.append_call(finished("a"))
    spool.append_case(result("a"))
    other = Spool(spool.folder)
    assert (other.calls(), other.cases()) == ({"a": finished("a")}, {("a", 0): result("a")})


def test_line_breaks_inside_an_answer_do_not_end_its_line(spool: Spool) -> None:
    text = "one\ntwo\r\nthree\u2028four\x85five"
    spool.append_call(finished("a", text=text))
    assert spool.calls()["a"].text == text


def test_a_bad_mark_stays_with_its_call(spool: Spool) -> None:
    spool.append_call(finished("a"))
    spool.append_call(finished("b"))
    spool.append_call(FinishedCall(key="a", bad=True))
    marked = after_a_crash(spool).calls()
    assert marked["a"] == finished("a").model_copy(update={"bad": True})
    assert not marked["b"].bad


def test_a_call_made_again_is_no_longer_bad_and_both_were_paid(spool: Spool) -> None:
    spool.append_call(finished("a", text="nonsense"))
    spool.append_call(FinishedCall(key="a", bad=True))
    spool.append_call(finished("a", text="better"))
    assert spool.calls() == {"a": finished("a", text="better")}
    assert spool.spent_usd() == 0.5


def test_a_later_line_of_a_case_and_trial_replaces_the_earlier(spool: Spool) -> None:
    failure = Failure(kind=FailureKind.TIMEOUT, reason="no answer within 60 s")
    spool.append_case(CaseResult(case_id="a", question="?", failure=failure))
    spool.append_case(result("a", trial=1))
    spool.append_case(result("a"))
    assert spool.cases() == {("a", 0): result("a"), ("a", 1): result("a", trial=1)}


@pytest.mark.parametrize("key", ["../other", "a/b", "/etc", "", ".", ".."])
def test_what_could_leave_the_folder_of_runs_is_no_run_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadInput, match="is not a run key"):
        run_folder(tmp_path, key)


def test_an_unknown_run_is_bad_input_that_names_the_last_ones(tmp_path: Path) -> None:
    for key in ("run-2", "run-1"):
        Spool(run_folder(tmp_path, key)).write_json("manifest.json", "{}")
    assert [folder.name for folder in run_folders(tmp_path)] == ["run-1", "run-2"]
    assert existing_spool(tmp_path, "run-1").run_key == "run-1"
    with pytest.raises(BadInput, match=r"'nothing' not found in .*; the last ones: run-1, run-2"):
        existing_spool(tmp_path, "nothing")


def test_a_whole_file_is_old_or_new_never_half(spool: Spool) -> None:
    """A reader that races with the writer sees one of the two texts, always whole."""
    texts = [f'{{"report": "{letter * 200_000}"}}' for letter in "ab"]
    spool.write_json("report.json", texts[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add((spool.folder / "report.json").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(100):
        spool.write_json("report.json", texts[turn % 2])
    stop.set()
    reader.join()
    assert seen
    assert seen <= set(texts)


def test_a_crash_before_the_replacement_leaves_the_old_file(spool: Spool) -> None:
    spool.write_json("report.json", '{"verdict": "stable"}')
    (spool.folder / f".report.json.{os.getpid()}").write_text('{"verdict": "dri')
    assert spool.read_json("report.json") == {"verdict": "stable"}
    spool.write_json("report.json", '{"verdict": "drifted"}')
    assert spool.read_json("report.json") == {"verdict": "drifted"}
    assert [path.name for path in spool.folder.iterdir()] == ["report.json"]


def test_a_missing_file_is_bad_input(spool: Spool) -> None:
    assert not spool.has("report.json")
    with pytest.raises(BadInput, match=r"report\.json: not found"):
        spool.read_json("report.json")


def test_answers_are_readable_by_their_owner_only(spool: Spool) -> None:
    spool.append_call(finished("a"))
    assert (spool.folder / "calls.jsonl").stat().st_mode & 0o077 == 0
