"""What a gate will compare, read and checked before the first call is paid; and how an interrupted one is found."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.ledger import Ledger
from tasks.loading import GoldenSet, load_golden_set
from tasks.plan import EvalManifest, EvalPlan, EvalRequest, check_vendors, load_definition, plan_definition, with_prompt
from tasks.promotions import clean_name
from tasks.release_index import index_for
from tasks.releases import read_release
from tasks.spool import Spool
from touchstone import release_steps
from touchstone.definition import Definition, changed_factors
from touchstone.errors import BadInput
from touchstone.policy import Policy
from touchstone.promotion import Stage
from touchstone.release import Deployment, ReleaseState
from touchstone.release_policy import Factor
from touchstone.settings import Settings


class GateRequest(BaseModel):
    """What the user asks for; the parameters of the Prefect deployment and the flags of `touchstone gate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = Field(default="support", description="The candidate: a name in bundles/, or a path")
    prompt: str | None = Field(default=None, description="In the bundle's place of its own; with no bundle: champion's")
    dataset: str = Field(default="support", description="A name in datasets/, or a folder with cases.jsonl")
    policy: str | None = Field(default=None, description="Another policy file; empty: the dataset's policy.yaml")
    against: str | None = Field(default=None, description="Another bundle than the environment's champion")
    allow_several: bool = Field(default=False, description="Although several factors changed at once")
    role: Literal["candidate", "fallback"] = "candidate"
    by: str = Field(default="prefect", min_length=1, description="Who asks")
    max_repeats: int | None = Field(default=None, ge=1, le=20, description="Trials per case; empty: the policy's")
    max_cost_usd: float | None = Field(default=None, gt=0, description="Spend cap of both runs together")
    record: bool = Field(default=True, description="In the ledger; without it nothing follows from a pass")


class GateRecord(BaseModel):
    """gate.json: what a gate is of, as it was when it began. It is resumed from this, whatever the files say now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate_key: str
    created_at: str
    environment: str
    request: GateRequest
    policy: Policy
    dataset_name: str
    dataset_digest: str
    deployed: Definition = Field(description="The candidate as it would be served")
    champion: Definition | None
    changed: tuple[Factor, ...]
    runs: tuple[EvalManifest, ...] = Field(description="The candidate's, then the champion's")
    definitions: tuple[Definition, ...] = Field(description="As they are run, in that order")


@dataclass(frozen=True)
class GatePlan:
    """One gate: its record, its golden set, and the eval of each side."""

    settings: Settings
    record: GateRecord
    golden: GoldenSet
    sides: tuple[EvalPlan, ...]

    @property
    def gate_key(self) -> str:
        return self.record.gate_key

    @property
    def policy(self) -> Policy:
        return self.record.policy

    @property
    def folder(self) -> Path:
        return gate_folder(self.settings.state, self.gate_key)

    @property
    def required_score(self) -> float | None:
        prompt = self.record.deployed.prompt
        return prompt.eval_score_required if prompt else None

    @property
    def cap_usd(self) -> float | None:
        """Of both runs together; by default what the policy allows each."""
        asked, each = self.record.request.max_cost_usd, self.policy.spend_cap_usd
        return asked or (each and each * len(self.sides))

    def stage(self, number: int = 1) -> Stage:
        """A first release has nothing to repeat for: floors and hard checks look at one pass."""
        if len(self.sides) == 1:
            return Stage()
        return Stage(number, self.record.request.max_repeats or self.policy.release.max_repeats, looks=True)


def plan_gate(
    settings: Settings,
    request: GateRequest,
    runs: Sequence[EvalManifest] = (),
    definitions: Sequence[Definition] = (),
) -> GatePlan:
    """A new gate, by two new evals or on finished `runs` of these definitions (the candidate's first).

    Raises BadInput on whatever would make it mislead, before anything is paid.
    """
    request = request.model_copy(update={"by": clean_name(request.by)})
    golden = load_golden_set(settings.root, request.dataset, request.policy)
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        state = read_release(ledger)
        candidate = candidate_of(settings, ledger, request, state, golden)
        champion = champion_of(settings, ledger, request, state, golden)
    changed = check_change(request, candidate, champion)
    check_release(request, state, candidate, champion)
    key = gate_key(candidate, golden)
    sides = () if runs else _sides(settings, request, golden, key, candidate, champion, changed)
    record = GateRecord(
        gate_key=key,
        created_at=datetime.now(UTC).isoformat(),
        environment=settings.environment,
        request=request,
        policy=golden.policy,
        dataset_name=golden.name,
        dataset_digest=golden.digest,
        deployed=candidate,
        champion=champion,
        changed=changed,
        runs=tuple(side.manifest for side in sides) or tuple(runs),
        definitions=tuple(side.definition for side in sides) or tuple(definitions),
    )
    plan = GatePlan(settings, record, golden, sides)
    if sides:
        _store(plan)  # what can be resumed
    return plan


def _sides(
    settings: Settings,
    request: GateRequest,
    golden: GoldenSet,
    key: str,
    candidate: Definition,
    champion: Definition | None,
    changed: tuple[Factor, ...],
) -> tuple[EvalPlan, ...]:
    definitions = [candidate] if champion is None else [candidate, _comparable(champion, candidate, changed)]
    sides = []
    for definition in definitions:
        asked = EvalRequest(
            bundle=definition.bundle.name,
            dataset=request.dataset,
            policy=request.policy,
            max_cost_usd=request.max_cost_usd,
        )
        plan = plan_definition(settings, asked, golden, definition, purpose="gate")
        sides.append(replace(plan, manifest=plan.manifest.model_copy(update={"gate_key": key})))
    return tuple(sides)


def resume_gate(settings: Settings, key: str, *, max_cost_usd: float | None = None) -> GatePlan:
    """The rest of a gate, of the definitions and the policy that it began with; what failed is tried again.

    Raises BadInput when the golden set has changed since: its cases would be others.
    """
    folder = gate_folder(settings.state, key)
    try:
        record = GateRecord.model_validate(Spool(folder).read_json("gate.json"))
    except ValidationError as error:
        raise BadInput(
            f"{folder / 'gate.json'}: {error.errors(include_url=False)[0]['msg']}; start a new gate"
        ) from None
    except BadInput:
        known = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/gate.json"))[-5:])
        raise BadInput(f"gate {key!r} not found in {folder.parent}; known: {known or 'none'}") from None
    if max_cost_usd is not None:
        record = record.model_copy(update={"request": record.request.model_copy(update={"max_cost_usd": max_cost_usd})})
    golden = load_golden_set(settings.root, record.request.dataset, record.request.policy)
    if golden.digest != record.dataset_digest:
        raise BadInput(
            f"gate {key}: golden set {golden.name} has changed since it began: restore it, or start a new gate"
        )
    _check_still_wanted(settings, record)
    golden = replace(golden, policy=record.policy)
    sides = tuple(
        EvalPlan(settings, _with_cap(manifest, max_cost_usd), golden, golden.cases, definition, retry_failures=True)
        for manifest, definition in zip(record.runs, record.definitions, strict=True)
    )
    for side in sides:
        check_vendors(side)
    return GatePlan(settings, record, golden, sides)


def candidate_of(
    settings: Settings, ledger: Ledger, request: GateRequest, state: ReleaseState, golden: GoldenSet
) -> Definition:
    """The bundle to gate: the one named, or what the environment serves; with another prompt where one is asked for."""
    base = load_definition(settings, request.bundle, golden) if request.bundle else _serving(ledger, state)
    if base is None:
        raise BadInput(f"{state.environment} has no champion whose prompt could change; name a bundle")
    return with_prompt(settings, base, request.prompt) if request.prompt else base


def champion_of(
    settings: Settings, ledger: Ledger, request: GateRequest, state: ReleaseState, golden: GoldenSet
) -> Definition | None:
    """The bundle to compare with: the one named, else what the environment serves; None when it serves nothing."""
    if request.against is not None:
        return load_definition(settings, request.against, golden)
    return _serving(ledger, state)


def _serving(ledger: Ledger, state: ReleaseState) -> Definition | None:
    serving = state.champion.deployment.definition if state.champion else None
    if serving is None or serving.retrieval is None or serving.index is None:
        return serving
    return serving.model_copy(update={"index": index_for(ledger, serving)})  # its readers follow re-indexing


def check_change(request: GateRequest, candidate: Definition, champion: Definition | None) -> tuple[Factor, ...]:
    """What changed, () for a first release. Raises BadInput when nothing did, or several factors unasked."""
    if champion is None:
        return ()
    changed = changed_factors(champion, candidate)
    if candidate.fingerprint == champion.fingerprint or not changed:
        raise BadInput(
            f"candidate = champion: {candidate.bundle.name} has the content of {champion.bundle.name} "
            f"({candidate.fingerprint}), so there is nothing to gate"
        )
    if len(changed) > 1 and not request.allow_several:
        raise BadInput(
            f"{' and '.join(changed)} differ between {champion.bundle.name} and {candidate.bundle.name}: if it got "
            "worse, nobody could tell which one did it. Change one at a time, or ask for it by --allow-several"
        )
    return changed


def check_release(
    request: GateRequest, state: ReleaseState, candidate: Definition, champion: Definition | None
) -> None:
    """Raise BadInput when a pass would be good for nothing, before it is paid for."""
    if not request.record:
        return
    if request.role == "fallback":
        if champion is None:
            raise BadInput(
                f"{state.environment} has no champion that {candidate.bundle.name} could stand in for; "
                "`touchstone promote` makes the first one"
            )
        return
    serving = state.champion.deployment if state.champion else None
    if request.against is not None and serving and champion and champion.fingerprint != serving.fingerprint:
        raise BadInput(
            f"--against {request.against}: {state.environment} serves {serving.name}, and a candidate is gated against "
            "what it would replace; leave --against out, or record nothing by --no-record"
        )
    trial = Deployment(definition=candidate, fingerprint=candidate.fingerprint, gate_key="", dataset="")
    release_steps.candidate(state, trial, request.by, "")


def _check_still_wanted(settings: Settings, record: GateRecord) -> None:
    """What `check_release` asks, at a resume: unless this gate's pass was recorded, and what is left is to be shown."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        state = read_release(ledger)
    known = [state.champion, state.candidate]
    if record.gate_key in {one.deployment.gate_key for one in known if one}:
        return
    serving = state.champion.deployment.fingerprint if state.champion else None
    compared = record.champion.fingerprint if record.champion else None
    check_release(record.request, state, record.deployed, record.champion)
    if record.request.record and record.request.role == "candidate" and serving not in {None, compared}:
        raise BadInput(
            f"gate {record.gate_key} compares with a champion that {state.environment} no longer serves: a pass would "
            "make no candidate; start a new gate"
        )


def gate_key(candidate: Definition, golden: GoldenSet) -> str:
    return f"gate-{candidate.bundle.name}-{golden.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def gate_folder(state: Path, key: str) -> Path:
    if not re.fullmatch(r"gate-[\w.-]+", key):
        raise BadInput(f"{key!r} is not a gate key; they are folders in {state / 'gates'}")
    return state / "gates" / key


def _comparable(champion: Definition, candidate: Definition, changed: tuple[Factor, ...]) -> Definition:
    """Judged by the candidate's judge; and where retrieval is no factor, on the index that the candidate searches."""
    bundle = champion.bundle.model_copy(update={"judge": candidate.bundle.judge})
    index = champion.index if "retrieval" in changed else candidate.index
    return champion.model_copy(update={"bundle": bundle, "judge_prompt": candidate.judge_prompt, "index": index})


def _store(plan: GatePlan) -> None:
    Spool(plan.folder).write_json("gate.json", plan.record.model_dump_json(indent=1))


def _with_cap(manifest: EvalManifest, max_cost_usd: float | None) -> EvalManifest:
    if max_cost_usd is None:
        return manifest
    request = manifest.request.model_copy(update={"max_cost_usd": max_cost_usd})
    return manifest.model_copy(update={"request": request})
