"""The flows that run by the clock, on a real Prefect server: states, tasks, events, artifacts, and its own clean-up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.loading import load_settings
from tasks.retention_prefect import TAG, clean_flow_runs
from tests.conftest import Project, VendorControl
from tests.flows.test_probe_flow import MODEL, learned


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[Any]:
    """A client of it."""
    from prefect.client.orchestration import get_client
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180), get_client(sync_client=True) as client:
        yield client


def event_named(client: Any, name: str) -> dict[str, Any]:
    """What Prefect's server received; it takes events in after a moment."""
    for _ in range(60):
        answer = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
        if found := answer.json()["events"]:
            return found[0]
        time.sleep(0.5)
    raise AssertionError(f"no event {name}")


def test_a_probe_that_detects_fails_as_drifted_and_is_announced(
    project: Project, vendor: VendorControl, prefect_server: Any
) -> None:
    from prefect.artifacts import Artifact

    from flows.probe import probe

    learned()
    vendor.put("aliases", {MODEL: f"{MODEL}-lite"})
    state = probe(bundle="support", return_state=True)
    assert (state.name, state.is_failed()) == ("Drifted", True)
    assert prefect_server.read_flow_run(state.state_details.flow_run_id).name == "probe support"
    artifact = Artifact.get("probe-support")
    assert artifact is not None
    assert "## DETECTED" in str(artifact.data)
    event = event_named(prefect_server, "touchstone.probe.detected")
    assert event["resource"]["prefect.resource.id"] == "touchstone.probe.support"
    assert (event["payload"]["level"], event["payload"]["bundle"]) == ("detected", "support")


def ended(client: Any, tags: list[str]) -> Any:
    """The id of a flow run that has just ended."""
    from prefect import flow
    from prefect.client.schemas.objects import State, StateType

    @flow
    def past() -> None: ...

    run = client.create_flow_run(past, tags=tags)
    client.set_flow_run_state(run.id, State(type=StateType.COMPLETED), force=True)
    return run.id


def test_our_old_flow_runs_are_removed_and_no_others(
    project: Project, prefect_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.settings import PREFECT_API_URL

    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    removed = {ended(prefect_server, [TAG]) for _ in range(52)}  # more than Prefect deletes in one request
    kept = {ended(prefect_server, ["of-others"])}
    limit = datetime.now(UTC)
    kept.add(ended(prefect_server, [TAG]))
    settings, now = load_settings(), limit + timedelta(days=90)
    (dry,) = clean_flow_runs(settings, now, True)
    (cleaned,) = clean_flow_runs(settings, now, False)
    assert (dry.removed, cleaned.removed) == (52, 52)
    both = FlowRunFilter(tags=FlowRunFilterTags(any_=[TAG, "of-others"]))
    left = {run.id for run in prefect_server.read_flow_runs(flow_run_filter=both)}
    assert left == kept
    assert not left & removed


def test_housekeeping_is_a_task_for_each_system_and_a_table(project: Project, prefect_server: Any) -> None:
    from prefect.artifacts import Artifact

    from flows.housekeeping import SYSTEMS, housekeeping

    state = housekeeping(return_state=True)
    assert state.name == "Cleaned", state.message
    run = {"id": {"any_": [str(state.state_details.flow_run_id)]}}
    for _ in range(60):  # Prefect learns of task runs by events
        tasks = prefect_server.request("POST", "/task_runs/filter", json={"flow_runs": run}).json()
        if len(tasks) == len(SYSTEMS):
            break
        time.sleep(0.5)
    assert {task["name"] for task in tasks} == {f"clean {system}" for system in SYSTEMS}
    artifact = Artifact.get("housekeeping")
    assert artifact is not None
    assert "| flow runs | 90 days |" in str(artifact.data)


def test_publishing_when_nothing_waits_says_so(project: Project, prefect_server: Any) -> None:
    from flows.publish import publish

    assert "PREFECT_API_URL" not in os.environ
    state = publish(return_state=True)
    assert (state.name, state.is_completed()) == ("Nothing waits", True)
