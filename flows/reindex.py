"""Rebuild an index beside the live one, and switch readers to it when it is not worse."""

from __future__ import annotations

import functools
import logging
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from flows.embedding_shards import embed_as_tasks
from flows.verdicts import ended, found_in
from tasks.announce_index import BuildArtifacts, emit_build_event, headline
from tasks.embedding import Embedder, EmbeddingSpend, open_embedder
from tasks.embedding_cache import EmbeddingCache, cache_key
from tasks.environment import apply_defaults
from tasks.index_builds import new_build_key, record_build
from tasks.index_checks import (
    check_embedding_model,
    evaluate_version,
    lost_documents,
    reader_changes,
    validate_version,
)
from tasks.index_embedding import Embed, EmbeddingJob, embed_here, total
from tasks.indexing import BuildPlan, plan_build, table_name, write_version, writer_lock
from tasks.ledger import Ledger
from tasks.live_index import LivePointer, clean_up, live_pointer, pointer_history, promote, rejected_versions
from tasks.loading import load_golden_set, load_retrieval_config, load_settings
from tasks.sources import read_source
from tasks.tracking_index import publish_build
from touchstone.cases import GoldenCase
from touchstone.errors import TouchstoneError, Unmeasurable
from touchstone.index import BuildReport, IndexVersion, Outcome, check_shrink, decide_switch
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

Log = logging.Logger | logging.LoggerAdapter


