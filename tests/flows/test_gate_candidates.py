"""What an event asks to gate: files, registry and ledger decide, not the event."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from mlflow import MlflowClient

from tasks.gate_candidates import Candidate, candidates_of
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.releases import read_release
from tasks.tracking_address import tracking_uri
from tasks.tracking_prompts import mlflow_template, read_prompt
from tests.conftest import Project, VendorControl
from tests.flows.test_gate_command import CASES, POLICY
from touchstone.errors import BadInput
from touchstone.prompts import Prompt

HOURS = "Context: Larkvane opens at 9. It closes at 17.\nQuestion: {question}"


@pytest.fixture
def shop(project: Project, vendor: VendorControl, touchstone: Callable[..., tuple[int, Any]]) -> Project:
    """A project that serves the bundle `hours`, whose prompt is a file."""
    (project.root / "prompts").unlink()
    prompt = {"version": "1.0.0", "template": HOURS}
    project.write("prompts/hours/1.0.0.yaml", prompt)
    project.write("prompts/hours/1.1.0.yaml", prompt | {"version": "1.1.0", "template": HOURS.replace("17", "18")})
    project.prompt_bundle("hours", vendor, prompt="hours@1.0.0")
    project.prompt_bundle("hours-late", vendor, prompt="hours@1.1.0")
    dataset = project.golden_set("hours", CASES, **POLICY)
    given = ("--dataset", dataset, "--by", "Ada", "--no-prefect", "--json")
    assert touchstone("gate", "--bundle", "hours", *given)[0] == 0
    assert touchstone("promote", "--by", "Ada", "--reason", "the first one")[0] == 0
    return project


def registry() -> MlflowClient:
    return MlflowClient(tracking_uri(load_settings()))


def test_a_push_asks_for_the_bundles_that_use_its_files_but_not_for_what_is_served(shop: Project) -> None:
    def asked(*paths: str) -> tuple[Candidate, ...]:
        return candidates_of(load_settings(), {"paths": list(paths)}).found

    assert asked("prompts/hours/1.1.0.yaml") == (Candidate("hours-late"),)
    assert asked("bundles/hours-late.yaml", "README.md") == (Candidate("hours-late"),)
    assert asked("prompts/hours/1.0.0.yaml") == ()  # the champion's: it is there already
    assert asked("prompts/hours/9.9.9.yaml", "bundles/gone.yaml") == ()
    (shop.root / "prompts/hours/1.0.0.yaml").write_text(
        f'{{"version": "1.0.0", "template": {HOURS.replace("9", "8")!r}}}'
    )
    assert asked("prompts/hours/1.0.0.yaml") == (Candidate("hours"),)  # now its file says something else


def test_a_prompt_made_in_mlflow_is_gated_in_the_champions_place(
    shop: Project, touchstone: Callable[..., tuple[int, Any]]
) -> None:
    made = registry().register_prompt("hours", HOURS.replace("{question}", "{{ question }}").replace("17", "19"))
    found = candidates_of(load_settings(), {"prompt": "hours", "version": str(made.version)}).found
    assert found == (Candidate("", f"mlflow:hours@{made.version}"),)

    given = ("--bundle", "", "--prompt", f"mlflow:hours@{made.version}", "--dataset", "datasets-own/hours")
    newest = {"prompts": "newest"}  # what a webhook that was lost would have said
    assert candidates_of(load_settings(), newest).found == found
    code, report = touchstone("gate", *given, "--no-prefect", "--json")
    assert candidates_of(load_settings(), newest).reason == f"hours version {made.version} was gated already"
    assert (code, report["decision"]["verdict"]) == (0, "pass")
    with closing(Ledger(load_settings().ledger, "default")) as ledger:
        candidate = read_release(ledger).candidate
    assert candidate is not None
    assert candidate.deployment.name == f"hours-with-mlflow-hours-{made.version}"
    assert "closes at 19" in candidate.deployment.definition.prompt.template


def test_a_version_that_only_shows_a_file_or_that_nobody_serves_asks_for_nothing(shop: Project) -> None:
    shown = registry().register_prompt("hours", "{{ question }}", tags={"touchstone.digest": "0" * 16})
    other = registry().register_prompt("parking", "{{ question }}")
    said = candidates_of(load_settings(), {"prompt": "hours", "version": str(shown.version)})
    assert (said.found, "shows a file" in said.reason) == ((), True)
    said = candidates_of(load_settings(), {"prompt": "parking", "version": other.version})
    assert (said.found, "uses the prompt hours, not parking" in said.reason) == ((), True)


@pytest.mark.parametrize("event", [{}, {"bundle": 7}, {"prompt": "hours"}, {"paths": "README.md"}, {"paths": [1]}])
def test_an_event_that_names_nothing_is_refused_with_what_it_should_name(
    project: Project, event: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=r"`bundle`, or `prompt` and `version`, or a list `paths`"):
        candidates_of(load_settings(), event)


def test_a_registered_prompt_reads_as_the_file_that_it_was_made_of(project: Project) -> None:
    prompt = Prompt(version="1.0.0", system='Answer {{"like": "this"}}.', template="{context} for {question}")
    registry().register_prompt("json", mlflow_template(prompt), model_config={"max_tokens": 7})
    found = read_prompt(load_settings(), "mlflow:json@1", {"question", "context"})
    values = {"question": "why?", "context": "because"}
    assert found.messages(**values) == prompt.messages(**values)
    assert found.parameters.max_tokens == 7


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("mlflow:json", "write mlflow:NAME@VERSION"),
        ("mlflow:nowhere@1", "has no such version"),
        ("mlflow:blind@1", r"\{question\} is missing"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_by_name(project: Project, reference: str, why: str) -> None:
    registry().register_prompt("blind", "Say something.")
    with pytest.raises(BadInput, match=why):
        read_prompt(load_settings(), reference, {"question"})
