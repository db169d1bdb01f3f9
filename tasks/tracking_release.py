"""MLflow's model registry: the bundles of an environment as versions, who serves as aliases.

It shows the whole release state each time: what is there already is left alone, what is missing or stale is set. So no
repetition does harm, and no edit by hand lasts. Nobody reads a decision from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tasks.ledger import Ledger
from tasks.projection import Projection
from tasks.tracking_address import connected
from tasks.tracking_experiment import ensure_experiment
from tasks.tracking_prompts import show_prompts
from touchstone.ledger import RELEASE_KINDS, RELEASE_SUBJECT, EventKind, LedgerEvent
from touchstone.release import Deployment, ReleaseState, fold
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIASES = ("champion", "canary", "candidate")
_FINGERPRINT = "touchstone.fingerprint"


@dataclass(frozen=True)
class Shown:
    """One bundle as the registry shows it."""

    deployment: Deployment
    tags: dict[str, str]
    description: str


def projection() -> Projection:
    """The registered model `touchstone-<environment>`, and the prompt registry."""
    return Projection("mlflow", frozenset(RELEASE_KINDS), _send, is_news=False)


def model_name(environment: str) -> str:
    return f"touchstone-{environment}"


def shown_bundles(events: Sequence[LedgerEvent]) -> dict[str, Shown]:
    """Every deployment that passed a gate, by fingerprint, in order; of each its newest gate and promotion."""
    found: dict[str, Shown] = {}
    for event in events:
        if "deployment" not in event.payload:
            continue
        deployment = Deployment.model_validate(event.payload["deployment"])
        before = found.get(deployment.fingerprint)
        promoted = {
            name: before.tags[name] for name in ("promoted_at", "promoted_by") if before and name in before.tags
        }
        if event.kind is EventKind.RELEASE_PROMOTED:
            promoted = {"promoted_at": event.at, "promoted_by": event.payload["by"]}
        tags = _tags(event.environment, deployment) | promoted
        found[deployment.fingerprint] = Shown(deployment, tags, _description(deployment, event))
    return found


def aliases(state: ReleaseState) -> dict[str, str]:
    """Alias -> fingerprint; an alias that is not in it belongs to nobody now."""
    found = {"champion": state.champion.deployment} if state.champion else {}
    if state.candidate:
        found["candidate"] = state.candidate.deployment
    if state.candidate and state.canary:
        found["canary"] = state.candidate.deployment
    return {alias: deployment.fingerprint for alias, deployment in found.items()}


def _send(settings: Settings, ledger: Ledger, events: Sequence[LedgerEvent]) -> Iterator[int]:
    releases = ledger.events(subject=RELEASE_SUBJECT)
    bundles, pointed = shown_bundles(releases), aliases(fold(ledger.environment, releases))
    name = model_name(ledger.environment)
    with connected(settings) as client:
        known = _ensure_model(client, name, ledger.environment)
        versions = _show_versions(client, settings, name, bundles)
        _show_aliases(client, name, known, {alias: versions[of] for alias, of in pointed.items()})
        show_prompts(client, [bundle.deployment.definition for bundle in bundles.values()])
    yield events[-1].sequence


def _ensure_model(client: MlflowClient, name: str, environment: str) -> Mapping[str, str]:
    """Its aliases as they are: alias -> version."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    note = (
        f"What `{environment}` serves: one version per bundle that passed the gate. It shows the release ledger, and "
        "`touchstone publish --all` draws it anew; an alias that is moved by hand changes nothing that is served."
    )
    client.create_registered_model(name, {"touchstone.environment": environment}, note)
    return {}


def _show_versions(client: MlflowClient, settings: Settings, name: str, bundles: Mapping[str, Shown]) -> dict[str, str]:
    """Fingerprint -> version, each made if it is missing."""
    found = {version.tags.get(_FINGERPRINT): version for version in _all_versions(client, name)}
    for fingerprint, bundle in bundles.items():
        known = found.get(fingerprint)
        if known is None:
            found[fingerprint] = _create_version(client, settings, name, bundle)
        else:
            _update_version(client, known, bundle)
    return {fingerprint: str(version.version) for fingerprint, version in found.items() if fingerprint}