class ReindexRequest(BaseModel):
    """What the user asks for; the parameters of the Prefect deployment and the flags of `touchstone reindex`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str = Field(default="support", description="A name in retrieval_configs/, or a path")
    allow_shrink: bool = Field(default=False, description="Build although the source lost many documents")
    promote: bool = Field(default=True, description="Switch readers when the build is not worse")
    max_cost_usd: float | None = Field(default=None, gt=0, description="Spend cap; empty: gate.max_cost_usd")
    trigger: str = Field(default="hand", description="Who asked")


class Observer(Protocol):
    """Sees a build go by; the terminal and the Prefect page each have one."""

    def planned(self, report: BuildReport, plan: BuildPlan) -> None:
        """What will be done, before anything is paid."""

    def embedded(self, done: int, total: int) -> None:
        """So many chunks are embedded."""


class Unobserved:
    """Nobody looks."""

    def planned(self, report: BuildReport, plan: BuildPlan) -> None: ...

    def embedded(self, done: int, total: int) -> None: ...


def _flow_run_name() -> str:
    """`reindex support`, also where a path was given."""
    given = flow_run.parameters
    return f"reindex {Path((given.get('event') or {}).get('config') or given['config']).stem}"


@flow(name="reindex", flow_run_name=_flow_run_name)
def reindex(
    config: str = "support",
    allow_shrink: bool = False,
    promote: bool = True,
    max_cost_usd: Annotated[float | None, Field(gt=0)] = None,
    event: dict[str, Any] | None = None,
) -> State:
    """Embed what changed in a source, validate and evaluate the new version, and switch readers when it is not worse.

    The flow run fails when the new version is not promoted; the live index stays as it was, and the reason is in the
    state and the artifact.

    Args:
        config: A name in retrieval_configs/, or a path.
        allow_shrink: Build although the source lost more documents than gate.max_shrink.
        promote: Switch readers when the build is not worse; without it the build waits unpromoted.
        max_cost_usd: Spend cap of the embedding; empty means the config's gate.max_cost_usd.
        event: Payload of the event that asked for this; its `config` names the retrieval config.
    """
    apply_defaults()
    settings = load_settings()
    request = ReindexRequest(
        config=(event or {}).get("config") or config,
        allow_shrink=allow_shrink,
        promote=promote,
        max_cost_usd=max_cost_usd,
        trigger=(event or {}).get("event") or "a Prefect flow run",
    )
    page = BuildArtifacts()
    report = conduct(settings, request, embed=embed_as_tasks, observer=page)

    log = get_run_logger()
    log.info("%s: %s", headline(report), report.reason)
    report = publish(settings, report, log)
    emit_build_event(report)
    page.finished(report)
    return ended(headline(report), report.reason, report.model_dump(mode="json"), failed=not report.is_fine)


def conduct(
    settings: Settings, request: ReindexRequest, *, embed: Embed = embed_here, observer: Observer | None = None
) -> BuildReport:
    """Plan, build, validate, evaluate, switch, record; without Prefect, unless `embed` makes tasks of the shards.

    Raises LedgerConflict when another build of the same index is running, and whatever made a build impossible; the
    live index is then as it was, and the ledger says so.
    """
    build = _open(settings, request)
    with ExitStack() as stack:
        ledger = stack.enter_context(closing(Ledger(settings.ledger, settings.environment)))
        cache = EmbeddingCache(settings.embedding_cache, cache_key(build.config))
        stack.callback(cache.close)
        with writer_lock(settings.lance, table_name(build.config), wait=False):
            build.live = live_pointer(ledger, build.config.name)
            try:
                report = _build(build, ledger, cache, embed, observer or Unobserved())
            except Exception as error:  # Lance raises plain RuntimeError and ValueError
                _record_failure(ledger, build, error)
                if isinstance(error, TouchstoneError):
                    raise
                kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
                raise Unmeasurable(f"{kind}{error}; nothing was switched, the live index is as it was") from error
            record_build(ledger, settings.state, report)
        if report.promoted:
            clean_up(ledger, settings.lance, build.config.name)
    return report


@dataclass
class _Build:
    """One build as far as it is known."""

    settings: Settings
    request: ReindexRequest
    config: RetrievalConfig
    source: Path
    cases: tuple[GoldenCase, ...]
    embedder: Any  # a function that loads the embedding model once, when it is first needed
    key: str
    live: LivePointer | None = None
    spent_elsewhere: EmbeddingSpend = field(default_factory=EmbeddingSpend)
    known: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    def report(self, **fields: Any) -> BuildReport:
        """What is known by now, and `fields`, which are known from now on."""
        self.known |= fields
        opened = bool(self.embedder.cache_info().currsize)
        spent = total([self.spent_elsewhere, self.embedder().spent] if opened else [self.spent_elsewhere])
        return BuildReport(
            build_key=self.key,
            config_name=self.config.name,
            config_version=self.config.version,
            started_at=self.started_at,
            trigger=self.request.trigger,
            live_before=self.live.index.label if self.live else None,
            embedding_calls=spent.calls,
            cost_usd=spent.cost_usd,
            wall_s=round(time.monotonic() - self.started, 3),
            **self.known,
        )


def _open(settings: Settings, request: ReindexRequest) -> _Build:
    config, source = load_retrieval_config(settings.root, request.config)
    cases = load_golden_set(settings.root, config.gate.dataset).cases if config.gate.dataset else ()
    cap = request.max_cost_usd or config.gate.max_cost_usd

    @functools.cache
    def embedder() -> Embedder:
        return open_embedder(config, settings, max_cost_usd=cap)

    return _Build(settings, request, config, source, tuple(cases), embedder, new_build_key(config.name))


def _build(build: _Build, ledger: Ledger, cache: EmbeddingCache, embed: Embed, observer: Observer) -> BuildReport:
    settings, config, live = build.settings, build.config, build.live
    snapshot = read_source(build.source, config.source.max_document_mb)
    changes = reader_changes(settings, live, snapshot)
    if not build.request.allow_shrink:
        moved = live.index.source if live and live.index.source != config.source.path else ""
        check_shrink(changes, live.index.documents if live else 0, config.gate.max_shrink, moved)
    plan = plan_build(config, snapshot, settings.lance, build.embedder, cache)
    check_embedding_model(settings, config, plan, build.embedder)
    planned = build.report(
        changes=changes,
        documents=len(snapshot.documents) + len(changes.kept),
        quarantined=tuple(plan.scanned.quarantined),
        suspicious=tuple(plan.scanned.suspicious),
        pii=dict(plan.scanned.pii),
    )
    observer.planned(planned, plan)

    begun = time.monotonic()
    cap = build.request.max_cost_usd or config.gate.max_cost_usd
    embedded = embed(EmbeddingJob(settings, config, plan, build.embedder, cache, cap, observer.embedded))
    plan.vectors |= embedded.vectors
    build.spent_elsewhere = embedded.spent
    build.report(embedded_chunks=len(embedded.vectors), embed_s=round(time.monotonic() - begun, 3))
    index = write_version(plan, settings.lance, live.index.label if live else None)
    build.report(
        index=index,
        documents=index.documents,
        chunks=index.chunks,
        reused_chunks=index.chunks - len(embedded.vectors),
    )
    return _judge(build, ledger, plan, index)


def _judge(build: _Build, ledger: Ledger, plan: BuildPlan, index: IndexVersion) -> BuildReport:
    """Switch readers to the version, or say why not."""
    settings, config, live = build.settings, build.config, build.live
    if live is not None and live.index.serves_like(index):
        reason = "the live index already holds the source as it is"
        return build.report(index=live.index, outcome=Outcome.CURRENT, reason=reason)
    for rejected in rejected_versions(pointer_history(ledger, config.name)):
        if rejected.serves_like(index):
            reason = (
                f"this is what was rolled back from ({rejected.label}); change the source, or return to it by "
                f"`touchstone index rollback --config {build.request.config} --to {rejected.label}`"
            )
            return build.report(outcome=Outcome.HELD_BACK, reason=reason)

    before = live.index.chunks if live and live.index.table == index.table and not build.request.allow_shrink else None
    validation = validate_version(settings, config, build.key, index, before, plan, build.cases)
    build.report(validation=validation)
    retrieval = None
    if validation.passed:
        retrieval = evaluate_version(settings, config, index, live, build.cases, build.embedder)
        build.report(retrieval=retrieval)
    lost = lost_documents(settings, index, build.known["changes"].kept)
    outcome, reason = decide_switch(validation, retrieval, lost)
    if outcome is Outcome.READY and build.request.promote:
        promote(ledger, settings.lance, index, after=live.sequence if live else 0, reason=reason, build_key=build.key)
        outcome = Outcome.PROMOTED
    return build.report(outcome=outcome, reason=reason)


def _record_failure(ledger: Ledger, build: _Build, error: Exception) -> None:
    """A build that failed is history, too; on a full disk not even that can be written."""
    try:
        record_build(ledger, build.settings.state, build.report(reason=f"{type(error).__name__}: {error}"))
    except (OSError, SQLAlchemyError) as second:
        logging.getLogger("touchstone").warning("the failed build could not be recorded: %s", second)


def publish(settings: Settings, report: BuildReport, log: Log) -> BuildReport:
    """Send a build to MLflow, which is never on the critical path: the report is on disk before."""
    if report.outcome is Outcome.CURRENT:
        return report  # every night's "nothing to do" would bury the builds
    try:
        return publish_build(settings, report)
    except TouchstoneError as error:
        log.warning("not published to MLflow: %s; `touchstone publish` sends it later", error)
        return report


def run_as_flow(request: ReindexRequest) -> BuildReport:
    """Run the build as a Prefect flow run in this process."""
    given = request.model_dump(exclude={"trigger"})
    state: State = reindex(**given, return_state=True)
    return BuildReport.model_validate(found_in(state.result(raise_on_failure=False)))
