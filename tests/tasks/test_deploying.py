"""`touchstone deploy` on a real Prefect server: all is checked first, only what differs is sent, silence is watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import Crashed, Running

from tasks.crashed_runs import LeftAlone, Takeover, take_over
from tasks.deploying import Done, deploy
from tasks.loading import load_settings
from tasks.standing_automations import COMPLETED, SILENCE
from tests.tasks.prefect_site import DeploySite, Receiver, free_port, prefect_server, wait_for
from touchstone.errors import BadInput, Unmeasurable

RESOURCE = "touchstone.eval.support.support"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    home = tmp_path_factory.mktemp("prefect")
    with (
        prefect_server(home) as url,
        temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def gateway() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture
def site(folder: Path, gateway: Receiver, server: Any, monkeypatch: pytest.MonkeyPatch) -> DeploySite:
    """The shipped files in one folder for all tests, deployed to one server."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOUCHSTONE_PREFECT_HOOK_TOKEN", "of-the-test")
    monkeypatch.setenv("TOUCHSTONE_GATEWAY_URL", gateway.url)
    return DeploySite(folder)


def brought(**options: bool) -> dict[str, list[Done]]:
    done = deploy(load_settings(), **options)
    return {did: [one for one in done if one.did == did] for did in {one.did for one in done}}


def names(done: list[Done]) -> list[str]:
    return [one.name for one in done]


def snapshot(client: SyncPrefectClient) -> dict[str, Any]:
    """Ids and times of change of all that a deploy makes."""
    deployments = {one.id: one for one in client.read_deployments()}
    automations = client.request("POST", "/automations/filter", json={}).json()
    return {
        "deployments": {id: one.updated for id, one in deployments.items()},
        "schedules": {schedule.id for one in deployments.values() for schedule in one.schedules},
        "automations": {one["id"]: one["updated"] for one in automations},
        "triggers": {one["name"]: one["trigger"]["id"] for one in automations},
    }


def emit(client: SyncPrefectClient, event: str) -> None:
    """An event of the shipped suite."""
    sent = {"id": str(uuid4()), "event": event, "occurred": datetime.now(UTC).isoformat()}
    client.request("POST", "/events", json=[sent | {"resource": {"prefect.resource.id": RESOURCE}}])


def test_the_shipped_file_is_deployed_once_and_then_nothing_changes(site: DeploySite, server: Any) -> None:
    first = brought()
    assert set(first) == {"created", "armed"}
    assert len(first["created"]) > len(site.prefect["deployments"])
    before = snapshot(server)
    assert set(brought()) == {"unchanged"}
    assert set(brought(dry_run=True)) == {"unchanged"}
    assert snapshot(server) == before
    deployment = server.read_deployment_by_name("golden-eval/daily")
    assert deployment.pull_steps == [{"prefect.deployments.steps.set_working_directory": {"directory": str(site.root)}}]


def test_schedules_make_runs(site: DeploySite, server: Any) -> None:
    brought()
    body = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    assert wait_for(lambda: server.request("POST", "/flow_runs/count", json=body).json(), 60) > 0


def test_the_form_of_a_flow_tells_what_each_field_means(site: DeploySite, server: Any) -> None:
    brought()
    schema = server.read_deployment_by_name("golden-eval/daily").parameter_openapi_schema
    assert all(field.get("description") for field in schema["properties"].values())
    assert schema["properties"]["repeats"] == {
        "type": "integer",
        "title": "repeats",
        "description": "Trials per case.",
        "default": 1,
        "minimum": 1,
        "maximum": 100,
        "position": 3,
    }


def test_a_schedule_that_left_the_file_goes_and_the_deployment_stays(site: DeploySite, server: Any) -> None:
    brought()
    before = server.read_deployment_by_name("reindex/support")
    site.entry("reindex/support")["schedules"] = []
    site.write()
    assert [(one.name, one.detail) for one in brought()["updated"]] == [
        ("reindex/support", "schedule every-night removed")
    ]
    after = server.read_deployment_by_name("reindex/support")
    assert (after.id, after.schedules) == (before.id, [])


