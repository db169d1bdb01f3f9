"""What an eval will do, read and checked before the first call is paid."""

from __future__ import annotations

import re
import secrets
import subprocess
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.embedding import judge_embedding
from tasks.embedding_cache import EmbeddingCache, cache_key
from tasks.indexing import ensure_index, indexed_documents
from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from tasks.loading import (
    GoldenSet,
    check_relevant_ids,
    load_bundle,
    load_golden_set,
    load_prompt,
    load_retrieval_config,
)
from tasks.sources import read_source
from tasks.spool import Spool, existing_spool
from tasks.tracking_prompts import read_prompt
from tasks.vendor_endpoint import check_cap, check_endpoint
from touchstone.bundle import Bundle, Endpoint, InlinePrompt, Judge
from touchstone.cases import GoldenCase
from touchstone.definition import Definition
from touchstone.drift import MetricSpec
from touchstone.errors import BadInput
from touchstone.index import IndexVersion
from touchstone.prompts import Prompt
from touchstone.release_index import index_fits
from touchstone.retrieval_config import RetrievalConfig
from touchstone.scorer_specs import JUDGED
from touchstone.settings import Settings


class EvalRequest(BaseModel):
    """What the user asks for; the parameters of the Prefect deployment and the flags of `eval run`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str = Field(default="support", description="A name in bundles/, or a path")
    dataset: str = Field(default="support", description="A name in datasets/, or a folder with cases.jsonl")
    policy: str | None = Field(default=None, description="Another policy file; empty: the dataset's policy.yaml")
    repeats: int = Field(default=1, ge=1, le=100, description="Trials per case")
    limit: int | None = Field(default=None, ge=1, description="The first N cases only")
    concurrency: int | None = Field(default=None, ge=1, le=1024, description="Vendor calls in flight at once")
    max_cost_usd: float | None = Field(default=None, gt=0, description="Spend cap; empty: the policy's")


class EvalManifest(BaseModel):
    """manifest.json: what a run is of. A resumed run must still be of the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_key: str
    created_at: str
    environment: str
    request: EvalRequest
    purpose: str = "eval"
    gate_key: str = Field(default="", description="Of the gate that this run is one side of")
    bundle_name: str
    bundle_fingerprint: str
    judge_fingerprint: str
    model: str
    prompt: str
    retrieval: str
    index_version: str
    dataset_name: str
    dataset_digest: str
    n_cases: int
    scorers_digest: str = ""
    git_commit: str = ""


@dataclass(frozen=True)
class EvalPlan:
    """All that a shard needs."""

    settings: Settings
    manifest: EvalManifest
    golden: GoldenSet
    cases: tuple[GoldenCase, ...]
    definition: Definition
    retry_failures: bool = False

    @property
    def bundle(self) -> Bundle:
        return self.definition.bundle

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        return self.golden.policy.metrics_under(self.manifest.judge_fingerprint)

    @property
    def run_key(self) -> str:
        return self.manifest.run_key

    @property
    def repeats(self) -> int:
        return self.manifest.request.repeats

    @property
    def concurrency(self) -> int:
        return self.manifest.request.concurrency or self.settings.concurrency

    @property
    def cap_usd(self) -> float | None:
        return self.manifest.request.max_cost_usd or self.golden.policy.spend_cap_usd

    @property
    def units(self) -> list[tuple[GoldenCase, int]]:
        """(case, trial), every first trial first."""
        return [(case, trial) for trial in range(self.repeats) for case in self.cases]

    @property
    def endpoints(self) -> list[Endpoint]:
        """The models that will be called."""
        found: list[Endpoint] = [self.bundle.endpoint] if self.bundle.model else []
        if self.golden.policy.needs_judge and self.bundle.judge:
            found.append(self.bundle.judge)
        return found

    @property
    def judge_embedding(self) -> Endpoint | None:
        """The vendor's embedding model that answer relevancy calls; None: there is none."""
        needed = any(
            scorer.kind == "ragas" and scorer.metric == "answer_relevancy" for scorer in self.golden.policy.scorers
        )
        return judge_embedding(self.bundle.judge) if needed and self.bundle.judge else None


