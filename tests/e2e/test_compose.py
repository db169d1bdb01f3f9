"""compose.yaml, the image and .env.example: what would fail only in production."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_settings_fields

from tests.e2e.compose_file import ROOT, raw, required, resolved
from touchstone.settings import Settings

SERVICES = raw()["services"]
SECRETS = {name: f"secret-{number}" for number, name in enumerate(sorted(required()))}
ONCE = {"migrate", "deploy"}  # they end by themselves


def environment(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment", {})


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = (re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line) for line in lines)
    return {pair[1]: pair[2] for pair in pairs if pair}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_watched_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_named_by_a_version(name: str) -> None:
    image = resolved(SECRETS)["services"][name]["image"]
    assert re.fullmatch(r"[a-z]+:\d[\w.]*", image), "a short name with a version, and no registry's host"


def test_what_a_service_waits_for_exists_and_can_become_so() -> None:
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if name in ONCE else "service_healthy"
            assert condition == {"condition": wanted}


def test_each_setting_of_prefects_exists() -> None:
    from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
    from prefect_redis.client import RedisMessagingSettings

    known = set(_get_settings_fields(PrefectSettings))
    for settings in (RedisMessagingSettings, RedisWorkerCleanupQueueSettings):
        prefix = settings.model_config["env_prefix"]
        known |= {f"{prefix}{field}".upper() for field in settings.model_fields}
    named = {key for service in SERVICES.values() for key in environment(service) if key.startswith("PREFECT_")}
    assert named
    assert named - known == set()


def test_each_setting_of_ours_exists() -> None:
    fields = {f"TOUCHSTONE_{field}".upper() for field in Settings.model_fields}
    sources = yaml.safe_load((ROOT / "touchstone.yaml").read_text())["webhooks"]["sources"].values()
    secrets = {source["secret_env"] for source in sources} | {"TOUCHSTONE_GATEWAY_TOKEN"}
    named = {key for service in SERVICES.values() for key in environment(service) if key.startswith("TOUCHSTONE_")}
    assert named - fields - secrets == set()
    assert secrets <= environment(SERVICES["gateway"]).keys()


def test_each_setting_of_mlflows_exists() -> None:
    import mlflow.environment_variables as known

    named = {key for key in environment(SERVICES["mlflow"]) if key.startswith("MLFLOW_")}
    public = set(vars(known)) | {name.removeprefix("_") for name in vars(known)}
    assert named - public == {"MLFLOW_BACKEND_STORE_URI"}  # of the command line, as --backend-store-uri


def test_no_secret_is_in_the_file_and_each_has_to_be_given() -> None:
    for service in SERVICES.values():
        for name, value in environment(service).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|AUTH|_KEY", name) and value:
                assert re.fullmatch(r"\$\{\w+:[?-][^}]*\}", str(value)), name
    assert not re.search(r"://[^/\s:]+:(?!\$\{)[^@\s]+@", (ROOT / "compose.yaml").read_text())
    with pytest.raises(KeyError):
        resolved({})


def test_the_example_names_what_has_to_be_given_and_gives_none_of_it() -> None:
    given = example()
    assert required() <= given.keys()
    assert [name for name in required() if given[name]] == []


def test_the_example_names_nothing_that_is_not_used() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert [name for name in example() if f"${{{name}" not in text] == []


def test_only_loopback_is_published() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_image_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001"]
    assert all(re.fullmatch(r"FROM [a-z]+:\d[\w.-]*( AS \w+)?", line) for line in lines if line.startswith("FROM"))


def test_what_the_image_must_not_hold_is_not_sent_to_its_build() -> None:
    assert {".env", ".env.*", ".git", ".touchstone"} <= set((ROOT / ".dockerignore").read_text().split())
