"""Which bundles an event asks to gate. What it says is a hint: files, registry and ledger are read again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.loading import load_bundle, load_retrieval_config
from tasks.plan import find_prompt, name_with_prompt, needed_placeholders
from tasks.prefect_sinks import emit_event
from tasks.releases import read_release
from tasks.tracking_prompts import is_projection, newest_version
from touchstone.bundle import Bundle, bundle_fingerprint
from touchstone.definition import Definition
from touchstone.errors import BadInput
from touchstone.ledger import EventKind, gate_subject
from touchstone.settings import Settings

_YOUNG = timedelta(days=7)  # a prompt that nobody missed for so long is not gated by surprise


@dataclass(frozen=True)
class Candidate:
    """What to gate: a bundle, or the champion's (empty) with another prompt."""

    bundle: str
    prompt: str | None = None


@dataclass(frozen=True)
class Candidates:
    """`reason` says why there are none."""

    found: tuple[Candidate, ...] = ()
    reason: str = ""


def candidates_of(settings: Settings, event: dict[str, Any]) -> Candidates:
    """An event names a `bundle`, a `prompt` and its `version` in MLflow's registry, or changed `paths` of the project.

    `prompts: newest` looks in MLflow for a version of the champion's prompt whose webhook was lost. Raises BadInput
    when it names none of them.
    """
    if isinstance(event.get("bundle"), str):
        return Candidates((Candidate(event["bundle"]),))
    if isinstance(event.get("prompt"), str) and str(event.get("version", "")).isdigit():
        return _with_prompt(settings, event["prompt"], str(event["version"]))
    if event.get("prompts") == "newest":
        return _missed_prompt(settings)
    paths = event.get("paths")
    if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
        return _of_files(settings, paths)
    raise BadInput(
        "event: name `bundle`, or `prompt` and `version`, or a list `paths` in it; correct `parameters` of the rule in "
        "touchstone.yaml that sent it"
    )


def ask_for(settings: Settings, candidates: Sequence[Candidate]) -> None:
    """One more gate for each, in runs of their own."""
    apply_defaults()
    for candidate in candidates:
        resource = {"prefect.resource.id": f"touchstone.release.{settings.environment}"}
        emit_event("touchstone.webhook.bundle-changed", resource=resource, payload={"bundle": candidate.bundle})


def _with_prompt(settings: Settings, name: str, version: str) -> Candidates:
    """The champion with a version that somebody made in MLflow; those that Touchstone shows there are no news."""
    champion = _champion(settings)
    if champion is None:
        return Candidates(reason=f"{settings.environment} has no champion that {name} version {version} could change")
    used = _prompt_name(champion)
    if used != name:
        return Candidates(reason=f"the champion {champion.bundle.name} uses the prompt {used or 'none'}, not {name}")
    if is_projection(settings, name, version):
        return Candidates(reason=f"{name} version {version} in MLflow shows a file of the project; nothing changed")
    return Candidates((Candidate("", f"mlflow:{name}@{version}"),))


def _missed_prompt(settings: Settings) -> Candidates:
    """MLflow delivers from memory: what it sends while the gateway is down is lost."""
    champion = _champion(settings)
    if champion is None:
        return Candidates(reason=f"{settings.environment} has no champion whose prompt could change")
    name = _prompt_name(champion)
    newest = newest_version(settings, name)
    if newest is None or datetime.now(UTC) - newest.made_at > _YOUNG:
        return Candidates(reason=f"nobody made a version of {name or 'its prompt'} in MLflow since {_YOUNG.days} days")
    reference = f"mlflow:{name}@{newest.version}"
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        known = ledger.events(EventKind.GATE_DECIDED, gate_subject(name_with_prompt(champion.bundle.name, reference)))
    if known or champion.prompt_version == reference:
        return Candidates(reason=f"{name} version {newest.version} was gated already")
    return _with_prompt(settings, name, newest.version)


def _of_files(settings: Settings, paths: Sequence[str]) -> Candidates:
    champion = _champion(settings)
    serving = champion.fingerprint if champion else None
    changed = {PurePosixPath(path) for path in paths}
    found, skipped = [], []
    for path in sorted((settings.root / "bundles").glob("*.yaml")):
        bundle = load_bundle(settings.root, path.stem)
        if not changed & _files_of(path, bundle):
            continue
        if _fingerprint(settings, bundle) == serving:
            skipped.append(bundle.name)
        else:
            found.append(Candidate(path.stem))
    served = f"; {', '.join(skipped)} is what {settings.environment} serves already" if skipped else ""
    return Candidates(tuple(found), f"no bundle uses {', '.join(paths) or 'what changed'}{served}")


def _files_of(path: Path, bundle: Bundle) -> set[PurePosixPath]:
    """Of the project, that decide a bundle's answers."""
    files = {PurePosixPath("bundles", path.name)}
    if isinstance(bundle.prompt, str) and not bundle.prompt.startswith("mlflow:"):
        name, _, version = bundle.prompt.partition("@")
        files.add(PurePosixPath("prompts", name, f"{version}.yaml"))
    if bundle.retrieval:
        files.add(PurePosixPath("retrieval_configs", f"{bundle.retrieval.partition('@')[0]}.yaml"))
    return files


def _fingerprint(settings: Settings, bundle: Bundle) -> str:
    retrieval = (
        load_retrieval_config(settings.root, bundle.retrieval, needs_source=False)[0] if bundle.retrieval else None
    )
    needed = needed_placeholders(retrieval)
    prompt = find_prompt(settings, bundle.prompt, needed) if bundle.prompt is not None else None
    return bundle_fingerprint(bundle, prompt, retrieval)


def _prompt_name(definition: Definition) -> str:
    return definition.prompt_version.removeprefix("mlflow:").partition("@")[0]


def _champion(settings: Settings) -> Definition | None:
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        champion = read_release(ledger).champion
    return champion.deployment.definition if champion else None
