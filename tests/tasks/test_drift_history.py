"""Baselines and drift states in a real ledger: what a run is decided on, and what later runs then find."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tasks.drift_history import decide, decide_and_record, read_history, record_baseline, subject_of
from tasks.ledger import Ledger
from tasks.plan import EvalManifest, EvalRequest
from touchstone.drift import DriftDecision, DriftState, MetricScores, RunScores, freeze_baseline
from touchstone.ledger import EventKind
from touchstone.policy import Policy

CASES = tuple(f"case-{number:02}" for number in range(40))
POLICY = Policy.model_validate({"scorers": [{"name": "ok", "kind": "expect"}], "minimum_cases": 10})
MANIFEST = EvalManifest(
    run_key="unused",
    created_at="2026-11-01T06:30:00+00:00",
    environment="default",
    request=EvalRequest(),
    bundle_name="support",
    bundle_fingerprint="0123456789abcdef",
    judge_fingerprint="",
    model="openai/gpt-4o-2024-11-20",
    prompt="support@1.0.0",
    retrieval="",
    index_version="",
    dataset_name="support",
    dataset_digest="d",
    n_cases=len(CASES),
)
SUBJECT = subject_of(MANIFEST)


def run_of(key: str, wrong: int = 2, failed: int = 0) -> RunScores:
    """A run of which the first `failed` cases failed; of the others the first `wrong` did not pass."""
    scores = tuple((float(number >= wrong),) for number in range(failed, len(CASES)))
    return RunScores(
        run_key=key,
        at="2026-11-01T06:30:00+00:00",
        metrics={"ok": MetricScores(case_ids=CASES[failed:], scores=scores)} if failed < len(CASES) else {},
        n_cases=len(CASES),
        n_failed=failed,
        failures={"vendor_error": failed} if failed else {},
        case_digests=dict.fromkeys(CASES, "digest"),
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url, "default")


def record(ledger: Ledger, run: RunScores) -> DriftDecision:
    return decide_and_record(ledger, MANIFEST, run, POLICY.metrics, POLICY)


def decided_runs(ledger: Ledger) -> list[str]:
    return [event.payload["run_key"] for event in ledger.events(EventKind.EVAL_DECIDED, SUBJECT)]


def last_state(ledger: Ledger) -> DriftState:
    event = ledger.latest(EventKind.EVAL_DECIDED, SUBJECT)
    assert event is not None
    return DriftState.model_validate_json(ledger.content(event))


def state_after(ledger: Ledger, runs: Mapping[str, RunScores]) -> DriftState:
    """The state after these runs, decided one after the other without any ledger."""
    baseline, state = read_history(ledger, SUBJECT).baseline, None
    assert baseline is not None
    for run in runs.values():
        _, state = decide(run, baseline, state, POLICY)
    assert state is not None
    return state


def test_the_first_run_freezes_a_provisional_baseline_and_is_no_decision(ledger: Ledger) -> None:
    decision = record(ledger, run_of("first"))
    assert (decision.verdict, decision.provisional) == ("stable", True)
    assert decision.reason.startswith("first run")
    history = read_history(ledger, SUBJECT)
    assert history.baseline is not None
    assert (history.baseline.provisional, history.baseline.run_keys) == (True, ("first",))
    assert decided_runs(ledger) == []


@pytest.mark.parametrize("failed", [20, len(CASES)])
def test_an_unmeasurable_first_run_freezes_nothing(ledger: Ledger, failed: int) -> None:
    assert record(ledger, run_of("outage", failed=failed)).verdict == "unmeasurable"
    assert [event.kind for event in ledger.events()] == [EventKind.EVAL_DECIDED]  # that it ran is remembered
    record(ledger, run_of("first"))
    history = read_history(ledger, SUBJECT)
    assert history.baseline is not None
    assert history.baseline.run_keys == ("first",)


def test_a_first_run_that_is_resumed_freezes_what_it_is_now(ledger: Ledger) -> None:
    record(ledger, run_of("first", failed=3))
    assert record(ledger, run_of("first")).reason.startswith("first run")
    history = read_history(ledger, SUBJECT)
    assert history.baseline is not None
    assert len(history.baseline.calibration["ok"][0]) == len(CASES)
    assert decided_runs(ledger) == []


def test_each_run_is_decided_on_the_state_that_the_run_before_left(ledger: Ledger) -> None:
    record(ledger, run_of("first"))
    runs = {key: run_of(key, wrong) for key, wrong in (("a", 4), ("b", 5), ("c", 4))}
    for run in runs.values():
        record(ledger, run)
    assert decided_runs(ledger) == ["a", "b", "c"]
    assert last_state(ledger) == state_after(ledger, runs)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_run_decided_again_counts_once(ledger: Ledger, times: int) -> None:
    record(ledger, run_of("first"))
    runs = {"a": run_of("a", 4), "b": run_of("b", 6)}
    record(ledger, runs["a"])
    decisions = [record(ledger, runs["b"]) for _ in range(times + 1)]
    assert decisions == [decisions[0]] * (times + 1)
    assert last_state(ledger) == state_after(ledger, runs)


def test_a_resumed_run_is_decided_by_its_new_scores_on_the_old_state(ledger: Ledger) -> None:
    record(ledger, run_of("first"))
    record(ledger, run_of("a", 3))
    assert record(ledger, run_of("b", failed=30)).verdict == "unmeasurable"
    assert record(ledger, run_of("b")).verdict == "stable"
    assert last_state(ledger) == state_after(ledger, {"a": run_of("a", 3), "b": run_of("b")})


@pytest.mark.parametrize("later", [["b"], ["b", "c"], ["b", "c", "d"]])
def test_a_resumed_run_leaves_the_state_of_later_runs_as_it_is(ledger: Ledger, later: list[str]) -> None:
    record(ledger, run_of("first"))
    before = record(ledger, run_of("a", 4))
    for key in later:
        record(ledger, run_of(key))
    events, state = ledger.events(), last_state(ledger)
    assert record(ledger, run_of("a", 4)) == before
    assert ledger.events() == events
    assert last_state(ledger) == state


def test_the_baselines_own_run_resumed_later_is_no_evidence(ledger: Ledger) -> None:
    record(ledger, run_of("first", failed=2))
    record(ledger, run_of("a"))
    assert record(ledger, run_of("first")).verdict == "stable"
    assert decided_runs(ledger) == ["a"]


def test_two_runs_decided_at_once_end_one_after_the_other(ledger: Ledger, url: str) -> None:
    record(ledger, run_of("first"))
    runs = {f"run-{number}": run_of(f"run-{number}", 3 + number) for number in range(6)}

    def decide_in_a_thread(run: RunScores) -> None:
        record(Ledger(url, "default"), run)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decide_in_a_thread, runs.values()))
    order = decided_runs(ledger)
    assert sorted(order) == sorted(runs)
    assert last_state(ledger) == state_after(ledger, {key: runs[key] for key in order})


def test_two_first_runs_at_once_freeze_one_baseline(ledger: Ledger, url: str) -> None:
    keys = ("a", "b", "c", "d")
    start = Barrier(len(keys))

    def decide_in_a_thread(key: str) -> str:
        own = Ledger(url, "default")
        own.events()
        start.wait()
        return record(own, run_of(key)).reason

    with ThreadPoolExecutor(len(keys)) as pool:
        reasons = list(pool.map(decide_in_a_thread, keys))
    assert sum(reason.startswith("first run") for reason in reasons) == 1
    assert len(ledger.events(EventKind.BASELINE_FROZEN, SUBJECT)) == 1
    assert len(decided_runs(ledger)) == 3


def test_a_new_baseline_restarts_the_state(ledger: Ledger) -> None:
    record(ledger, run_of("first"))
    assert record(ledger, run_of("swapped", wrong=30)).verdict == "drifted"
    baseline = freeze_baseline([run_of("accepted", wrong=30)], POLICY.metrics)
    record_baseline(ledger, SUBJECT, baseline)
    history = read_history(ledger, SUBJECT)
    assert history.baseline == baseline
    assert history.decided == ()
    same_as_accepted = {"next": run_of("next", wrong=30)}
    assert record(ledger, same_as_accepted["next"]).verdict == "stable"
    assert last_state(ledger) == state_after(ledger, same_as_accepted)


def test_another_bundle_or_golden_set_has_a_history_of_its_own(ledger: Ledger) -> None:
    record(ledger, run_of("first"))
    for change in ({"bundle_fingerprint": "fedcba9876543210"}, {"dataset_name": "billing"}):
        other = MANIFEST.model_copy(update=change)
        decision = decide_and_record(ledger, other, run_of("other", wrong=30), POLICY.metrics, POLICY)
        assert decision.reason.startswith("first run")
