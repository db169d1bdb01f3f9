"""YAML and JSONL files to frozen models; every error names file, line, field and fix."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from touchstone.bundle import Bundle, InlinePrompt
from touchstone.cases import GoldenCase, dataset_digest
from touchstone.deployments import Deployments
from touchstone.errors import BadInput
from touchstone.prompts import Prompt
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

if TYPE_CHECKING:
    from touchstone.policy import Policy

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class GoldenSet:
    """A golden set with its policy; `name` is its folder's."""

    name: str
    path: Path
    cases: tuple[GoldenCase, ...]
    policy: Policy
    policy_path: Path | None

    @property
    def digest(self) -> str:
        return dataset_digest(self.cases)


def load_settings(**overrides: Any) -> Settings:
    """Settings of the project in the current directory."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise BadInput(f"touchstone.yaml or TOUCHSTONE_*: {_first_problem(error)}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"touchstone.yaml: not YAML: {error}") from None
    _check_ledger_folder(settings.ledger_url)
    return settings


def load_deployments(root: Path) -> Deployments:
    """prefect.yaml, with every key known and every schedule valid."""
    return load_yaml(root / "prefect.yaml", Deployments)


def _check_ledger_folder(url: str) -> None:
    """SQLite would begin an empty ledger at a mistyped address, and everything that was released would seem gone."""
    kind, _, path = url.partition(":///")
    if kind.startswith("sqlite") and path and not (folder := Path(path.partition("?")[0]).parent).is_dir():
        raise BadInput(f"TOUCHSTONE_LEDGER_URL: {folder}: no such folder; make it, or correct the address")


def load_golden_set(root: Path, name: str, policy: str | None = None) -> GoldenSet:
    """Read datasets/<name> (or the folder `name`) with its policy.yaml, or another policy file."""
    path = _find(root, "datasets", name, what="dataset") / "cases.jsonl"
    if not path.is_file():
        raise BadInput(f"{path}: not found; a golden set is a folder with cases.jsonl")
    cases = tuple(_read_cases(path))
    if not cases:
        raise BadInput(f"{path}: the golden set is empty; add one JSON object per line with id and question")
    from touchstone.policy import Policy  # here: the gateway, which reads none, has 100 MB

    policy_path = _policy_path(root, path.parent, policy)
    loaded = load_yaml(policy_path, Policy) if policy_path else Policy()
    return GoldenSet(path.parent.resolve().name, path.parent, cases, loaded, policy_path)


def load_bundle(root: Path, name: str) -> Bundle:
    """Read bundles/<name>.yaml, or the file `name`."""
    return load_yaml(_find(root, "bundles", name, what="bundle", suffix=".yaml"), Bundle)


def load_prompt(root: Path, reference: str | InlinePrompt, required: set[str], optional: Iterable[str] = ()) -> Prompt:
    """Read prompts/<name>/<version>.yaml for `name@version`; it must use the required placeholders and no unknown."""
    if isinstance(reference, InlinePrompt):
        where, prompt = "bundle, field prompt", reference.as_prompt()
    else:
        name, _, version = reference.partition("@")
        where = _prompt_path(root, name, version)
        prompt = load_yaml(where, Prompt)
        if prompt.version != version:
            raise BadInput(f"{where}: field version: is {prompt.version}, but the file is named {version}")
    try:
        prompt.check_placeholders(required, set(optional))
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    return prompt


def load_retrieval_config(root: Path, reference: str, *, needs_source: bool = True) -> tuple[RetrievalConfig, Path]:
    """Read retrieval_configs/<name>.yaml for `name` or `name@version`; returns it with its source's path.

    Who only looks at what is indexed `needs` no source: it may not be mounted.
    """
    name, _, version = reference.partition("@")
    path = _find(root, "retrieval_configs", name, what="retrieval config", suffix=".yaml")
    config = load_yaml(path, RetrievalConfig)
    if version and config.version != version:
        raise BadInput(f"{path}: field version: is {config.version}, but {reference} is asked for")
    candidates = [root / config.source.path, path.parent / config.source.path]
    source = next((candidate for candidate in candidates if candidate.exists()), None)
    if source is None and needs_source:
        raise BadInput(f"{path}: field source.path: {config.source.path} is neither below {root} nor {path.parent}")
    return config, source or candidates[0]


def load_yaml(path: Path, model: type[Model]) -> Model:
    """One YAML file as one model."""
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}:1: expected `field: value` lines, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        line = _line_of(node, error.errors()[0]["loc"])
        raise BadInput(f"{path}:{line}: {_first_problem(error)}") from None


def place_in(path: Path, *location: str | int) -> str:
    """`path:line: field a.0.b`, for an error that is found after a YAML file was read."""
    node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    return f"{path}:{_line_of(node, location)}: field {'.'.join(map(str, location))}"


def read_jsonl(path: Path, model: type[Model]) -> Iterator[tuple[int, Model]]:
    """(line number, model) of each non-empty line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, model.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{number}: not JSON at column {error.colno}: {error.msg}") from None
        except ValidationError as error:
            raise BadInput(f"{path}:{number}: {_first_problem(error)}") from None


