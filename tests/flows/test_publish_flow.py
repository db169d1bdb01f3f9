"""Publishing what waits: what was sent, what is left, and when waiting is a failure."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

from flows.publish import conduct, final_state
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tests.conftest import Project, VendorControl
from touchstone.ledger import EventKind


def test_a_run_that_was_made_while_mlflow_was_away_is_sent_late_or_not(
    project: Project, vendor: VendorControl, touchstone: Any, monkeypatch: Any
) -> None:
    bundle = project.prompt_bundle("plain", vendor)
    golden = project.golden_set("one", [{"id": "a", "question": "Well?", "expect": {"contains": ["know"]}}])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, report = touchstone("eval", "run", "--bundle", bundle, "--dataset", golden, "--no-prefect", "--json")
    assert code == 0
    waiting = final_state(conduct(load_settings()))
    assert (waiting.name, waiting.is_completed()) == ("Waiting", True)
    assert "1 runs wait" in str(waiting.message)
    assert "MLflow at http://127.0.0.1:9" in str(waiting.message)
    file = project.state / "runs" / report["run_key"] / "report.json"
    os.utime(file, (time.time() - 7200,) * 2)
    late = final_state(conduct(load_settings()))
    assert (late.name, late.is_failed()) == ("Behind", True)
    assert "1 runs since" in str(late.message)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert final_state(conduct(load_settings())).name == "Published"
    assert final_state(conduct(load_settings())).name == "Nothing waits"


def test_an_event_that_nobody_takes_is_named_once_it_has_waited_too_long(project: Project, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOUCHSTONE_NOTIFY", '[{"kind": "slack", "url_env": "OPS_URL"}]')
    monkeypatch.setenv("OPS_URL", "http://127.0.0.1:9/hook")
    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        payload = {"bundle": "support", "level": "detected", "transition": "detected", "reason": "moved"}
        ledger.append(EventKind.PROBE_CHECKED, "probe:support:f", payload)
    done = conduct(settings)
    assert [one.what for one in done.waiting] == ["events for notify.OPS_URL"]
    assert final_state(done).name == "Waiting"
    late = final_state(conduct(settings, late_after_min=1e-6))
    assert late.name == "Behind"
    assert "1 events for notify.OPS_URL since" in str(late.message)