def plan_eval(settings: Settings, request: EvalRequest, *, purpose: str = "eval") -> EvalPlan:
    """A new run. Raises BadInput on whatever would make it fail or mislead later."""
    plan = _read(settings, request, purpose)
    check_vendors(plan)
    return plan


def resume_eval(settings: Settings, run_key: str, *, retry_failures: bool, max_cost_usd: float | None) -> EvalPlan:
    """The rest of a run. Raises BadInput when its bundle, golden set or judge changed since."""
    stored = read_manifest(existing_spool(settings.state, run_key))
    if stored.gate_key:
        raise BadInput(f"run {run_key} is one side of a gate: `touchstone gate --resume {stored.gate_key}`")
    fresh = _read(settings, stored.request, stored.purpose)
    for field in ("bundle_fingerprint", "judge_fingerprint", "dataset_digest", "scorers_digest", "index_version"):
        was, now = getattr(stored, field), getattr(fresh.manifest, field)
        if was != now:
            raise BadInput(
                f"run {run_key}: {field} was {was}, is {now}: a resumed run would mix two. "
                "Restore what changed, or start a new run"
            )
    if max_cost_usd is not None:
        request = stored.request.model_copy(update={"max_cost_usd": max_cost_usd})
        stored = stored.model_copy(update={"request": request})
    plan = replace(fresh, manifest=stored, retry_failures=retry_failures)
    check_vendors(plan)
    return plan


def _read(settings: Settings, request: EvalRequest, purpose: str) -> EvalPlan:
    golden = load_golden_set(settings.root, request.dataset, request.policy)
    definition = load_definition(settings, request.bundle, golden)
    return _plan(settings, request, purpose, golden, definition)


def load_definition(settings: Settings, bundle_name: str, golden: GoldenSet | None = None) -> Definition:
    """A bundle's files as they are now, with the index that readers are served.

    With a golden set, raises BadInput when its relevant ids are no documents, or its scorers need a judge that the
    bundle has not.
    """
    root = settings.root
    bundle = load_bundle(root, bundle_name)
    prompt, retrieval, index = None, None, None
    if bundle.retrieval:
        retrieval, source = load_retrieval_config(root, bundle.retrieval)
        index = _index(settings, retrieval, source)
        if golden is not None:
            check_relevant_ids(golden, _document_ids(settings, golden, retrieval, index, source), source)
    if bundle.prompt is not None:
        prompt = find_prompt(settings, bundle.prompt, needed_placeholders(retrieval))
    if golden is not None and golden.policy.needs_judge and bundle.judge is None:
        judged = [scorer.name for scorer in golden.policy.scorers if scorer.kind in JUDGED]
        raise BadInput(
            f"{golden.policy_path}: field scorers: {', '.join(judged)} need a judge, but bundle {bundle.name} "
            "has none; add `judge: {model: ...}` to the bundle"
        )
    judge = bundle.judge
    judge_prompt = load_prompt(root, judge.prompt, {"payload"}, {"schema"}) if judge else None
    return Definition(bundle=bundle, prompt=prompt, retrieval=retrieval, index=index, judge_prompt=judge_prompt)


def with_prompt(settings: Settings, definition: Definition, reference: str) -> Definition:
    """The same bundle with another prompt: name@version, or mlflow:NAME@VERSION of MLflow's registry."""
    prompt = find_prompt(settings, reference, needed_placeholders(definition.retrieval))
    name = name_with_prompt(definition.bundle.name, reference)
    bundle = definition.bundle.model_copy(update={"name": name, "prompt": reference})
    return definition.model_copy(update={"bundle": bundle, "prompt": prompt})


def name_with_prompt(bundle_name: str, reference: str) -> str:
    """Of a bundle whose prompt was replaced, such as support-with-mlflow-support-7."""
    return f"{bundle_name.partition('-with-')[0]}-with-{re.sub(r'[^a-zA-Z0-9.]+', '-', reference)}"


