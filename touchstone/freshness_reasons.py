"""A freshness decision in words: what is above its limit, how sure that is, and which documents are responsible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from touchstone.freshness_records import (
    Basis,
    DocumentStatus,
    FreshnessLevel,
    Measure,
    MeasureState,
    ResponsibleDocument,
)
from touchstone.freshness_traffic import Traffic
from touchstone.retrieval_config import FreshnessSla

_NAMED = 3


def reason_of(
    measures: Mapping[str, Measure],
    states: Mapping[str, MeasureState],
    documents: Sequence[ResponsibleDocument],
    traffic: Traffic,
    basis: Basis,
    sla: FreshnessSla,
    source_error: str,
) -> str:
    """The worst first, then what it was measured on, then what could not be measured."""
    worst = [
        _above(name, measures[name], states[name], documents, sla)
        for level in (FreshnessLevel.BREACHED, FreshnessLevel.FLAGGED)
        for name, state in states.items()
        if state.level is level
    ]
    parts = worst or [f"within the SLA: {_all(measures)}"]
    parts.append(_basis(traffic, basis, len(traffic.overall.documents), sla))
    if source_error:
        parts.append(
            f"the source cannot be read ({source_error}): what lags, what is gone and what was never embedded cannot "
            "be told, and ages go on counting from the last time it was read"
        )
    return "; ".join(parts)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _above(
    name: str, measure: Measure, state: MeasureState, documents: Sequence[ResponsibleDocument], sla: FreshnessSla
) -> str:
    if measure.value is None:
        return f"{name} was {state.level} when it was last measured"
    text = f"{name} {percent(measure.value)} (limit {percent(measure.limit)})"
    if measure.lower_bound is not None and measure.lower_bound <= measure.limit:
        text += f", but it may be {percent(measure.lower_bound)} with so few queries"
    elif state.level is FreshnessLevel.FLAGGED:
        text += f", in {state.streak} of the {sla.persistence} checks in a row that make a breach"
    elif measure.lower_bound != measure.value:
        text += f", at least {percent(measure.lower_bound)} with 95 % confidence"
    return text + _responsible(name, measure, documents)


def _responsible(name: str, measure: Measure, documents: Sequence[ResponsibleDocument]) -> str:
    count = f": {measure.count} {'document' if measure.count == 1 else 'documents'}"
    if name == "never_embedded":
        return count
    concerned = [document for document in documents if _concerns(name, document)]
    named = ", ".join(f"{document.id} ({percent(document.traffic_share)})" for document in concerned[:_NAMED])
    return f"{count}, {'the most retrieved: ' if len(concerned) > _NAMED else ''}{named}" if named else count


def _concerns(name: str, document: ResponsibleDocument) -> bool:
    if name == "stale_fraction":
        return document.stale
    return document.status is (DocumentStatus.LAGGING if name == "source_lag" else DocumentStatus.GHOST)


def _all(measures: Mapping[str, Measure]) -> str:
    shown = (
        f"{name} {percent(measure.value)} (limit {percent(measure.limit)})"
        for name, measure in measures.items()
        if measure.value is not None
    )
    return ", ".join(shown) or "nothing could be measured"


def _basis(traffic: Traffic, basis: Basis, documents: int, sla: FreshnessSla) -> str:
    if basis == "documents":
        return f"each of {documents} documents weighs the same, as there is no traffic and no golden set"
    measured = f"measured on {traffic.overall.chunks:,} chunks that {traffic.queries:,} distinct"
    if basis == "golden":
        return f"{measured} questions of the golden set retrieve, as there is no production traffic"
    return f"{measured} queries retrieved in {sla.window_days:g} days"
