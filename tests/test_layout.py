"""What holds the repo together and no other test would miss: names, imports, YAML, deployments, the lock file."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["only-include"]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]

WHOLE_PAYLOAD = {  # a template that named a key which an event lacks would create no run, and say so nowhere
    "__prefect_kind": "json",
    "value": {"__prefect_kind": "jinja", "template": "{{ event.payload | tojson }}"},
}


def on_event(
    name: str, *events: str, resource: str = "touchstone.index.support", whole_payload: bool = False
) -> dict[str, Any]:
    given = {"parameters": {"event": WHOLE_PAYLOAD}} if whole_payload else {}
    match = {"prefect.resource.id": resource}
    return {"type": "event", "enabled": True, "name": name, "match": match, "expect": list(events)} | given


RELEASE = "touchstone.release.default"


# What runs by itself, when, and on what: a change of prefect.yaml must be a change here too.
RUNS_BY_ITSELF = {
    "flows.golden_eval.golden_eval": {
        "name": "daily",
        "parameters": {"bundle": "support", "dataset": "support"},
        "schedules": [
            {"cron": "30 6 * * *", "timezone": "Europe/Berlin", "slug": "every-morning", "active": True},
        ],
        "triggers": [
            on_event("eval-after-reindex", "touchstone.index.promoted"),
            on_event("eval-after-probe", "touchstone.probe.detected", resource="touchstone.probe.support"),
        ],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": {"name": "evals"},
    },
    "flows.freshness.freshness": {
        "name": "support",
        "parameters": {"config": "support"},
        "schedules": [
            {"cron": "*/15 * * * *", "timezone": "Europe/Berlin", "slug": "every-quarter-of-an-hour", "active": True},
        ],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.reindex.reindex": {
        "name": "support",
        "parameters": {"config": "support"},
        "schedules": [{"cron": "0 3 * * *", "timezone": "Europe/Berlin", "slug": "every-night", "active": True}],
        "triggers": [
            on_event(
                "reindex-on-breach",
                "touchstone.freshness.breached",
                "touchstone.webhook.source-changed",
                whole_payload=True,
            ),
        ],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": {"name": "evals"},
    },
    "flows.query_drift.query_drift": {
        "name": "support",
        "parameters": {"config": "support"},
        "schedules": [{"cron": "15 4 * * *", "timezone": "Europe/Berlin", "slug": "every-night", "active": True}],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": {"name": "evals"},
    },
    "flows.gate.gate": {
        "name": "support",
        "parameters": {"dataset": "support"},
        "schedules": [
            {
                "cron": "20 */2 * * *",
                "timezone": "Europe/Berlin",
                "slug": "missed-prompts",
                "active": True,
                "parameters": {"event": {"prompts": "newest"}},
            }
        ],
        "triggers": [
            on_event("gate-on-change", "touchstone.webhook.bundle-changed", resource=RELEASE, whole_payload=True)
        ],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": {"name": "evals"},
    },
    "flows.canary.canary_start": {
        "name": "start",
        "schedules": None,
        "triggers": [on_event("canary-after-gate", "touchstone.release.candidate", resource=RELEASE)],
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.canary.canary_watch": {
        "name": "watch",
        "schedules": [
            {"cron": "*/5 * * * *", "timezone": "Europe/Berlin", "slug": "every-five-minutes", "active": True}
        ],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.promotion.promotion": {
        "name": "approval",
        "schedules": None,
        "triggers": [
            on_event("approval-after-canary", "touchstone.release.graduated", resource=RELEASE, whole_payload=True)
        ],
        "concurrency_limit": None,  # a run that waits for a human must not keep the next candidate's from asking
        "work_pool": {"name": "evals"},
    },
    "flows.attribution.attribution": {
        "name": "support",
        "schedules": None,
        "triggers": [
            on_event(
                "attribution-after-drift",
                "touchstone.drift.detected",
                resource="touchstone.eval.support.support",
                whole_payload=True,
            )
        ],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": {"name": "evals"},
    },
    "flows.probe.probe": {
        "name": "support",
        "parameters": {"bundle": "support", "dataset": "support", "runs_per_day": 24},
        "schedules": [{"cron": "5 * * * *", "timezone": "Europe/Berlin", "slug": "every-hour", "active": True}],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.publish.publish": {
        "name": "outbox",
        "schedules": [
            {"cron": "*/10 * * * *", "timezone": "Europe/Berlin", "slug": "every-ten-minutes", "active": True}
        ],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.housekeeping.housekeeping": {
        "name": "daily",
        "schedules": [{"cron": "40 2 * * *", "timezone": "Europe/Berlin", "slug": "every-night", "active": True}],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
    "flows.label_sampling.label_sampling": {
        "name": "weekly",
        "parameters": {"dataset": "support"},
        "schedules": [
            {"cron": "0 7 * * 1", "timezone": "Europe/Berlin", "slug": "every-monday-morning", "active": True}
        ],
        "triggers": None,
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "work_pool": {"name": "evals"},
    },
}

# Imports the modules named on the command line; prints what is then loaded, and what the imports did to the outside.
IMPORT_AND_TELL = """
import importlib, json, os, sys, threading
names, did, before = sys.argv[1:], [], dict(os.environ)
def watch(event, arguments):
    if event == "open" and set(str(arguments[1] or "r")) & set("wax+"):
        did.append(f"opens {arguments[0]} for writing")
    elif event in ("os.mkdir", "os.remove", "os.rename", "subprocess.Popen", "os.system", "socket.connect",
                   "socket.bind", "sqlite3.connect"):
        did.append(f"{event} {arguments}")
sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
if dict(os.environ) != before:
    did.append("changes the environment")
if threading.active_count() > 1:
    did.append("starts a thread")
