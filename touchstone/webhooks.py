"""Webhooks that come in: who may send them, what each one starts, and what of it is kept.

A payload is a hint. What it starts is planned at the door, by the rules of then; of the payload only what a rule
asks for is kept, and who acts on it reads the state again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.errors import BadInput

_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
MOST_PATHS = 300  # of one push; more say only that much has changed


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Closed):
    """Who may send, and how they prove it. `secret_env` names the variable: while rotating, it holds new and old."""

    kind: Literal["standard", "github", "mlflow", "hmac", "token"]
    secret_env: str = Field(pattern=r"^[A-Za-z_]\w*$", description="Variable with one secret, or more by spaces")
    tolerance_s: int = Field(default=300, ge=1, le=3600, description="How far a signed time may be from now")
    signature_header: str = Field(default="x-signature", description="hmac: where HMAC-SHA256 of the body is")
    signature_prefix: str = Field(default="", description="hmac: such as sha256=")
    encoding: Literal["hex", "base64"] = Field(default="hex", description="hmac")
    timestamp_header: str = Field(default="", description="hmac: Unix seconds; `TIME.BODY` is signed then")
    event_header: str = Field(default="", description="hmac, token: where the event's name is; else `type` in the body")

    @field_validator("signature_header", "timestamp_header", "event_header")
    @classmethod
    def is_a_header(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
            raise ValueError(f"{name!r} is not a header's name")
        return name.lower()


class Rule(_Closed):
    """What a webhook starts: a deployment's run, or an event that automations listen to."""

    source: str
    event: str = Field(default="*", description="The event's name, or a pattern such as prompt_*")
    where: dict[str, str | int | float | bool | None] = Field(
        default={}, description="Dotted path in the payload -> value; of text, a pattern"
    )
    paths: tuple[str, ...] = Field(default=(), description="Patterns; one changed file has to match one of them")
    run: str = Field(default="", pattern=r"^([^/\s]+/[^/\s]+)?$", description="FLOW/DEPLOYMENT")
    emit: str = Field(default="", pattern=r"^([\w.-]+)?$", description="Name of a Prefect event")
    resource: str = Field(default="", description="emit: prefect.resource.id of the event")
    parameters: dict[str, Any] = Field(
        default={},
        description="Of the run, or the event's payload. ${payload.DOTTED.PATH}, ${paths}, ${event}, ${source}, ${id}",
    )

    @model_validator(mode="after")
    def does_one_thing(self) -> Rule:
        if bool(self.run) == bool(self.emit):
            raise ValueError("give exactly one of `run` (FLOW/DEPLOYMENT) and `emit` (an event's name)")
        if self.emit and not self.resource:
            raise ValueError("`emit` needs `resource`, the prefect.resource.id that automations match")
        return self


class Webhooks(_Closed):
    """`webhooks` of touchstone.yaml."""

    sources: dict[str, Source] = {}
    rules: tuple[Rule, ...] = ()
    max_body_kb: int = Field(default=256, ge=1, le=25_600)
    keep_days: int = Field(default=30, ge=1, description="So long a repetition is recognised")

    @model_validator(mode="after")
    def names_are_known(self) -> Webhooks:
        for name in self.sources:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"source {name!r}: lower-case letters, digits and hyphens, since it is part of a path")
        for rule in self.rules:
            if rule.source not in self.sources:
                raise ValueError(
                    f"a rule names the source {rule.source!r}; there are {', '.join(self.sources) or 'none'}"
                )
        return self


class Action(_Closed):
    """One thing that a webhook starts."""

    kind: Literal["run", "emit", "alarm"]
    target: str = Field(description="FLOW/DEPLOYMENT, an event's name, or an alarm's")
    resource: str = ""
    parameters: dict[str, Any] = {}
    problem: str = Field(default="", description="Why it cannot be done, found when it was planned")


class Hook(_Closed):
    """A webhook that was verified. `id` is the same for every repetition."""

    id: str
    source: str
    event: str
    received_at: str
    actions: tuple[Action, ...] = ()


def hook_id(source: str, key: str) -> str:
    """`key`: the sender's id where that is signed, else the digest of the body."""
    return hashlib.sha256(f"{source}\n{key}".encode()).hexdigest()[:32]


def plan_actions(rules: Sequence[Rule], source: str, event: str, delivery: str, payload: Any) -> tuple[Action, ...]:
    """What the rules want of this webhook, in their order; a value that the payload lacks becomes a problem."""
    paths = changed_paths(payload)
    found = []
    for rule in rules:
        if rule.source == source and fnmatchcase(event, rule.event) and _matches(rule, payload, paths):
            values = {
                "payload": payload,
                "paths": _chosen(rule, paths),
                "event": event,
                "source": source,
                "id": delivery,
            }
            found.append(_planned(rule, values))
    return tuple(found)


def changed_paths(payload: Any) -> tuple[str, ...]:
    """Files that a push names (GitHub's commits), or a list `paths` of any other sender."""
    if not isinstance(payload, Mapping):
        return ()
    commits = [commit for commit in _list(payload.get("commits")) if isinstance(commit, Mapping)]
    named = [
        path for commit in commits for kind in ("added", "modified", "removed") for path in _list(commit.get(kind))
    ]
    return tuple(dict.fromkeys(path for path in [*named, *_list(payload.get("paths"))] if isinstance(path, str)))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _matches(rule: Rule, payload: Any, paths: Sequence[str]) -> bool:
    if rule.paths and not _chosen(rule, paths):
        return False
    for path, wanted in rule.where.items():
        try:
            value = _look_up({"payload": payload}, f"payload.{path}")
        except BadInput:
            return False
        if isinstance(wanted, str) and isinstance(value, str):
            if not fnmatchcase(value, wanted):
                return False
        elif value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            return False
    return True


def _chosen(rule: Rule, paths: Sequence[str]) -> list[str]:
    chosen = [path for path in paths if not rule.paths or any(fnmatchcase(path, one) for one in rule.paths)]
    return chosen[:MOST_PATHS]


def _planned(rule: Rule, values: Mapping[str, Any]) -> Action:
    kind, target = ("run", rule.run) if rule.run else ("emit", rule.emit)
    try:
        parameters, problem = _filled(rule.parameters, values), ""
    except BadInput as error:
        parameters, problem = {}, str(error)
    return Action(kind=kind, target=target, resource=rule.resource, parameters=parameters, problem=problem)  # type: ignore[arg-type]


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """With each ${reference} replaced; one that stands alone keeps its type."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, values) for inner in value]
    if not isinstance(value, str):
        return value
    if alone := _REFERENCE.fullmatch(value):
        return _look_up(values, alone[1])
    return _REFERENCE.sub(lambda found: str(_look_up(values, found[1])), value)


def _look_up(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for step in path.split("."):
        if not isinstance(found, Mapping) or step not in found:
            raise BadInput(f"the webhook has no {path}")
        found = found[step]
    return found
