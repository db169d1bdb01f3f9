"""`touchstone doctor`: what is broken is named with its fix, and no secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.health import KNOWN_BREAKS, known_breaks
from tests.conftest import Project

BROKEN = [
    ("prefect", "3.9.0", "certifi"),
    ("prefect", "3.9.1", "certifi"),
    ("fastapi", "0.151.0", "prefect deploy"),
    ("fastapi", "0.154.9", "prefect deploy"),
    ("fastapi", "0.155.0", "does not start"),
    ("fastapi", "1.0.0", "does not start"),
    ("sqlalchemy", "2.1.0", "never creates a scheduled run"),
    ("sqlalchemy", "2.2.3", "never creates a scheduled run"),
    ("langchain-community", "0.4.2", "import ragas"),
    ("ragas", "0.4.2", "ragas 0.4.3"),
    ("ragas", "0.5.0rc1", "ragas 0.4.3"),
]
SOUND = {
    "prefect": "3.8.8",
    "fastapi": "0.150.9",
    "sqlalchemy": "2.0.99",
    "langchain-community": "0.4.1",
    "ragas": "0.4.3",
}


def found(report: dict[str, Any], name: str) -> dict[str, Any]:
    (check,) = (check for check in report["checks"] if check["name"] == name)
    return check


@pytest.mark.parametrize(("package", "version", "symptom"), BROKEN)
def test_a_version_that_is_known_to_break_is_named_with_symptom_and_fix(
    package: str, version: str, symptom: str
) -> None:
    (check,) = known_breaks(lambda name: (SOUND | {package: version}).get(name))
    assert (check.name, check.level) == (package, "fail")
    assert check.found.startswith(f"{version}: ")
    assert symptom in check.found
    assert "make setup" in check.fix


def test_every_known_break_is_tested_here() -> None:
    tested = {
        (known.package, known.symptom)
        for known in KNOWN_BREAKS
        for package, _, symptom in BROKEN
        if package == known.package and symptom in known.symptom
    }
    assert {(known.package, known.symptom) for known in KNOWN_BREAKS} == tested


def test_two_breaks_at_once_are_both_named() -> None:
    versions = SOUND | {"sqlalchemy": "2.1.0", "prefect": "3.9.1"}
    assert [check.name for check in known_breaks(versions.get)] == ["prefect", "sqlalchemy"]


@pytest.mark.parametrize("versions", [SOUND, {}, {"fastapi": "0.139.0"}])
def test_sound_or_missing_versions_are_no_break(versions: dict[str, str]) -> None:
    (check,) = known_breaks(versions.get)
    assert check.level == "ok"


def test_a_sound_project_is_exit_code_0(project: Project, touchstone) -> None:
    code, report = touchstone("doctor", "--json")
    assert [check for check in report["checks"] if check["level"] == "fail"] == []
    assert (code, report["ok"]) == (0, True)
    assert found(report, "pins")["level"] == "ok"
    assert found(report, "ledger")["found"].endswith("ledger.db: 0 events")
    assert "answers" in found(report, "default bundle support")["found"]


def test_outside_a_project_it_is_exit_code_1_with_a_fix_and_leaves_nothing(
    tmp_path: Path, touchstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, report = touchstone("doctor", "--json")
    assert (code, report["ok"]) == (1, False)
    assert "no datasets and no bundles" in found(report, "project")["found"]
    assert "TOUCHSTONE_ROOT" in found(report, "project")["fix"]
    assert list(tmp_path.iterdir()) == []
    code, text = touchstone("doctor")
    assert code == 1
    assert "FAIL  project:" in text
    assert "run in the project's root" in text


def test_a_misspelt_setting_is_exit_code_1_and_named(project: Project, touchstone) -> None:
    project.write("touchstone.yaml", "concurency: 3\n")
    code, report = touchstone("doctor", "--json")
    assert code == 1
    assert "concurency" in found(report, "settings")["found"]


def test_a_ledger_that_cannot_be_opened_is_exit_code_1(project: Project, touchstone, monkeypatch) -> None:
    monkeypatch.setenv("TOUCHSTONE_LEDGER_URL", "postgresql+asyncpg://touchstone:hunter2@127.0.0.1:1/ledger")
    code, report = touchstone("doctor", "--json")
    assert code == 1
    assert found(report, "ledger")["level"] == "fail"
    assert "TOUCHSTONE_LEDGER_URL" in found(report, "ledger")["fix"]
    assert "hunter2" not in str(report)


def test_servers_that_are_down_are_warnings_with_a_fix(project: Project, touchstone, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://touchstone:hunter2@127.0.0.1:1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    code, report = touchstone("doctor", "--json")
    assert code == 0
    for name in ("mlflow store", "prefect server"):
        assert found(report, name)["level"] == "warn"
        assert found(report, name)["fix"]
    assert "hunter2" not in str(report)


def test_keys_are_said_to_be_present_and_never_shown(project: Project, touchstone, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-proj-abcdefghijklmnop")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    _, report = touchstone("doctor", "--json")
    keys = found(report, "keys")["found"]
    assert "OPENAI_API_KEY" in keys.partition("absent:")[0]
    assert "ANTHROPIC_API_KEY" in keys.partition("absent:")[2]
    assert "abcdefgh" not in str(report)


def test_what_is_not_scrubbed_is_said_and_names_that_cannot_be_are_exit_code_1(
    project: Project, touchstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = touchstone("doctor", "--json")
    assert "NOT covered: names of people" in found(report, "privacy")["found"]
    monkeypatch.setenv("TOUCHSTONE_PRIVACY", '{"names": true, "spacy_model": "en_core_web_none"}')
    code, report = touchstone("doctor", "--json")
    assert (code, found(report, "privacy")["level"]) == (1, "fail")
    assert "privacy.names" in found(report, "privacy")["fix"]
