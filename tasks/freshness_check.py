"""What a freshness check is decided on: the live index, its source, what is retrieved, and the check before."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from tasks.embedding import usd_per_million_tokens
from tasks.indexing import indexed_documents
from tasks.ledger import Ledger
from tasks.live_index import LivePointer, live_pointer
from tasks.loading import load_golden_set, load_retrieval_config, load_yaml
from tasks.retrieval import Retriever
from tasks.retrieval_traffic import NO_SEGMENT, query_hash, read_traffic
from tasks.sources import read_source
from touchstone.errors import BadInput, TouchstoneError, Unmeasurable
from touchstone.freshness import every_document_once
from touchstone.freshness_documents import Inspection, SourceNow, Verified, inspect
from touchstone.freshness_plan import plan_repair
from touchstone.freshness_records import Basis, FreshnessPlan, FreshnessReport, FreshnessState
from touchstone.freshness_traffic import Traffic, TrafficCounter
from touchstone.index import IndexVersion
from touchstone.ledger import EventKind, LedgerEvent, index_subject
from touchstone.results import Retrieval
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

_BUILDS = 20  # back to which the build of the live index is looked for


@dataclass(frozen=True)
class Gathered:
    """One moment of a retrieval config."""

    config: RetrievalConfig
    index: IndexVersion
    source: SourceNow | None  # None: it cannot be read
    inspection: Inspection
    traffic: Traffic
    basis: Basis
    state: FreshnessState
    sequence: int  # of the check before in the ledger; 0: none


def gather(settings: Settings, ledger: Ledger, reference: str, now: datetime | None = None) -> Gathered:
    """Read all that a check needs. `now` is for tests; a check is about this moment.

    Raises Unmeasurable when the config has no live index, BadInput when it cannot be used. A source that cannot be
    read is a finding, once there is an index.
    """
    now = now or datetime.now(UTC)
    config, path = _config_and_source(settings.root, reference)
    pointer = live_pointer(ledger, config.name)
    if pointer is None and isinstance(path, BadInput):
        raise path
    if pointer is None:
        raise Unmeasurable(f"{config.name} has no live index; `touchstone reindex --config {reference}` makes one")
    before = ledger.latest(EventKind.FRESHNESS_CHECKED, index_subject(config.name))
    warnings = _other_index(config, pointer.index)
    state, verified = _left_by(ledger, before, warnings)
    source = _read_source(config, path)
    indexed = indexed_documents(settings.lance, pointer.index)
    inspection = inspect(indexed, source, verified, now, _quarantined(ledger, pointer))
    traffic, basis = _traffic(settings, config, pointer.index, inspection, warnings)
    return Gathered(
        config=config,
        index=pointer.index,
        source=None if isinstance(source, str) else source,
        inspection=replace(inspection, warnings=(*inspection.warnings, *warnings)),
        traffic=traffic,
        basis=basis,
        state=state,
        sequence=before.sequence if before else 0,
    )


def record(ledger: Ledger, found: Gathered, report: FreshnessReport, state: FreshnessState) -> LedgerEvent:
    """Append the check. Raises LedgerConflict when another one of this config was recorded since `found`.

    When each document was last verified lies beside the event, and is the same content as long as nothing changes.
    """
    payload = {
        "level": report.level,
        "reason": report.reason,
        "index_version": report.index_version,
        "checked_at": found.inspection.at.isoformat(),
        "basis": report.basis,
        "measures": {name: measure.model_dump(mode="json") for name, measure in report.measures.items()},
        "announcement": report.announcement,
        "state": state.model_dump(mode="json"),
    }
    documents = {
        id: [content_hash, at.isoformat() if at else None]
        for id, (content_hash, at) in found.inspection.verified.items()
    }
    content = json.dumps({"documents": documents}, sort_keys=True).encode()
    subject = index_subject(found.config.name)
    return ledger.append(EventKind.FRESHNESS_CHECKED, subject, payload, content=content, after=found.sequence)


def repair_plan(found: Gathered) -> FreshnessPlan:
    """The cheapest repair, at the embedding model's price where it is known."""
    price = usd_per_million_tokens(found.config)
    with stdout_to_stderr():
        return plan_repair(found.inspection, found.traffic, found.source, found.config.freshness, price)


def _config_and_source(root: Path, reference: str) -> tuple[RetrievalConfig, Path | BadInput]:
    """A config whose only fault is that its source is gone is still a config."""
    try:
        return load_retrieval_config(root, reference)
    except BadInput as error:
        name, _, version = reference.partition("@")
        known = (root / "retrieval_configs" / f"{name}.yaml", root / name, Path(name))
        file = next((path for path in known if path.is_file()), None)
        if file is None:
            raise
        config = load_yaml(file, RetrievalConfig)
        if version and config.version != version:
            raise
        return config, error


