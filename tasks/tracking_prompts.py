"""MLflow's prompt registry: the prompts of deployments, each version once; and those that people make there."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Formatter
from typing import TYPE_CHECKING, Any

from tasks.tracking_address import connected
from touchstone.definition import Definition
from touchstone.errors import BadInput
from touchstone.prompts import GenerationParameters, Prompt
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

_VERSION, _DIGEST = "version", "touchstone.digest"


def read_prompt(settings: Settings, reference: str, needed: set[str]) -> Prompt:
    """The prompt that `mlflow:NAME@VERSION` names, with `{name}` where MLflow has `{{ name }}`.

    Raises BadInput when there is none, or when it lacks what the model needs; TrackingUnavailable when MLflow is away.
    """
    name, version = _parsed(reference)
    found = _registered(settings, name, version)
    try:
        prompt = _as_prompt(found)
        prompt.check_placeholders(needed, set())
    except ValueError as error:
        raise BadInput(f"{reference}: {error}; correct it in MLflow as a new version") from None
    return prompt


def is_projection(settings: Settings, name: str, version: str) -> bool:
    """Whether a version was registered from here, to show a file's or a deployment's prompt."""
    return _DIGEST in _registered(settings, name, version).tags


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in MLflow's registry."""

    version: str
    made_at: datetime


def newest_version(settings: Settings, name: str) -> RegisteredVersion | None:
    """The newest version of a prompt that people made in MLflow; None without any."""
    from mlflow.exceptions import MlflowException

    with connected(settings) as client:
        try:
            versions = client.search_prompt_versions(name, max_results=1000) if name else []
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            versions = []
    newest = max((one for one in versions if _DIGEST not in one.tags), key=lambda one: int(one.version), default=None)
    if newest is None:
        return None
    made_at = datetime.fromtimestamp((newest.creation_timestamp or 0) / 1000, UTC)
    return RegisteredVersion(str(newest.version), made_at)


def show_prompts(client: MlflowClient, definitions: Iterable[Definition]) -> None:
    """Register what the registry lacks, in order. A version whose text was edited is shown a second time."""
    wanted: dict[str, dict[str, Prompt]] = {}
    for definition in definitions:
        reference = definition.prompt_version
        if definition.prompt is not None and reference not in {"", "inline"} and not reference.startswith("mlflow:"):
            name = reference.partition("@")[0]
            wanted.setdefault(name, {}).setdefault(prompt_digest(definition.prompt), definition.prompt)
    for name, prompts in wanted.items():
        known = _known(client, name)
        for digest, prompt in prompts.items():
            if digest not in known:
                _register(client, name, digest, prompt)


def prompt_digest(prompt: Prompt) -> str:
    """Of its version and its content: what makes it the same entry."""
    content = [prompt.version, prompt.system, prompt.template, prompt.parameters.model_dump()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def mlflow_template(prompt: Prompt) -> str | list[dict[str, str]]:
    """With `{{ name }}` where ours has `{name}`; chat messages when there is a system text."""
    user = _in_double_braces(prompt.template)
    if not prompt.system:
        return user
    return [{"role": "system", "content": _in_double_braces(prompt.system)}, {"role": "user", "content": user}]


def _in_double_braces(template: str) -> str:
    parts = Formatter().parse(template)
    return "".join(text + (f"{{{{ {name} }}}}" if name is not None else "") for text, name, _, _ in parts)


def _parsed(reference: str) -> tuple[str, str]:
    match = re.fullmatch(r"mlflow:([\w.-]+)@(\d+)", reference)
    if match is None:
        raise BadInput(f"prompt {reference!r}: write mlflow:NAME@VERSION, such as mlflow:support@7")
    return match[1], match[2]


def _registered(settings: Settings, name: str, version: str) -> PromptVersion:
    from mlflow.exceptions import MlflowException

    with connected(settings) as client:
        try:
            found = client.get_prompt_version(name, version)
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            found = None
    if found is None:
        raise BadInput(f"mlflow:{name}@{version}: MLflow's prompt registry has no such version")
    return found


def _as_prompt(found: PromptVersion) -> Prompt:
    """Raises ValueError for what a bundle cannot say: other roles, or more than one message of each."""
    system, user = "", found.template
    if not isinstance(user, str):
        said = [(message.get("role"), message.get("content")) for message in user]
        texts = dict(said)
        if len(texts) < len(said) or not texts.keys() <= {"system", "user"} or "user" not in texts:
            raise ValueError("a chat prompt has one user message, and at most one system message")
        system, user = str(texts.get("system") or ""), str(texts["user"])
    given = {
        name: value for name, value in (found.model_config or {}).items() if name in GenerationParameters.model_fields
    }
    return Prompt(
        version=f"0.0.{found.version}",
        author=found.tags.get("author", ""),
        changelog=found.commit_message or "",
        system=_in_single_braces(system),
        template=_in_single_braces(user),
        parameters=GenerationParameters.model_validate({k: v for k, v in given.items() if v is not None}),
    )


def _in_single_braces(template: str) -> str:
    """Literal braces are doubled, as ours are format strings."""
    parts = re.split(r"\{\{\s*(\w+)\s*\}\}", template)
    texts = [
        text.replace("{", "{{").replace("}", "}}") if number % 2 == 0 else f"{{{text}}}"
        for number, text in enumerate(parts)
    ]
    return "".join(texts)


def _known(client: MlflowClient, name: str) -> set[str]:
    from mlflow.exceptions import MlflowException

    try:
        versions = client.search_prompt_versions(name, max_results=1000)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return set()
        raise
    return {version.tags[_DIGEST] for version in versions if _DIGEST in version.tags}


def _register(client: MlflowClient, name: str, digest: str, prompt: Prompt) -> None:
    parameters: dict[str, Any] = {
        field: value
        for field, value in prompt.parameters.model_dump(include={"temperature", "max_tokens", "top_p"}).items()
        if value is not None
    }
    logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)  # a line for each prompt
    tags = {_VERSION: prompt.version, _DIGEST: digest, "author": prompt.author}
    client.register_prompt(
        name,
        mlflow_template(prompt),
        commit_message=prompt.changelog or f"{name}@{prompt.version}",
        tags={tag: value for tag, value in tags.items() if value},
        model_config=parameters or None,
    )