def _all_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Oldest last, so that of two with one fingerprint the first counts."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version), reverse=True)


def _create_version(client: MlflowClient, settings: Settings, name: str, bundle: Shown) -> ModelVersion:
    run_id = _gate_run(client, bundle.deployment) or _own_run(client, settings, bundle)
    source = client.get_run(run_id).info.artifact_uri or f"runs:/{run_id}/"
    return client.create_model_version(
        name, source, run_id, bundle.tags, description=bundle.description, await_creation_for=0
    )


def _update_version(client: MlflowClient, known: ModelVersion, bundle: Shown) -> None:
    for tag, value in bundle.tags.items():
        if known.tags.get(tag) != value:
            client.set_model_version_tag(known.name, str(known.version), tag, value)
    if known.description != bundle.description:
        client.update_model_version(known.name, str(known.version), bundle.description)


def _show_aliases(client: MlflowClient, name: str, known: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Only what differs: MLflow's webhooks fire for an alias that is set to what it was, too."""
    for alias in ALIASES:
        if alias in wanted and known.get(alias) != wanted[alias]:
            client.set_registered_model_alias(name, alias, wanted[alias])
        elif alias in known and alias not in wanted:
            client.delete_registered_model_alias(name, alias)


def _gate_run(client: MlflowClient, deployment: Deployment) -> str | None:
    """The eval that the gate passed, when MLflow has it."""
    experiment = client.get_experiment_by_name(f"touchstone/{deployment.dataset}")
    if experiment is None or not deployment.run_keys:
        return None
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`touchstone.run_key` = '{deployment.run_keys[0]}'", max_results=10
    )
    return min((run.info.run_id for run in found), default=None)


def _own_run(client: MlflowClient, settings: Settings, bundle: Shown) -> str:
    """A run that holds the definition, made once: for evidence that another machine has not published yet."""
    environment, fingerprint = settings.environment, bundle.deployment.fingerprint
    experiment = ensure_experiment(client, settings, f"release/{environment}", f"Releases of {environment}", {})
    found = client.search_runs([experiment], f"tags.`{_FINGERPRINT}` = '{fingerprint}'", max_results=10)
    run_id = min((run.info.run_id for run in found), default=None)
    if run_id is None:
        run_name = f"{bundle.deployment.name} {fingerprint}"
        run_id = client.create_run(experiment, tags={_FINGERPRINT: fingerprint}, run_name=run_name).info.run_id
    client.log_text(run_id, bundle.deployment.definition.model_dump_json(indent=2), "definition.json")
    client.set_terminated(run_id)
    return run_id


def _tags(environment: str, deployment: Deployment) -> dict[str, str]:
    definition = deployment.definition
    found = {
        _FINGERPRINT: deployment.fingerprint,
        "touchstone.environment": environment,
        "bundle": deployment.name,
        "model": definition.model,
        "prompt": definition.prompt_version,
        "retrieval": definition.retrieval_version,
        "index_version": definition.index_version,
        "dataset": deployment.dataset,
        "gate_key": deployment.gate_key,
        "changed": ", ".join(deployment.changed),
        "scores": json.dumps(deployment.scores, sort_keys=True) if deployment.scores else "",
    }
    return {name: value for name, value in found.items() if value}


def _description(deployment: Deployment, event: LedgerEvent) -> str:
    """The newest gate or promotion, and the scores at the gate."""
    at = f"{datetime.fromisoformat(event.at):%Y-%m-%d %H:%M} UTC"
    did = "promoted" if event.kind is EventKind.RELEASE_PROMOTED else "passed the gate"
    changed = f"changed: {', '.join(deployment.changed)}" if deployment.changed else "the first release"
    lines = [f"`{deployment.name}` {did} {at}, by {event.payload.get('by')} ({changed}). {event.payload.get('reason')}"]
    if deployment.scores:
        lines += ["", f"| metric | mean on {deployment.dataset} |", "|---|---:|"]
        lines += [f"| {metric} | {mean:.3f} |" for metric, mean in deployment.scores.items()]
    return "\n".join(lines)
