"""Housekeeping on a real ledger, MLflow store and disk: what goes, and above all what stays."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.housekeeping import conduct, final_state
from tasks.announce_housekeeping import markdown
from tasks.inbox import WebhookInbox
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.spool import Spool
from tasks.tracking import _content
from tasks.tracking_address import connected
from tests.conftest import Project, VendorControl
from tests.tasks.live_traffic import LiveTraffic
from touchstone.housekeeping import Cleaned, HousekeepingReport
from touchstone.ledger import EventKind
from touchstone.webhooks import Action, Hook

OLD = timedelta(days=100)


class Disk:
    """A project's state folder with spools of any age."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def folder(self, kind: str, name: str, age: timedelta = OLD, **files: Any) -> Path:
        path = self.state / kind / name
        path.mkdir(parents=True)
        for file, content in files.items():
            (path / f"{file}.json").write_text(json.dumps(content))
        self.age(path, age)
        return path

    def run(self, name: str, age: timedelta = OLD, *, published: bool = True, finished: bool = True) -> Path:
        files: dict[str, Any] = {"manifest": {"created_at": "2026-01-01"}}
        if finished:
            files["report"] = {"verdict": "stable"}
        path = self.folder("runs", name, age, **files)
        if published and finished:
            marker = {"complete": True, "content": _content(Spool(path))}
            (path / "published.json").write_text(json.dumps(marker))
            self.age(path, age)
        return path

    def age(self, path: Path, age: timedelta) -> None:
        moment = time.time() - age.total_seconds()
        for file in path.iterdir():
            os.utime(file, (moment, moment))

    def left(self, kind: str) -> set[str]:
        return {path.name for path in (self.state / kind).iterdir()}


@pytest.fixture
def disk(project: Project) -> Disk:
    return Disk(project.state)


def append(kind: EventKind, subject: str, **payload: Any) -> None:
    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        ledger.append(kind, subject, payload)


def item(report: HousekeepingReport, what: str) -> Cleaned:
    return next(item for item in report.items if item.what == what)


def test_old_spools_go_and_what_the_ledger_refers_to_stays(disk: Disk, project: Project) -> None:
    gone = disk.run("gone")
    (gone / "calls.jsonl").write_text("x" * 5000)
    disk.age(gone, OLD)
    for name in ("baseline", "last", "good", "of-gate"):
        disk.run(name)
    disk.run("stale-baseline")
    disk.run("unfinished", finished=False)
    disk.run("unpublished", published=False)
    disk.run("young", timedelta(days=89))
    for kind, name in (("gates", "gate-1"), ("gates", "gate-0"), ("canaries", "c-0"), ("attributions", "a-0")):
        disk.folder(kind, name, gate={})
    disk.folder("builds", "b-live", report={}, published={})
    disk.folder("builds", "b-old", report={}, published={})
    disk.folder("builds", "b-unsent", report={})
    append(EventKind.BASELINE_FROZEN, "s:f:d", run_keys=["stale-baseline"])
    append(EventKind.BASELINE_FROZEN, "s:f:d", run_keys=["baseline"])
    append(EventKind.EVAL_DECIDED, "s:f:d", run_key="gone", verdict="stable")
    append(EventKind.EVAL_DECIDED, "s:f:d", run_key="good", verdict="stable")
    append(EventKind.EVAL_DECIDED, "s:f:d", run_key="last", verdict="drifted")
    append(EventKind.GATE_DECIDED, "gate:s", gate_key="gate-1", run_keys=["of-gate"])
    append(EventKind.INDEX_PROMOTED, "index:s", build_key="b-live")

    dry = conduct(load_settings(), dry_run=True)
    assert item(dry, "runs").removed == 3
    assert len(disk.left("runs")) == 9

    report = conduct(load_settings())
    assert disk.left("runs") == {"baseline", "last", "good", "of-gate", "unpublished", "young"}
    assert disk.left("gates") == {"gate-1"}
    assert disk.left("canaries") == disk.left("attributions") == set()
    assert disk.left("builds") == {"b-live", "b-unsent"}
    runs = item(report, "runs")
    assert (runs.removed, runs.kept) == (3, 6)
    assert runs.bytes_freed is not None
    assert runs.bytes_freed > 5000
    assert runs.needed == {
        "baseline": 1,
        "last eval": 1,
        "last good eval": 1,
        "last gate of its bundle": 1,
        "unpublished": 1,
    }
    assert report.failed == ()
    assert final_state(report).name == "Cleaned"
    assert not (project.state / ".removing").exists()
    assert item(conduct(load_settings()), "runs").removed == 0