print(json.dumps({"loaded": sorted({name.partition(".")[0] for name in sys.modules}), "did": did}))
"""
HELP_AND_TELL = """
import sys
sys.argv = ["touchstone", *sys.argv[1:]]
from cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"prefect", "mlflow", "litellm", "lancedb", "ragas", "pandas", "great_expectations", "openvino"}


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the repo that are in version control."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: install git, or clone the repo instead of copying it")
    return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


@cache
def modules_of(package: str) -> tuple[str, ...]:
    names = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    return tuple(sorted(".".join(name.parts).removesuffix(".__init__") for name in names))


def python(code: str, *arguments: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-B", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["datasets", "prompts", "bundles", "retrieval_configs"])
def test_a_folder_of_data_holds_no_python(folder: str) -> None:
    """One Python file in datasets/ would hide HuggingFace `datasets`, which ragas needs."""
    assert (ROOT / folder).is_dir()
    assert [path for path in (ROOT / folder).rglob("*.py*") if path.is_file()] == []


def test_no_package_of_ours_is_named_like_an_installed_one() -> None:
    installed = packages_distributions()
    assert "ragas" in installed
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file()
        assert set(installed.get(package, ())) <= {PYPROJECT["project"]["name"]}
        assert package not in sys.stdlib_module_names


def test_huggingface_datasets_is_the_installed_one() -> None:
    """Seen from the repo's root, where datasets/ lies."""
    found = python("import importlib.util as u; print(u.find_spec('datasets').origin)").strip()
    assert Path(found).is_file()
    assert not Path(found).is_relative_to(ROOT / "datasets")


def test_every_yaml_parses() -> None:
    files = [path for path in tracked() if path.suffix in {".yaml", ".yml"}]
    assert ROOT / "prefect.yaml" in files
    for path in files:
        assert list(yaml.safe_load_all(path.read_text())), path


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["entrypoint"])
def test_a_deployments_dotted_entrypoint_is_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    """A path entrypoint would load the flow a second time, as another object."""
    from prefect import Flow

    assert re.fullmatch(r"flows(\.\w+){2}", deployment["entrypoint"])
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    given = deployment.get("parameters", {})
    assert given.keys() <= inspect.signature(flow.fn).parameters.keys()
    assert flow.validate_parameters(given).items() >= given.items()


def test_deployments_run_by_themselves_what_and_when_we_mean() -> None:
    assert [deployment["entrypoint"] for deployment in DEPLOYMENTS] == list(RUNS_BY_ITSELF)
    for deployment in DEPLOYMENTS:
        meant = RUNS_BY_ITSELF[deployment["entrypoint"]]
        assert {key: deployment.get(key) for key in meant} == meant


def test_prefect_yaml_has_no_key_that_prefect_would_silently_ignore() -> None:
    from prefect.cli.deploy import _models as prefect_knows

    def check(found: dict[str, Any], model: Any) -> None:
        known = {field.alias or name for name, field in model.model_fields.items()}
        assert found.keys() <= known, f"{sorted(found.keys() - known)} is unknown to Prefect's {model.__name__}"

    check(yaml.safe_load((ROOT / "prefect.yaml").read_text()), prefect_knows.PrefectYamlModel)
    for deployment in DEPLOYMENTS:
        check(deployment, prefect_knows.DeploymentConfig)
        check(deployment["work_pool"], prefect_knows.WorkPoolConfig)
        if "concurrency_limit" in deployment:
            check(deployment["concurrency_limit"], prefect_knows.ConcurrencyLimitSpec)
        for schedule in deployment.get("schedules", ()):
            check(schedule, prefect_knows.RawScheduleConfig)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("touchstone", HEAVY | {"sqlalchemy", "aiohttp", "tasks", "flows", "cli", "emulator"}),
        ("tasks", HEAVY - {"prefect"} | {"flows", "cli", "emulator"}),
        ("emulator", HEAVY | {"touchstone", "tasks", "flows", "cli"}),
        ("cli", HEAVY | {"flows", "emulator"}),
    ],
)
def test_importing_a_package_loads_nothing_heavy_and_does_nothing(package: str, forbidden: set[str]) -> None:
    assert len(modules_of(package)) > 5
    told = json.loads(python(IMPORT_AND_TELL, *modules_of(package)))
    assert package in told["loaded"]
    assert forbidden & set(told["loaded"]) == set()
    assert told["did"] == []


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "run", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    out, _, loaded = python(HELP_AND_TELL, *arguments).rstrip().rpartition("\n")
    assert "Usage: touchstone" in out
    assert (HEAVY | {"scipy", "numpy", "sqlalchemy", "aiohttp"}) & set(loaded.split()) == set()


def test_the_lock_file_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in lock
    assert re.findall(r"https?:|://|index-url|find-links", lock) == []


def test_the_lock_file_holds_every_direct_dependency_in_a_version_we_allow() -> None:
    pins = dict(re.findall(r"(?m)^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", (ROOT / "requirements.lock").read_text()))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in requirements.lock; run `make lock`"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{name} {pins[name]}; run `make lock`"
    assert "torch" not in pins, "6 GB that overrides.txt keeps out"


def test_every_pin_of_a_lock_line_has_a_hash() -> None:
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text())
    unhashed = [entry.split()[0] for entry in entries if "==" in entry and "--hash=sha256:" not in entry]
    assert unhashed == []


def test_no_tracked_file_names_a_home_directory() -> None:
    home = re.compile("|".join(("/ho" + r"me/\w", "/Us" + r"ers/\w", "/ro" + r"ot/\w", r"[A-Z]:\\+Us" + "ers")))
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        assert not home.search(text), f"{path.relative_to(ROOT)}: {home.search(text)}"
