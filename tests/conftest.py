"""What all tests share: quiet libraries, an emulated vendor, and a project in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.environment import apply_defaults

apply_defaults()

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", ROOT.parent / "shared" / "data"))


class VendorControl:
    """A running emulator: its address, and its control endpoints."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_base = f"{url}/v1"

    def put(self, what: str, body: Any) -> None:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/control/{what}", data=data, method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def fault(self, kind: str, **parameters: Any) -> None:
        """Put one fault in force, instead of those before."""
        self.put("faults", [{"kind": kind, **parameters}])

    def heal(self) -> None:
        self.put("faults", [])

    def counters(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/control/state", timeout=10) as response:
            return json.load(response)["counters"]


@pytest.fixture
def vendor() -> Iterator[VendorControl]:
    """An emulated vendor without recordings."""
    with running(EmulatorOptions()) as url:
        yield VendorControl(url)


@pytest.fixture
def shared_data() -> Path:
    """Real data from outside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}; set TOUCHSTONE_SHARED_DATA to its folder")
    return SHARED_DATA


class Project:
    """A project in a temporary folder, on the shipped data, its bundles pointed at a running emulator."""

    def __init__(self, root: Path, vendor: VendorControl, mlflow_database: Path) -> None:
        self.root = root
        self.state = root / ".touchstone"
        self.state.mkdir()
        shutil.copy(mlflow_database, self.state / "mlflow.db")
        for name in ("datasets", "prompts", "retrieval_configs"):
            (root / name).symlink_to(ROOT / name)
        (root / "bundles").mkdir()
        for path in (ROOT / "bundles").glob("*.yaml"):
            text = path.read_text().replace("http://127.0.0.1:4010", vendor.url)
            (root / "bundles" / path.name).write_text(text)

    def write(self, path: str, content: Any) -> Path:
        """A file of the project; what is not text is written as JSON, which is YAML too."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def prompt_bundle(self, name: str, vendor: VendorControl, **fields: Any) -> str:
        """A bundle with a prompt only; returns its name."""
        bundle = {
            "name": name,
            "model": "openai/extractive-2026-01-15",
            "api_base": vendor.api_base,
            "price": {"input_per_million": 1, "output_per_million": 2},
            "prompt": {"user": "{question}"},
        }
        self.write(f"bundles/{name}.yaml", bundle | fields)
        return name

    def golden_set(self, name: str, cases: list[dict[str, Any]], **policy: Any) -> str:
        """A golden set; its policy has one `expect` scorer and asks for one case unless told otherwise."""
        self.write(f"datasets-own/{name}/cases.jsonl", "\n".join(json.dumps(case) for case in cases))
        defaults = {"scorers": [{"name": "ok", "kind": "expect"}], "minimum_cases": 1}
        self.write(f"datasets-own/{name}/policy.yaml", defaults | policy)
        return f"datasets-own/{name}"


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store: creating its tables takes 10 s, copying it none."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, vendor: VendorControl, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The current directory is a project whose vendor is emulated, whose MLflow is its own SQLite file."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return Project(root, vendor, mlflow_database)


@pytest.fixture
def touchstone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process: touchstone("eval", "run", ...) -> (exit code, stdout's JSON or text)."""

    def run(*arguments: str) -> tuple[int, Any]:
        from cli.main import main

        monkeypatch.setattr("sys.argv", ["touchstone", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr().out
        return code, json.loads(out) if "--json" in arguments else out

    return run