def test_what_another_environment_of_the_ledger_needs_stays_too(disk: Disk) -> None:
    disk.run("of-production")
    settings = load_settings()
    with closing(Ledger(settings.ledger, "production")) as ledger:
        ledger.append(EventKind.BASELINE_FROZEN, "s:f:d", {"run_keys": ["of-production"]})
    conduct(settings)
    assert disk.left("runs") == {"of-production"}


def test_a_run_that_somebody_resumes_stays(disk: Disk) -> None:
    path = disk.run("resumed", finished=False)
    with Spool(path).locked():
        disk.age(path, OLD)
        assert item(conduct(load_settings()), "runs").needed == {"in use": 1}
    disk.age(path, OLD)
    conduct(load_settings())
    assert disk.left("runs") == set()


def test_releases_and_live_traffic_keep_what_serves_and_lose_what_is_old(
    disk: Disk, project: Project, vendor: VendorControl
) -> None:
    """Champion, candidate and running canary stay; so do traces that are young, and those of evals."""
    traffic = LiveTraffic(project, vendor.api_base)
    traffic.begin()
    for name in ("gate-old", "gate-new", "gate-other"):
        disk.folder("gates", name, gate={})
    for name in ("new-canary", "old-canary"):
        disk.folder("canaries", name, lock="")
    now = datetime.now(UTC)
    ages = [timedelta(days=days) for days in (1, 89, 91, 200)] + [timedelta(days=120, seconds=n) for n in range(110)]
    traffic.send([traffic.trace(now - age, "champion", "Five days.") for age in ages])
    settings = load_settings()
    with connected(settings) as client:
        evals = client.create_experiment("touchstone/support", str(project.state / "mlartifacts"))
        traffic.experiment_id, of_traffic = evals, traffic.experiment_id
        traffic.send([traffic.trace(now - OLD, "champion", "Of an eval.")])

    assert item(conduct(settings, dry_run=True), "live traffic traces").removed == 112
    report = conduct(settings)
    assert disk.left("gates") == {"gate-old", "gate-new"}
    assert disk.left("canaries") == {"new-canary"}
    assert item(report, "live traffic traces").removed == 112
    with connected(settings) as client:
        left = {experiment: len(client.search_traces(locations=[experiment])) for experiment in (evals, of_traffic)}
    assert left == {evals: 1, of_traffic: 2}


def test_days_that_a_check_looks_back_to_stay_in_the_retrieval_log(project: Project, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOUCHSTONE_RETENTION", '{"retrievals": 5}')
    log, today = project.state / "retrievals", datetime.now(UTC).date()
    log.mkdir()
    days = [(today - timedelta(days=age)).isoformat() for age in (0, 5, 29, 31, 400)]
    for day in days:
        (log / f"{day}.jsonl").write_text("{}\n")
    report = conduct(load_settings())
    assert sorted(path.stem for path in log.iterdir()) == sorted(days[:3])  # query drift: 2 x (14 + 1) days
    assert "looks back 30 days" in item(report, "days of the retrieval log").note


def test_webhooks_that_are_done_with_go_and_those_that_wait_stay(project: Project) -> None:
    settings, action = load_settings(), Action(kind="run", target="gate/support")
    with closing(WebhookInbox(settings.inbox)) as inbox:
        for number, (age, actions) in enumerate([(100, ()), (20, ()), (100, (action,))]):
            at = (datetime.now(UTC) - timedelta(days=age)).isoformat()
            hook = Hook(id=f"h{number}", source="github", event="push", received_at=at, actions=actions)
            assert asyncio.run(inbox.put(hook))
        assert item(conduct(settings), "webhooks").removed == 1
        assert {row.hook.id for row in inbox.listed()} == {"h1", "h2"}


def test_one_system_that_is_away_stops_no_other_and_is_named(
    disk: Disk, project: Project, monkeypatch: Any, touchstone: Any
) -> None:
    disk.run("gone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, found = touchstone("housekeeping", "--json")
    assert (code, found["failed"]) == (3, ["MLflow"])
    assert disk.left("runs") == set()
    report = HousekeepingReport.model_validate({name: value for name, value in found.items() if name != "failed"})
    state = final_state(report)
    assert (state.name, state.is_failed()) == ("Incomplete", True)
    assert "MLflow at http://127.0.0.1:9" in str(state.message)
    assert "| runs | 90 days | 0 | 1 |" in markdown(report)


def test_without_the_ledger_nothing_is_removed_from_disk(disk: Disk, project: Project) -> None:
    disk.run("gone")
    (project.state / "ledger.db").write_text("no database")
    report = conduct(load_settings())
    assert disk.left("runs") == {"gone"}
    assert "files" in [failed.what for failed in report.failed]


def test_what_a_killed_housekeeping_left_is_removed_by_the_next(disk: Disk, project: Project) -> None:
    disk.folder(".removing", "runs-half", manifest={})
    conduct(load_settings())
    assert not (project.state / ".removing").exists()
