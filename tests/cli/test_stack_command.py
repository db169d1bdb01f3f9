"""touchstone up, down, status: what is refused before anything starts, and the secrets of the local stack."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from cli.stack import up
from tasks.health import Port, check_ports
from tasks.loading import load_settings
from tasks.stack_file import only_one
from tasks.stack_parts import Ports, plan_stack
from tasks.stack_secrets import ENCRYPTION, SIGNING, ensure_secrets
from tests.conftest import ROOT, Project
from touchstone.errors import BadInput

ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "TOUCHSTONE_MLFLOW_TRACKING_URI")
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AZURE_API_KEY")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def site(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that can be deployed, without servers or keys of the user's."""
    for name in (*ADDRESSES, *KEYS, *SIGNING, ENCRYPTION):
        monkeypatch.delenv(name, raising=False)
    for name in ("prefect.yaml", "touchstone.yaml"):
        (project.root / name).symlink_to(ROOT / name)
    return project


def names(plan: Any) -> list[str]:
    return [part.name for part in plan.parts]


def test_a_taken_port_is_refused_before_anything_starts(site: Project, taken: int) -> None:
    with pytest.raises(BadInput) as refused:
        up(mlflow_port=taken)
    assert f"port {taken} for MLflow is taken (there listens, as a rule, another MLflow server" in str(refused.value)
    assert "--mlflow-port" in str(refused.value)
    assert not (site.state / "logs").exists()
    assert not (site.state / "stack.json").exists()


def test_all_taken_ports_are_named_at_once(taken: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        second = other.getsockname()[1]
        with pytest.raises(BadInput) as refused:
            check_ports([Port(taken, "a", "x", "--a-port"), Port(second, "b", "y", "--b-port")])
    assert "--a-port" in str(refused.value)
    assert "--b-port" in str(refused.value)


def test_one_port_for_two_parts_is_refused() -> None:
    with pytest.raises(BadInput, match="port 4999 is asked for by --a-port, --b-port"):
        check_ports([Port(4999, "a", "x", "--a-port"), Port(4999, "b", "y", "--b-port")])


def test_a_second_up_on_one_state_folder_is_refused(site: Project, touchstone: Any) -> None:
    with only_one(site.state):
        assert touchstone("up")[0] == 2
    assert not (site.state / "logs").exists()


def test_a_server_of_the_users_that_does_not_answer_is_refused(site: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(BadInput, match="PREFECT_API_URL: nobody answers there"):
        up()
    assert not (site.state / "logs").exists()


def test_without_anything_running_status_is_1_and_down_is_content(site: Project, touchstone: Any) -> None:
    code, data = touchstone("status", "--json")
    assert (code, data["up"], data["parts"]) == (1, False, [])
    code, said = touchstone("down")
    assert (code, said) == (0, "nothing runs here\n")


def test_servers_that_the_user_names_are_not_started(site: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_stack(load_settings(), Ports())
    assert names(plan)[:2] == ["prefect", "mlflow"]
    assert names(plan)[-1] == "worker"  # it is the first to be ended
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    plan = plan_stack(load_settings(), Ports())
    assert not {"prefect", "mlflow"} & {*names(plan), *(port.part for port in plan.ports)}
    worker = plan.parts[-1].environment
    assert worker["PREFECT_API_URL"] == "http://prefect.example/api"
    assert worker["MLFLOW_TRACKING_URI"] == "http://mlflow.example"
    assert worker.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME")


def test_clients_go_through_the_mlflow_server_and_the_server_alone_opens_the_store(
    site: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{site.root / 'own.db'}"
    monkeypatch.setenv("TOUCHSTONE_MLFLOW_TRACKING_URI", store)
    plan = {part.name: part for part in plan_stack(load_settings(), Ports(mlflow=5999)).parts}
    assert store in plan["mlflow"].command
    for name in ("worker", "gateway", "deploy"):
        environment = plan[name].environment
        assert environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5999"
        assert environment["TOUCHSTONE_MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5999"


def test_the_emulated_vendor_is_started_where_scheduled_bundles_call_it_and_no_key_is_set(
    site: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "emulator" in names(plan_stack(load_settings(), Ports()))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    assert "emulator" not in names(plan_stack(load_settings(), Ports()))
    assert "emulator" in names(plan_stack(load_settings(), Ports(), emulator=True))


def test_secrets_are_made_once_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    made = ensure_secrets(tmp_path, {})
    assert set(made) == {*SIGNING, ENCRYPTION}
    assert len(set(made.values())) == len(made)
    Fernet(made[ENCRYPTION])
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
    assert ensure_secrets(tmp_path, {}) == made


def test_a_secret_of_the_users_wins_and_is_not_written(tmp_path: Path) -> None:
    made = ensure_secrets(tmp_path, {SIGNING[0]: "their-own"})
    assert SIGNING[0] not in made
    assert "their-own" not in (tmp_path / "secrets.env").read_text()
    assert SIGNING[0] in ensure_secrets(tmp_path, {})  # made once it is needed


def test_secrets_that_are_readable_by_others_are_closed(tmp_path: Path) -> None:
    ensure_secrets(tmp_path, {})
    (tmp_path / "secrets.env").chmod(0o644)
    ensure_secrets(tmp_path, {})
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
