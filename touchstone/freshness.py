"""Is what queries retrieve still what the source says? Two levels, with the numbers and the documents responsible."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from touchstone.freshness_documents import Inspection
from touchstone.freshness_reasons import reason_of
from touchstone.freshness_records import (
    MEASURES,
    Ages,
    Basis,
    DocumentStatus,
    FreshnessLevel,
    FreshnessReport,
    FreshnessState,
    Measure,
    MeasureState,
    NeverEmbedded,
    ResponsibleDocument,
    SegmentFreshness,
)
from touchstone.freshness_traffic import SegmentTraffic, Share, Traffic, TrafficCounter, weighted_quantile
from touchstone.retrieval_config import FreshnessSla

_AGAIN = timedelta(hours=24)  # after which a breach that persists is announced once more
_NAMED = 20
_MOST_DOCUMENTS = 1_000
_NEEDS_SOURCE = {"source_lag", "ghosts", "never_embedded"}

_ORDER = (FreshnessLevel.OK, FreshnessLevel.FLAGGED, FreshnessLevel.BREACHED)


def decide_freshness(
    config: str,
    index_version: str,
    inspection: Inspection,
    traffic: Traffic,
    basis: Basis,
    sla: FreshnessSla,
    state: FreshnessState,
    *,
    announce: bool,
) -> tuple[FreshnessReport, FreshnessState]:
    """Measure, judge, and say what the next check must know.

    A measure is flagged while its estimate is above its limit, and breached once its one-sided 95 % lower bound was
    above it in `sla.persistence` checks in a row. What cannot be measured keeps its level: it neither adds to the
    checks in a row nor ends them. With `announce` the caller tells others of a change of level, or once more of a
    breach that lasts; without, that is left to a later check.
    """
    measures = _measures(inspection, traffic.overall, basis, sla)
    measures["never_embedded"] = _never_embedded(inspection, sla)
    states = {name: _next_state(measures[name], state.measures.get(name), sla.persistence) for name in MEASURES}
    judged = {name: _with_level(measure, states[name]) for name, measure in measures.items()}
    level = max((after.level for after in states.values()), key=_ORDER.index)
    documents = _responsible(inspection, traffic.overall, sla)
    statuses = [document.status for document in inspection.documents]
    announcement = _announcement(state, level, inspection.at) if announce else None
    report = FreshnessReport(
        config=config,
        index_version=index_version,
        checked_at=inspection.at.isoformat(timespec="seconds"),
        level=level,
        breached=level is FreshnessLevel.BREACHED,
        reason=reason_of(judged, states, documents, traffic, basis, sla, inspection.source_error),
        announcement=announcement,
        basis=basis,
        n_retrievals=traffic.overall.retrievals,
        n_queries=traffic.queries,
        n_chunks=traffic.overall.chunks,
        n_left_out=traffic.left_out,
        measures=judged,
        age_days=_ages(inspection.ages, traffic.overall.documents),
        embedded_age_days=_ages(inspection.embedded_ages, traffic.overall.documents),
        never_embedded=_unseen(inspection, judged["never_embedded"]),
        statuses={status: statuses.count(status) for status in DocumentStatus},
        segments={name: _segment(inspection, part, basis, sla) for name, part in traffic.segments.items()},
        documents=documents[:_MOST_DOCUMENTS],
        source_error=inspection.source_error,
        warnings=inspection.warnings + traffic.warnings,
    )
    known = state if announcement is None else FreshnessState(announced=level, announced_at=inspection.at)
    return report, known.model_copy(update={"measures": states})


def every_document_once(marks: NDArray[np.bool_]) -> Traffic:
    """Where there is neither traffic nor a golden set: each document weighs the same."""
    counter = TrafficCounter(marks)
    whole = counter.traffic().overall
    once = SegmentTraffic(0, whole.clusters, np.ones(marks.shape[1], np.int64))
    return Traffic(once, {}, queries=0, left_out=0)


def _measures(inspection: Inspection, part: SegmentTraffic, basis: Basis, sla: FreshnessSla) -> dict[str, Measure]:
    """stale_fraction, source_lag and ghosts, before anything is said of their level."""
    marks = inspection.marks(sla.max_age_days)
    found = {}
    for row, name in enumerate(MEASURES[:3]):
        limit, count = getattr(sla, name), int(marks[row].sum())
        share = count / marks.shape[1] if marks.shape[1] else None
        if inspection.source_error and name in _NEEDS_SOURCE:
            found[name] = Measure(value=None, limit=limit, level="unmeasurable")
        elif basis == "documents":
            found[name] = _census(share, limit, count)
        else:
            found[name] = _sampled(part.share(row), limit, share, count)
    return found


def _never_embedded(inspection: Inspection, sla: FreshnessSla) -> Measure:
    if inspection.source_error or not inspection.source_documents:
        return Measure(value=None, limit=sla.never_embedded, level="unmeasurable")
    count = len(inspection.never_embedded)
    return _census(count / inspection.source_documents, sla.never_embedded, count)


def _census(share: float | None, limit: float, count: int) -> Measure:
    """Nothing was sampled, so nothing is uncertain."""
    bounds = dict.fromkeys(("value", "ci_low", "ci_high", "lower_bound", "unweighted"), share)
    return Measure(**bounds, limit=limit, count=count, level="unmeasurable" if share is None else "ok")


def _sampled(share: Share | None, limit: float, unweighted: float | None, count: int) -> Measure:
    bounds = {} if share is None else vars(share)
    level = "unmeasurable" if share is None else "ok"
    return Measure(**{"value": None, **bounds}, limit=limit, unweighted=unweighted, count=count, level=level)


def _next_state(measure: Measure, before: MeasureState | None, persistence: int) -> MeasureState:
    before = before or MeasureState()
    if measure.value is None or measure.lower_bound is None:
        return before
    streak = before.streak + 1 if measure.lower_bound > measure.limit else 0
    if streak >= persistence:
        return MeasureState(level=FreshnessLevel.BREACHED, streak=streak)
    above = measure.value > measure.limit
    return MeasureState(level=FreshnessLevel.FLAGGED if above else FreshnessLevel.OK, streak=streak)


def _with_level(measure: Measure, state: MeasureState) -> Measure:
    return measure if measure.value is None else measure.model_copy(update={"level": state.level.value})


def _segment(inspection: Inspection, part: SegmentTraffic, basis: Basis, sla: FreshnessSla) -> SegmentFreshness:
    measures = _measures(inspection, part, basis, sla)
    return SegmentFreshness(
        n_retrievals=part.retrievals,
        n_chunks=part.chunks,
        # How many documents are stale is no fact about a segment.
        measures={
            name: _with_level(measure, _next_state(measure, None, 1)).model_copy(update={"unweighted": None})
            for name, measure in measures.items()
        },
        age_days=_ages(inspection.ages, part.documents),
    )


def _ages(ages: NDArray[np.float64], weights: NDArray[np.int64]) -> Ages:
    ones = np.ones(len(ages))
    return Ages(
        median=weighted_quantile(ages, weights.astype(float), 0.5),
        p95=weighted_quantile(ages, weights.astype(float), 0.95),
        unweighted_median=weighted_quantile(ages, ones, 0.5),
        unweighted_p95=weighted_quantile(ages, ones, 0.95),
    )


def _responsible(inspection: Inspection, part: SegmentTraffic, sla: FreshnessSla) -> tuple[ResponsibleDocument, ...]:
    """Documents that are not fresh, those that serve most traffic first."""
    ages, total = inspection.ages, max(part.chunks, 1)
    # Where the whole source cannot be read, every document is unverifiable: responsible are those that got too old.
    concerned = [
        index
        for index, document in enumerate(inspection.documents)
        if document.status is not DocumentStatus.FRESH
        and (not inspection.source_error or ages[index] > sla.max_age_days)
    ]
    concerned.sort(key=lambda index: (-part.documents[index], inspection.documents[index].id))
    return tuple(
        ResponsibleDocument(
            id=document.id,
            status=document.status,
            stale=bool(ages[index] > sla.max_age_days),
            traffic_share=float(part.documents[index] / total),
            last_verified_at=document.verified_at.isoformat(timespec="seconds"),
            age_days=float(ages[index]),
            embedded_at=document.embedded_at.isoformat(timespec="seconds"),
            chunks=document.chunks,
            note=document.note,
        )
        for index in concerned
        for document in [inspection.documents[index]]
    )


def _unseen(inspection: Inspection, measure: Measure) -> NeverEmbedded:
    return NeverEmbedded(
        count=measure.count if measure.value is not None else None,
        share=measure.value,
        limit=measure.limit,
        documents=inspection.never_embedded[:_NAMED],
        quarantined=inspection.quarantined[:_NAMED],
    )


def _announcement(
    state: FreshnessState, level: FreshnessLevel, now: datetime
) -> Literal["flagged", "breached", "recovered"] | None:
    """A change of level is told where it led; a breach that lasts is told once a day."""
    names: Mapping[FreshnessLevel, Literal["flagged", "breached", "recovered"]] = {
        FreshnessLevel.OK: "recovered",
        FreshnessLevel.FLAGGED: "flagged",
        FreshnessLevel.BREACHED: "breached",
    }
    if level is not state.announced:
        return names[level]
    told = state.announced_at
    lasts = level is FreshnessLevel.BREACHED and (told is None or now - told >= _AGAIN)
    return "breached" if lasts else None