def _read_source(config: RetrievalConfig, path: Path | BadInput) -> SourceNow | str:
    """What the source holds, or why it cannot be read."""
    if isinstance(path, BadInput):
        return str(path)
    try:
        snapshot = read_source(path, config.source.max_document_mb)
    except BadInput as error:
        return str(error)
    lengths = {document.id: len(document.text) for document in snapshot.documents}
    return SourceNow(snapshot.hashes, lengths, snapshot.unreadable)


def _left_by(ledger: Ledger, event: LedgerEvent | None, warnings: list[str]) -> tuple[FreshnessState, Verified]:
    """What the check before left. What cannot be read of it is as if there had been none."""
    if event is None:
        return FreshnessState(), {}
    try:
        state = FreshnessState.model_validate(event.payload["state"])
        checked_at = datetime.fromisoformat(event.payload["checked_at"])
        known = json.loads(ledger.content(event))["documents"]
        return state, {
            id: (content_hash, datetime.fromisoformat(at) if at else checked_at)
            for id, (content_hash, at) in known.items()
        }
    except (BadInput, ValidationError, KeyError, ValueError, TypeError) as error:
        warnings.append(f"the check before (ledger event {event.sequence}) cannot be used, so ages start anew: {error}")
        return FreshnessState(), {}


def _other_index(config: RetrievalConfig, index: IndexVersion) -> list[str]:
    if index.fingerprint == config.index_fingerprint:
        return []
    return [f"live is {index.label}, which was built before the config was changed to what it says now"]


def _quarantined(ledger: Ledger, pointer: LivePointer) -> set[str]:
    """Documents of which the build of the live index kept a chunk out; what cannot be read names none."""
    for event in ledger.events(EventKind.INDEX_BUILT, index_subject(pointer.index.config_name), newest=_BUILDS):
        if event.payload.get("index_version") == pointer.index.label:
            try:
                report = json.loads(ledger.content(event))
                return {chunk["document_id"] for chunk in report.get("quarantined", ())}
            except (BadInput, ValueError, KeyError, TypeError):
                return set()
    return set()


def _traffic(
    settings: Settings, config: RetrievalConfig, index: IndexVersion, inspection: Inspection, warnings: list[str]
) -> tuple[Traffic, Basis]:
    """Production, else what the golden set's questions retrieve now, else every document alike."""
    marks = inspection.marks(config.freshness.max_age_days)
    ids = [document.id for document in inspection.documents]
    start = inspection.at - timedelta(days=config.freshness.window_days)
    production = read_traffic(settings.state / "retrievals", config.name, start, inspection.at, ids, marks)
    if production.overall.chunks:
        return production, "production"
    warnings.extend(production.warnings)
    if production.left_out:
        warnings.append(f"production retrieved {production.left_out} chunks, none of a document that is live now")
    if config.gate.dataset:
        cases = load_golden_set(settings.root, config.gate.dataset).cases
        try:
            found = Retriever.open(config, index, settings.lance).search_many([case.question for case in cases])
        except TouchstoneError as error:
            warnings.append(f"the golden set's questions could not be asked: {error}")
        else:
            golden = _count(found, [case.segment for case in cases], ids, marks)
            if golden.overall.chunks:
                return golden, "golden"
    return every_document_once(marks), "documents"


def _count(found: list[Retrieval], segments: list[str], ids: list[str], marks: np.ndarray) -> Traffic:
    counter = TrafficCounter(marks)
    index_of = {id: index for index, id in enumerate(ids)}
    names = sorted(set(segments))
    shown = [NO_SEGMENT if name == "all" else name for name in names]
    document = [index_of.get(chunk.document_id, -1) for retrieval in found for chunk in retrieval.chunks]
    counter.add(
        shown,
        np.array([names.index(segment) for segment in segments]),
        np.array([query_hash(retrieval.query.encode()) for retrieval in found]),
        np.repeat(np.arange(len(found)), [len(retrieval.chunks) for retrieval in found]),
        np.array(document, dtype=np.int64),
    )
    return counter.traffic()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """The solver (HiGHS) prints lines of its own to the process's stdout, where `--json` must be one object."""
    flush = ctypes.CDLL(None).fflush  # C's buffer: what is in it is written where stdout points to then
    sys.stdout.flush()
    flush(None)
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
