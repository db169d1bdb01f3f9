"""Alarms on a real ledger: one per outage, whoever notices it and however often, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from tasks import alarms
from tasks.alarms import check_suites, clear_alarm, hear, standing_alarms, suites_now, watch
from tasks.ledger import Ledger
from tests.tasks.postgres import postgres_url
from tests.tasks.release_ledger import Receiver, receiving
from touchstone.errors import BadInput
from touchstone.ledger import EventKind, alarm_subject, drift_subject
from touchstone.notify_target import NotifyTarget
from touchstone.settings import Settings

RESOURCE = {"resource": "touchstone.eval.support.golden"}
SILENT = "suite-silent:support:golden"
LIMIT_S = 1.0
CRASH = {"flow_run": "0b0f5e3a-5a0b-4a51-9d19-2d1b1c0e9a11", "deployment": "golden-eval/daily"}


def declare(root: Path, *datasets: str) -> None:
    """A prefect.yaml whose golden sets run every morning."""
    deployments = [
        {
            "name": f"daily-{dataset}",
            "description": "daily",
            "entrypoint": "flows.golden_eval.golden_eval",
            "parameters": {"bundle": "support", "dataset": dataset},
            "schedules": [{"cron": "30 6 * * *", "timezone": "UTC", "slug": "morning"}],
            "work_pool": {"name": "evals"},
        }
        for dataset in datasets
    ]
    (root / "prefect.yaml").write_text(yaml.safe_dump({"name": "touchstone", "deployments": deployments}))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("ONCALL", receiver.url)
        yield receiver


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """One suite, which may be silent for LIMIT_S."""
    declare(tmp_path, "golden")
    target = NotifyTarget(kind="slack", url_env="ONCALL")
    return Settings(root=tmp_path, notify=(target,), silent_after_h=LIMIT_S / 3600, renotify_h=24)


@pytest.fixture(params=["sqlite", "postgresql"])
def on_both(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Settings]:
    if request.param == "sqlite":
        yield settings
    else:
        for url in postgres_url():
            yield settings.model_copy(update={"ledger_url": url})


def finish(settings: Settings, verdict: str = "stable", fingerprint: str = "f1") -> None:
    payload: dict[str, Any] = {"run_key": f"run-{time.time()}", "verdict": verdict, "direction": None, "reason": ""}
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        ledger.append(EventKind.EVAL_DECIDED, drift_subject("support", fingerprint, "golden"), payload)


def history(settings: Settings, name: str = SILENT) -> list[str]:
    """What happened to an alarm; `watched` is not one."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        events = ledger.events(subject=alarm_subject(name))
    words = {EventKind.ALARM_RAISED: "raised", EventKind.ALARM_CLEARED: "cleared"}
    return [
        "reminded" if event.payload.get("reminder") else words[event.kind]
        for event in events
        if event.payload["since"] is not None
    ]


def told(receiver: Receiver) -> list[str]:
    return [request.json["text"].partition("default: ")[2] for request in receiver.received]


def test_the_dead_mans_switch_fires_within_its_limit_once_per_outage(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "LEFT_TO_FLOWS", timedelta())  # the evals of this test have no flow that tells of them
    outages, started = [], time.monotonic()
    for _ in range(2):
        finish(settings)
        ended = time.monotonic()
        watch(settings)
        while not standing_alarms(settings):
            assert watch(settings) == []
            assert time.monotonic() < ended + 10
            time.sleep(0.1)
        outages.append(time.monotonic() - ended)
        for _ in range(3):  # however often both lines look, also as other processes after a restart
            watch(settings)
            assert hear(settings, "suite-silent", RESOURCE) == f"{SILENT}: stands already"
    finish(settings)
    watch(settings)
    assert history(settings) == ["raised", "cleared", "raised", "cleared"]
    assert told(receiver) == [f"alarm: {SILENT}", f"alarm is over: {SILENT}"] * 2
    assert all(LIMIT_S <= seconds < LIMIT_S + 2 for seconds in outages), outages
    assert time.monotonic() - started < 20


def test_both_lines_at_once_raise_one_alarm(on_both: Settings) -> None:
    finish(on_both)
    time.sleep(LIMIT_S)
    together = Barrier(6)

    def run(number: int) -> str:
        together.wait()
        if number % 2:
            return hear(on_both, "suite-silent", RESOURCE).partition(": ")[2]
        return check_suites(on_both)[0].did

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(run, range(6)))
    assert history(on_both) == ["raised"]
    assert answers.count("raised") == 1
    assert set(answers) <= {"raised", "stands already", "nothing"}


def test_a_hint_that_is_not_true_raises_nothing(settings: Settings) -> None:
    finish(settings, "unmeasurable", fingerprint="another")  # it ran, and so it is not silent
    assert "not silent" in hear(settings, "suite-silent", RESOURCE)
    assert "is no suite of prefect.yaml" in hear(settings, "suite-silent", {"resource": "touchstone.eval.a.b"})
    with pytest.raises(BadInput, match="no alarm is called 'fire'"):
        hear(settings, "fire", {})
    assert standing_alarms(settings) == ()


def test_a_suite_that_never_finished_counts_from_the_first_look_at_it(settings: Settings) -> None:
    assert [look.suite.is_new for look in suites_now(settings)] == [True]
    assert [look.did for look in check_suites(settings)] == ["watched"]
    assert [look.did for look in check_suites(settings)] == ["nothing"]
    time.sleep(LIMIT_S)
    assert [look.silent for look in suites_now(settings)] == [True]
    assert standing_alarms(settings) == ()  # that was only a look
    assert [(look.did, look.silent) for look in check_suites(settings)] == [("raised", True)]
    assert "none ever" in standing_alarms(settings)[0].raised.reason