def find_prompt(settings: Settings, reference: str | InlinePrompt, needed: set[str]) -> Prompt:
    """A file of the project, what is written into the bundle, or a version of MLflow's registry.

    Raises TrackingUnavailable when that does not answer.
    """
    if isinstance(reference, InlinePrompt) or not reference.startswith("mlflow:"):
        return load_prompt(settings.root, reference, needed)
    return read_prompt(settings, reference, needed)


def needed_placeholders(retrieval: RetrievalConfig | None) -> set[str]:
    """What a prompt has to show the model."""
    return {"question", "context"} if retrieval else {"question"}


def plan_definition(
    settings: Settings, request: EvalRequest, golden: GoldenSet, definition: Definition, *, purpose: str
) -> EvalPlan:
    """A new run of a bundle as it was, whatever its files say by now. Raises BadInput as `plan_eval` does."""
    plan = _plan(settings, request, purpose, golden, definition)
    check_vendors(plan)
    return plan


def _plan(
    settings: Settings, request: EvalRequest, purpose: str, golden: GoldenSet, definition: Definition
) -> EvalPlan:
    needs_judge = golden.policy.needs_judge
    name, cases = definition.bundle.name, golden.cases[: request.limit]
    created = datetime.now(UTC)
    manifest = EvalManifest(
        run_key=f"{name}-{golden.name}-{created:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        created_at=created.isoformat(),
        environment=settings.environment,
        request=request,
        purpose=purpose,
        bundle_name=name,
        bundle_fingerprint=definition.fingerprint,
        judge_fingerprint=definition.judge_fingerprint if needs_judge else "",
        model=definition.model,
        prompt=definition.prompt_version,
        retrieval=definition.retrieval_version,
        index_version=definition.index_version,
        dataset_name=golden.name,
        dataset_digest=golden.digest,
        n_cases=len(cases),
        scorers_digest=golden.policy.scorers_digest,
        git_commit=_git_commit(settings.root),
    )
    return EvalPlan(settings, manifest, golden, cases, definition)


def _document_ids(
    settings: Settings, golden: GoldenSet, retrieval: RetrievalConfig, index: IndexVersion, source: Path
) -> set[str]:
    """Of the index, and of a source that it is behind of: that is for freshness to tell, not bad input."""
    known = {document.id for document in indexed_documents(settings.lance, index)}
    if all(id in known for case in golden.cases for id in case.relevant_ids or ()):
        return known
    return known | {document.id for document in read_source(source, retrieval.source.max_document_mb).documents}


def _index(settings: Settings, retrieval: RetrievalConfig, source: Path) -> IndexVersion:
    """What readers are served; a config that was never promoted, or changed since, gets an index of its own."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        live = live_pointer(ledger, retrieval.name)
    if live is not None and index_fits(live.index, retrieval):
        return live.index
    cache = EmbeddingCache(settings.embedding_cache, cache_key(retrieval))
    with closing(cache):
        return ensure_index(retrieval, source, settings.lance, cache=cache)


def _git_commit(root: Path) -> str:
    """The commit of the project's checkout; empty outside one."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def check_vendors(plan: EvalPlan) -> None:
    """Raise BadInput for a model that cannot be called, or whose price a spend cap would need and nobody knows."""
    for endpoint in plan.endpoints:
        check_endpoint(endpoint)
        check_cap(endpoint, plan.cap_usd, "add `price: {input_per_million, output_per_million}` to the bundle")
    if embedding := plan.judge_embedding:
        check_endpoint(embedding, "judge.embedding_model")
        check_cap(embedding, plan.cap_usd, "add `embedding: {usd_per_million_tokens: ...}` to the judge", "embedding")


def judge_of(bundle: Bundle) -> Judge:
    """The bundle's judge, where the plan has made sure that there is one."""
    if bundle.judge is None:
        raise BadInput(f"bundle {bundle.name} has no judge")
    return bundle.judge


def read_manifest(spool: Spool) -> EvalManifest:
    """A run's manifest. Raises BadInput when this version cannot read it."""
    try:
        return EvalManifest.model_validate(spool.read_json("manifest.json"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{spool.folder / 'manifest.json'}: field {field}: {first['msg']}; start a new run") from None