def test_an_edited_trigger_is_changed_and_the_others_are_not_touched(site: DeploySite, server: Any) -> None:
    brought()
    before = snapshot(server)
    trigger = site.entry("golden-eval/daily")["triggers"][0]
    trigger["expect"] = ["touchstone.index.rolled_back"]
    site.write()
    (changed,) = brought()["updated"]
    assert (changed.name, changed.detail) == ("golden-eval/daily", f"trigger {trigger['name']} updated")
    after = snapshot(server)
    assert after["automations"].keys() == before["automations"].keys()
    assert {name for name, id in after["triggers"].items() if before["triggers"][name] != id} == {trigger["name"]}


def test_a_trigger_that_was_switched_off_stays_off_and_one_that_was_deleted_comes_back(
    site: DeploySite, server: Any
) -> None:
    brought()
    off, gone = (server.read_automations_by_name(name)[0] for name in ("gate-on-change", "reindex-on-breach"))
    server.pause_automation(off.id)
    server.delete_automation(gone.id)
    assert names(brought()["updated"]) == ["reindex/support"]
    assert not server.read_automations_by_name("gate-on-change")[0].enabled
    assert server.read_automations_by_name("reindex-on-breach")


def test_what_left_the_file_is_named_and_removed_when_asked(site: DeploySite, server: Any) -> None:
    brought()
    site.prefect["deployments"].remove(site.entry("canary-start/start"))
    site.write()
    assert names(brought()["left over"]) == ["canary-start/start"]
    assert names(brought(prune=True, dry_run=True)["removed"]) == ["canary-start/start"]
    assert names(brought(prune=True)["removed"]) == ["canary-start/start"]
    assert not server.read_automations_by_name("canary-after-gate")
    assert set(brought(prune=True)) == {"unchanged"}
    site.reset()
    assert names(brought()["created"]) == ["canary-start/start"]


def wrong(*path: str | int, to: Any) -> Callable[[DeploySite], None]:
    """Set one field of golden-eval/daily."""

    def change(site: DeploySite) -> None:
        place: Any = site.entry("golden-eval/daily")
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


def without_time_zone(site: DeploySite) -> None:
    del site.entry("golden-eval/daily")["schedules"][0]["timezone"]


def rule_that_runs_nothing(site: DeploySite) -> None:
    site.touchstone["webhooks"]["rules"][0]["run"] = "gate/suport"