def check_relevant_ids(golden: GoldenSet, document_ids: Sequence[str] | set[str], corpus: Path) -> None:
    """Every relevant id must be in the corpus, else ranking scores would be silently too low."""
    known = set(document_ids)
    for number, case in read_jsonl(golden.path / "cases.jsonl", GoldenCase):
        for document_id in case.relevant_ids:
            if document_id not in known:
                raise BadInput(
                    f"{golden.path / 'cases.jsonl'}:{number}: field relevant_ids: {document_id!r} is not a "
                    f"document of {corpus}; correct the id or restore the document"
                )


def _read_cases(path: Path) -> Iterator[GoldenCase]:
    seen: dict[str, int] = {}
    for number, case in read_jsonl(path, GoldenCase):
        if case.id in seen:
            raise BadInput(
                f"{path}:{number}: field id: {case.id!r} is already used on line {seen[case.id]}; ids are unique"
            )
        seen[case.id] = number
        yield case


def _find(root: Path, folder: str, name: str, *, what: str, suffix: str = "") -> Path:
    """A name resolves to the repo's folder; anything that exists as a path works too."""
    in_folder = root / folder / f"{name}{suffix}"
    if in_folder.exists() and "/" not in name:
        return in_folder
    for path in (root / name, Path(name)):
        if path.exists() and (not suffix or path.is_file()):
            return path
    known = sorted(path.stem if suffix else path.name for path in (root / folder).glob(f"*{suffix}"))
    raise BadInput(f"{what} {name!r} not found: neither {in_folder} nor a path; known: {', '.join(known) or 'none'}")


def _prompt_path(root: Path, name: str, version: str) -> Path:
    path = root / "prompts" / name / f"{version}.yaml"
    if not version or not path.is_file():
        known = sorted(f"{found.parent.name}@{found.stem}" for found in (root / "prompts").glob("*/*.yaml"))
        asked = f"{name}@{version}" if version else f"{name} (the version is missing)"
        raise BadInput(f"prompt {asked} not found at {path}; known: {', '.join(known) or 'none'}")
    return path


def _policy_path(root: Path, folder: Path, policy: str | None) -> Path | None:
    if policy is None:
        path = folder / "policy.yaml"
        return path if path.exists() else None
    for path in (folder / policy, folder / f"{policy}.yaml", root / policy, Path(policy)):
        if path.is_file():
            return path
    raise BadInput(f"policy {policy!r} not found: neither in {folder} nor a path")


def _first_problem(error: ValidationError) -> str:
    """The first problem as `field a.b: message`; pydantic's own prefix says nothing to a user."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field; remove it or correct its spelling"
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        message = f"unknown {context['discriminator']} {context['tag']!r}; known: {context['expected_tags']}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return (f"field {field}: {message}" if field else message) + more


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line of the deepest part of `location` that the file has."""
    line = 1
    for part in location:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = node.value[part].start_mark.line + 1
        if child is None:
            continue  # pydantic puts union tags into the location that the file does not have
        node = child
    return line
