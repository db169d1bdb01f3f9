"""What is checked of prefect.yaml and the webhooks' rules before anything is sent to Prefect."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.environment import apply_defaults
from tasks.loading import place_in
from touchstone.deployments import Deployment, Deployments
from touchstone.errors import BadInput
from touchstone.settings import Settings

if TYPE_CHECKING:
    from prefect import Flow

RELEASES = "touchstone.release."  # of the resource of a release line's events; its environment follows


@dataclass(frozen=True)
class Entry:
    """A deployment of prefect.yaml with the flow that it names. `schema` is the form that the UI shows."""

    deployment: Deployment
    number: int
    flow: Flow
    schema: dict[str, Any]
    file: Path

    def place(self, *location: str | int) -> str:
        return place_in(self.file, "deployments", self.number, *location)


def checked_entries(settings: Settings, deployments: Deployments) -> tuple[Entry, ...]:
    """Every deployment with its flow. Raises BadInput for the first that could not run as it is written."""
    apply_defaults()
    file = settings.root / "prefect.yaml"
    entries = tuple(_entry(one, number, file) for number, one in enumerate(deployments.deployments))
    for entry in entries:
        _check_parameters(entry)
        _check_environment(entry, settings.environment)
    return entries


def check_rules(settings: Settings, entries: Sequence[Entry], on_server: Collection[str]) -> None:
    """Raises BadInput when a webhook would start a deployment that there is not, or not as the rule says."""
    known = {entry.deployment.full_name: entry for entry in entries}
    for number, rule in enumerate(settings.webhooks.rules):
        place = partial(_rule_place, settings.root, number, "run")
        if rule.run and rule.run not in known and rule.run not in on_server:
            names = ", ".join(sorted({*known, *on_server}))
            raise BadInput(f"{place()}: {rule.run!r} is no deployment of prefect.yaml or of the server; known: {names}")
        if entry := known.get(rule.run):
            place = partial(_rule_place, settings.root, number, "parameters")
            _check_given(entry, place, rule.parameters, whole=True)


def _entry(deployment: Deployment, number: int, file: Path) -> Entry:
    from prefect.utilities.callables import parameter_schema

    flow = _flow(deployment, partial(place_in, file, "deployments", number, "entrypoint"))
    return Entry(deployment, number, flow, parameter_schema(flow).model_dump_for_openapi(), file)


def _flow(deployment: Deployment, place: Callable[[], str]) -> Flow:
    from prefect import Flow

    module_name, _, name = deployment.entrypoint.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{place()}: {module_name} cannot be imported: {type(error).__name__}: {reason}") from None
    found = getattr(module, name, None)
    if not isinstance(found, Flow):
        flows = sorted(key for key, value in vars(module).items() if isinstance(value, Flow))
        raise BadInput(f"{place()}: {module_name} has no flow {name!r}; it has {', '.join(flows) or 'none'}")
    if found.name != deployment.flow:
        raise BadInput(f"{place()}: the flow is named {found.name!r}; name it {deployment.flow!r}, as its function")
    return found


def _check_parameters(entry: Entry) -> None:
    one = entry.deployment
    _check_given(entry, partial(entry.place, "parameters"), one.parameters)
    for number, schedule in enumerate(one.schedules):
        place = partial(entry.place, "schedules", number, "parameters")
        _check_given(entry, place, schedule.parameters, whole=schedule.active)
    for number, trigger in enumerate(one.triggers):
        place = partial(entry.place, "triggers", number, "parameters")
        _check_given(entry, place, trigger.parameters, whole=trigger.enabled)


def _check_given(entry: Entry, place: Callable[..., str], given: Mapping[str, Any], *, whole: bool = False) -> None:
    """Names and types; `whole`: it runs by itself so, and nothing may be missing."""
    from prefect.utilities.schema_tools.validation import validate

    properties = entry.schema.get("properties", {})
    for name, value in given.items():
        if name not in properties:
            raise BadInput(
                f"{place(name)}: {entry.flow.name} has no parameter {name!r}; it has {', '.join(properties) or 'none'}"
            )
        if not _is_template(value):
            problems = validate({name: value}, entry.schema, ignore_required=True)
            if problems:
                raise BadInput(f"{place(name)}: {problems[0].message}")
    missing = set(entry.schema.get("required", ())) - given.keys() - entry.deployment.parameters.keys()
    if whole and missing:
        raise BadInput(
            f"{place()}: {', '.join(sorted(missing))} must be given: {entry.flow.name} has no default for it"
        )


def _is_template(value: Any) -> bool:
    """Filled when it runs: by Prefect from an event, or by the gateway from a webhook."""
    if isinstance(value, Mapping):
        return "__prefect_kind" in value or any(map(_is_template, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_template, value))
    return isinstance(value, str) and ("{{" in value or "${" in value)


def _check_environment(entry: Entry, environment: str) -> None:
    for number, trigger in enumerate(entry.deployment.triggers):
        matched = trigger.match.get("prefect.resource.id", "")
        for resource in [matched] if isinstance(matched, str) else matched:
            named = resource.removeprefix(RELEASES)
            if named != resource and named not in (environment, "*"):
                place = entry.place("triggers", number, "match", "prefect.resource.id")
                raise BadInput(
                    f"{place}: {resource} is of the environment {named}, but this one is {environment} (setting "
                    f"`environment`): nothing would ever start it; write {RELEASES}{environment}"
                )


def _rule_place(root: Path, number: int, *field: str) -> str:
    file = root / "touchstone.yaml"
    if not file.is_file():
        return f"TOUCHSTONE_WEBHOOKS: field rules.{number}.{'.'.join(field)}"
    return place_in(file, "webhooks", "rules", number, *field)