def test_a_first_run_which_only_freezes_a_baseline_is_no_silence_but_a_calibration_is_no_run(
    settings: Settings,
) -> None:
    with closing(Ledger(settings.ledger, "default")) as ledger:
        frozen = {"id": "b", "provisional": True, "run_keys": ["a", "b"]}
        ledger.append(EventKind.BASELINE_FROZEN, drift_subject("support", "f1", "golden"), frozen)
        assert check_suites(settings)[0].suite.finished_at is None
        frozen["run_keys"] = ["a"]
        ledger.append(EventKind.BASELINE_FROZEN, drift_subject("support", "f1", "golden"), frozen)
    assert check_suites(settings)[0].suite.finished_at is not None


def test_a_suite_that_is_not_scheduled_any_more_is_not_missed(settings: Settings) -> None:
    check_suites(settings)
    time.sleep(LIMIT_S)
    check_suites(settings)
    declare(settings.root, "other")
    check_suites(settings)
    assert history(settings) == ["raised", "cleared"]


def test_a_silent_suite_that_somebody_cleared_counts_from_then(settings: Settings) -> None:
    finish(settings)
    time.sleep(LIMIT_S)
    check_suites(settings)
    clear_alarm(settings, SILENT, "the vendor is off until noon", "Ada")
    assert check_suites(settings)[0].did == "nothing"
    time.sleep(LIMIT_S)
    assert check_suites(settings)[0].did == "raised"


def test_what_stands_is_reminded_of_and_only_people_end_it(settings: Settings, receiver: Receiver) -> None:
    often = settings.model_copy(update={"renotify_h": 0.3 / 3600, "silent_after_h": 26, "prefect_ui_url": "http://ui"})
    failed = {"automation": "gate-on-change", "reason": "template: no key", "automation_id": "x"}
    assert hear(often, "automation-failed", failed) == "automation-failed:gate-on-change: raised"
    assert hear(often, "flow-crashed", CRASH) == "flow-crashed:golden-eval/daily: raised"
    watch(often)
    time.sleep(0.3)
    watch(often)
    clear_alarm(often, "flow-crashed:golden-eval/daily", "resumed", "Ada")
    watch(often)
    assert history(often, "flow-crashed:golden-eval/daily") == ["raised", "reminded", "cleared"]
    texts = [request.json for request in receiver.received]
    crash = next(one for one in texts if "flow-crashed" in one["text"])
    assert f"http://ui/runs/flow-run/{CRASH['flow_run']}" in json.dumps(crash)
    assert "alarm still stands: automation-failed:gate-on-change" in told(receiver)
    assert told(receiver).count("alarm is over: flow-crashed:golden-eval/daily") == 1


def test_a_look_that_fails_is_a_warning_and_people_are_told_all_the_same(
    settings: Settings, receiver: Receiver
) -> None:
    hear(settings, "automation-failed", {"automation": "a", "reason": "password=hunter2hunter2"})
    (settings.root / "prefect.yaml").unlink()
    (warning,) = watch(settings)
    assert "prefect.yaml" in warning
    assert told(receiver) == ["alarm: automation-failed:a"]
    assert b"hunter2" not in receiver.received[0].body


def test_an_eval_is_left_to_its_flow_for_a_minute_and_an_alarm_is_not(settings: Settings, receiver: Receiver) -> None:
    hear(settings, "flow-crashed", CRASH)
    finish(settings, "drifted")
    watch(settings)
    assert told(receiver) == ["alarm: flow-crashed:golden-eval/daily"]


def test_the_command_says_what_is_silent_by_its_exit_code(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(settings.root)
    run = CliRunner().invoke
    finish(settings)
    assert run(app, ["alarms", "check"]).exit_code == 0
    monkeypatch.setenv("TOUCHSTONE_SILENT_AFTER_H", str(0.001 / 3600))
    checked = run(app, ["alarms", "check", "--json"])
    (suite,) = json.loads(checked.stdout)["suites"]
    assert (checked.exit_code, suite["silent"], suite["did"]) == (1, True, "raised")
    assert SILENT in run(app, ["alarms"]).stdout
    monkeypatch.delenv("TOUCHSTONE_SILENT_AFTER_H")
    assert run(app, ["alarms", "clear", SILENT, "--reason", "known"]).exit_code == 0
    assert json.loads(run(app, ["alarms", "--json"]).stdout) == {"alarms": []}


def test_reminders_keep_the_time_that_an_alarm_began(settings: Settings) -> None:
    finish(settings)
    now = datetime.now(UTC)
    for hours in (1, 13, 25.5):
        check_suites(settings, now + timedelta(hours=hours))
    (alarm,) = standing_alarms(settings)
    assert alarm.raised.since < now.isoformat()
    assert history(settings) == ["raised", "reminded"]


def test_a_crashed_eval_is_over_when_a_later_one_has_finished(settings: Settings) -> None:
    patient, crash = (
        settings.model_copy(update={"silent_after_h": 26}),
        CRASH | {"deployment": "golden-eval/daily-golden"},
    )
    finish(patient)
    hear(patient, "flow-crashed", crash)
    check_suites(patient)
    assert history(patient, "flow-crashed:golden-eval/daily-golden") == ["raised"]
    finish(patient)
    check_suites(patient)
    assert history(patient, "flow-crashed:golden-eval/daily-golden") == ["raised", "cleared"]
