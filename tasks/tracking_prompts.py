"""MLflow's prompt registry: the prompts of deployments, each version once, with its changelog as commit message."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from string import Formatter
from typing import TYPE_CHECKING, Any

from touchstone.definition import Definition
from touchstone.prompts import Prompt

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VERSION, _DIGEST = "version", "touchstone.digest"


def show_prompts(client: MlflowClient, definitions: Iterable[Definition]) -> None:
    """Register what the registry lacks, in order. A version whose text was edited is shown a second time."""
    wanted: dict[str, dict[str, Prompt]] = {}
    for definition in definitions:
        if definition.prompt is not None and definition.prompt_version not in {"", "inline"}:
            name = definition.prompt_version.partition("@")[0]
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