def rule_with_unknown_parameter(site: DeploySite) -> None:
    site.touchstone["webhooks"]["rules"][0]["parameters"] = {"pathes": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong("concurrency_limt", to=1), r"prefect.yaml:\d+: field deployments.0.concurrency_limt: unknown field"),
        (wrong("schedules", 0, "cron", to="30 25 * * *"), r"schedules.0.cron: '30 25 \* \* \*' is not a cron line"),
        (wrong("schedules", 0, "timezone", to="Europe/Berln"), r"schedules.0.timezone: 'Europe/Berln' is not a time"),
        (without_time_zone, r"prefect.yaml:\d+: field deployments.0.schedules.0.timezone: is missing"),
        (wrong("entrypoint", to="flows.golden_eval.golden_evl"), r"0.entrypoint: .* has no flow 'golden_evl'; it has"),
        (
            wrong("entrypoint", to="flows.golden.golden_eval"),
            r"0.entrypoint: flows.golden cannot be imported: ModuleNot",
        ),
        (wrong("parameters", "repeats", to="three"), r"0.parameters.repeats: 'three' is not of type 'integer'"),
        (wrong("parameters", "repeats", to=0), r"0.parameters.repeats: 0 is less than the minimum of 1"),
        (wrong("parameters", "repeat", to=3), r"golden-eval has no parameter 'repeat'; it has bundle, dataset"),
        (wrong("triggers", 0, "match", "prefect.resource.id", to="touchstone.release.staging"), r"write .*.default$"),
        (rule_that_runs_nothing, r"touchstone.yaml:\d+: field webhooks.rules.0.run: 'gate/suport' is no deployment"),
        (rule_with_unknown_parameter, r"field webhooks.rules.0.parameters.pathes: gate has no parameter 'pathes'"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_nothing_is_deployed(
    site: DeploySite, server: Any, change: Callable[[DeploySite], None], said: str
) -> None:
    site.entry("freshness/support")["description"] = "Would be changed, too."
    change(site)
    site.write()
    before = snapshot(server)
    with pytest.raises(BadInput, match=said):
        deploy(load_settings())
    assert snapshot(server) == before


def test_without_a_server_it_says_which_setting_and_what_to_do(site: DeploySite) -> None:
    no_server, nobody = pytest.raises(BadInput, match=r"PREFECT_API_URL: is not set; .*touchstone up"), free_port()
    with temporary_settings(restore_defaults={PREFECT_API_URL}), no_server:
        deploy(load_settings())
    no_answer = pytest.raises(Unmeasurable, match=r"PREFECT_API_URL: .* does not answer \(ConnectError\)")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{nobody}/api"}), no_answer:
        deploy(load_settings())


def test_without_the_gateways_token_it_says_who_is_not_told_and_leaves_what_stands(
    site: DeploySite, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought()
    before = snapshot(server)
    monkeypatch.delenv("TOUCHSTONE_PREFECT_HOOK_TOKEN")
    (skipped,) = brought()["skipped"]
    assert skipped.detail.startswith("TOUCHSTONE_PREFECT_HOOK_TOKEN is not set")
    assert snapshot(server) == before


def test_a_suite_that_falls_silent_is_told_once_per_outage_also_after_a_new_deploy(
    site: DeploySite, server: Any, gateway: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = "suite-silent"
    monkeypatch.setenv("TOUCHSTONE_SILENT_AFTER_H", str(12 / 3600))
    assert names(brought()["armed"]) == [RESOURCE]
    wait_for(lambda: gateway.of(silent), 40)
    path, headers, body = next(one for one in gateway.heard if one[2]["alarm"] == silent)
    assert (path, headers["Authorization"]) == ("/hooks/prefect", "Bearer of-the-test")
    assert (body["type"], body["data"]) == (silent, {"resource": RESOURCE})
    assert set(brought()) == {"unchanged"}
    time.sleep(15)
    assert len(gateway.of(silent)) == 1
    emit(server, COMPLETED)
    monkeypatch.setenv("TOUCHSTONE_SILENT_AFTER_H", str(14 / 3600))
    assert names(brought()["updated"]) == [SILENCE]
    wait_for(lambda: len(gateway.of(silent)) == 2, 40)
    ids = {one["id"] for one in gateway.of(silent)}
    assert len(ids) == 2


def test_a_trigger_that_could_not_start_its_run_is_told(site: DeploySite, server: Any, gateway: Receiver) -> None:
    brought()
    trigger = site.entry("attribution/support")["triggers"][0]
    trigger["parameters"] = {"event": "{{ event.payload.nothing.here }}"}
    site.write()
    brought()
    time.sleep(1)
    emit(server, "touchstone.drift.detected")
    (told,) = wait_for(lambda: gateway.of("automation-failed"), 30)
    assert told["data"]["automation"] == "attribution-after-drift"
    assert told["data"]["reason"]


def crashed_run(client: SyncPrefectClient, **parameters: Any) -> str:
    deployment = client.read_deployment_by_name("golden-eval/daily")
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    return str(run.id)


def test_a_crashed_eval_is_taken_over_once_and_a_resumption_never(site: DeploySite, server: Any) -> None:
    brought()
    settings = load_settings()
    run = crashed_run(server, limit=3)
    taken = asyncio.run(take_over(settings, run))
    assert taken == LeftAlone(f"flow run {run} is Running, not crashed")
    server.set_flow_run_state(run, Crashed(), force=True)
    taken = asyncio.run(take_over(settings, f"prefect.flow-run.{run}"))
    assert isinstance(taken, Takeover)
    assert (taken.request.limit, taken.resume) == (3, None)
    assert asyncio.run(take_over(settings, run)) == LeftAlone(f"flow run {run} was taken over before")

    resumption = crashed_run(server, resume_crashed=f"prefect.flow-run.{run}")
    server.set_flow_run_state(resumption, Crashed(), force=True)
    left = asyncio.run(take_over(settings, resumption))
    assert isinstance(left, LeftAlone)
    assert "flow-crashed:golden-eval/daily: raised" in left.reason
    with pytest.raises(BadInput, match="'nonsense' is no flow run of this Prefect server"):
        asyncio.run(take_over(settings, "nonsense"))
