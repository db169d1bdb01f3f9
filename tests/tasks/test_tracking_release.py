"""The model registry of a real MLflow on SQLite: it follows the ledger, and is drawn anew from it alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks.ledger import Ledger
from tasks.outbox import deliver, deliver_all, standings
from tasks.tracking_address import tracking_uri
from tasks.tracking_prompts import mlflow_template
from tests.core.release_line import deployment
from tests.tasks.release_ledger import LedgerLine
from touchstone.prompts import Prompt
from touchstone.release import Deployment
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "touchstone-default"


@pytest.fixture
def settings(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(root=tmp_path)
    settings.state.mkdir()
    shutil.copy(mlflow_database, settings.state / "mlflow.db")
    return settings


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.ledger, "default")
    yield ledger
    ledger.close()


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(settings))


def aliases(client: MlflowClient) -> dict[str, str]:
    """Alias -> bundle."""
    found = client.get_registered_model(MODEL).aliases
    return {alias: client.get_model_version(MODEL, str(version)).tags["bundle"] for alias, version in found.items()}


def versions(client: MlflowClient) -> dict[int, dict[str, str]]:
    return {int(version.version): version.tags for version in client.search_model_versions(f"name = '{MODEL}'")}


def test_aliases_follow_promotion_canary_and_roll_back(
    settings: Settings, ledger: Ledger, client: MlflowClient
) -> None:
    line = LedgerLine(ledger)

    def shown() -> dict[str, str]:
        assert deliver(settings, ledger) == []
        return aliases(client)

    line.release("old")
    assert shown() == {"champion": "old"}
    line.candidate(deployment("new", approval={"required": 0}))
    assert shown() == {"champion": "old", "candidate": "new"}
    line.canary()
    assert shown() == {"champion": "old", "candidate": "new", "canary": "new"}
    line.stop()
    assert shown() == {"champion": "old"}
    line.candidate(deployment("new", approval={"required": 0}))
    line.canary("canary-2")
    line.graduate()
    line.promote("Grace")
    assert shown() == {"champion": "new"}
    tags = versions(client)
    assert [tags[number]["bundle"] for number in sorted(tags)] == ["old", "new"]  # one per bundle, in order
    new = tags[2]
    assert (new["promoted_by"], new["gate_key"], new["changed"]) == ("Grace", "gate-new", "prompt")
    assert (new["prompt"], new["model"]) == ("new@1.0.0", "openai/gpt-4o-2024-11-20")
    assert (new["scores"], new["promoted_at"]) == ('{"passed": 0.9}', ledger.events()[-1].at)
    assert "| passed | 0.900 |" in (client.get_model_version(MODEL, "2").description or "")
    line.roll_back()
    assert shown() == {"champion": "old"}


def test_a_repetition_changes_nothing_and_an_alias_moved_by_hand_is_moved_back(
    settings: Settings, ledger: Ledger, client: MlflowClient
) -> None:
    LedgerLine(ledger).releases(["old", "new"])
    deliver(settings, ledger)
    before = client.get_registered_model(MODEL)
    assert deliver_all(settings, ledger, rebuild=True) == []
    after = client.get_registered_model(MODEL)
    assert (after.last_updated_timestamp, after.aliases) == (before.last_updated_timestamp, before.aliases)
    assert len(versions(client)) == 2
    assert len(client.search_prompt_versions("new")) == 1
    client.set_registered_model_alias(MODEL, "champion", "1")
    deliver_all(settings, ledger, rebuild=True)
    assert aliases(client) == {"champion": "new"}


def test_publish_all_draws_the_registry_anew_after_it_was_deleted(
    settings: Settings, ledger: Ledger, client: MlflowClient, touchstone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(settings.root)
    line = LedgerLine(ledger)
    line.releases(["old", "new"])
    line.candidate(deployment("next"))
    line.canary()
    code, found = touchstone("publish", "--json")
    assert (code, found["warnings"]) == (0, [])
    assert {one["projection"]: one["waiting"] for one in found["outbox"]}["mlflow"] == 0
    shown, described = aliases(client), versions(client)
    client.delete_registered_model(MODEL)
    client.delete_prompt_version("new", "1")
    client.delete_prompt("new")
    assert touchstone("publish", "--json")[0] == 0
    assert not client.search_registered_models(f"name = '{MODEL}'")  # the ledger has said nothing new
    touchstone("publish", "--all", "--json")
    assert (aliases(client), versions(client)) == (shown, described)
    assert [version.version for version in client.search_prompt_versions("new")] == [1]


def test_a_version_points_to_the_gate_s_eval_where_mlflow_has_it_else_to_a_run_with_the_definition(
    settings: Settings, ledger: Ledger, client: MlflowClient
) -> None:
    experiment = client.create_experiment("touchstone/support", str(settings.state / "mlartifacts" / "support"))
    run = client.create_run(experiment, tags={"touchstone.run_key": "new-run"})
    LedgerLine(ledger).releases(["old", "new"])
    deliver(settings, ledger)
    assert client.get_model_version(MODEL, "2").run_id == run.info.run_id
    own = client.get_model_version(MODEL, "1").run_id
    assert own is not None
    folder = Path(client.download_artifacts(own, "definition.json", str(settings.state)))
    assert '"prompt": "old@1.0.0"' in folder.read_text()


def test_prompts_are_registered_once_per_version_and_again_when_their_text_was_edited(
    settings: Settings, ledger: Ledger, client: MlflowClient
) -> None:
    line = LedgerLine(ledger)
    line.release("answers")
    for version, text in (("1.1.0", "Please answer"), ("1.1.0", "Kindly answer")):
        prompt = Prompt(
            version=version, changelog="friendlier", system="Use {context}.", template=text + ": {question}"
        )
        line.take(*_candidate(deployment("answers"), prompt))
        deliver(settings, ledger)
    found = sorted(client.search_prompt_versions("answers"), key=lambda one: one.version)
    assert [(one.version, one.tags["version"]) for one in found] == [(1, "1.0.0"), (2, "1.1.0"), (3, "1.1.0")]
    assert found[0].template == "answers: {{ question }}"
    assert found[1].commit_message == "friendlier"
    assert found[1].template == [
        {"role": "system", "content": "Use {{ context }}."},
        {"role": "user", "content": "Please answer: {{ question }}"},
    ]


def _candidate(deployed: Deployment, prompt: Prompt) -> tuple[Any, dict[str, Any]]:
    from touchstone.ledger import EventKind

    bundle = deployed.definition.bundle.model_copy(update={"prompt": f"answers@{prompt.version}"})
    definition = deployed.definition.model_copy(update={"bundle": bundle, "prompt": prompt})
    changed = deployed.model_copy(update={"definition": definition, "fingerprint": definition.fingerprint})
    return EventKind.RELEASE_CANDIDATE, {"deployment": changed.model_dump(mode="json"), "by": "ci", "reason": "r"}


def test_literal_braces_of_a_prompt_stay_literal() -> None:
    assert mlflow_template(Prompt(version="1.0.0", template='{{"q": "{question}"}}')) == '{"q": "{{ question }}"}'


def test_with_mlflow_away_the_state_waits_and_heals_whatever_came_between(
    settings: Settings, ledger: Ledger, client: MlflowClient
) -> None:
    away = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    line = LedgerLine(ledger)
    line.releases(["old", "new"])
    assert deliver(away, ledger)[0].startswith("mlflow: MLflow at http://127.0.0.1:9")
    assert {one.projection: one.waiting for one in standings(settings, ledger)}["mlflow"] == 4
    line.roll_back()
    assert deliver(settings, ledger) == []
    assert aliases(client) == {"champion": "old"}
