"""The cheapest documents to re-embed or delete so that the freshness SLA holds again, beside a full rebuild."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from touchstone.freshness_documents import Inspection, SourceNow
from touchstone.freshness_records import MEASURES, DocumentStatus, FreshnessPlan, PlanCost, PlannedDocument
from touchstone.freshness_traffic import Traffic
from touchstone.retrieval_config import FreshnessSla

Method = Literal["nothing to do", "exact", "greedy"]

_CHARACTERS_PER_TOKEN = 4
_SLACK = 1e-9
_MOST_CANDIDATES = 10_000  # of 50,000 the solver's first step alone took a minute, whatever its time limit


@dataclass(frozen=True)
class _Candidate:
    document: PlannedDocument
    weight: float  # its retrieved chunks
    stale: bool
    tokens: int


@dataclass(frozen=True)
class _Limits:
    """What must hold, as `rows @ chosen >= needed`: in retrieved chunks, never_embedded in documents."""

    names: tuple[str, ...]
    rows: NDArray[np.float64]  # (measures, candidates): what choosing each brings
    needed: NDArray[np.float64]

    def without(self, name: str) -> _Limits:
        keep = [index for index, other in enumerate(self.names) if other != name]
        return _Limits(tuple(self.names[index] for index in keep), self.rows[keep], self.needed[keep])

    def unmet(self, reached: NDArray[np.float64]) -> list[str]:
        short = reached < self.needed - _SLACK * (1 + abs(self.needed))
        return [name for name, is_short in zip(self.names, short, strict=True) if is_short]


def plan_repair(
    inspection: Inspection,
    traffic: Traffic,
    source: SourceNow | None,
    sla: FreshnessSla,
    usd_per_million_tokens: float | None,
    time_limit_s: float = 10.0,
) -> FreshnessPlan:
    """Choose by integer programming: least chunks to embed, then fewest documents; a ghost is deleted for nothing.

    Judged are the estimates, not their bounds. A document that is re-embedded is verified; one that is deleted leaves
    the denominator too, as the next check will no longer count what it served. Chunks of a lagging document are
    those it has now, of a new one its length over the others' characters per chunk, tokens a quarter of the
    characters. All are upper estimates: chunks that did not change come from the cache. A price of None is unknown.
    """
    candidates = list(_candidates(inspection, traffic, source, sla)) if source else []
    limits = _limits(candidates, inspection, traffic, sla)
    method, chosen, unmet = _choose(candidates, limits, time_limit_s)
    picked = [candidates[index] for index in np.flatnonzero(chosen)]
    picked.sort(key=lambda candidate: (-candidate.weight, candidate.document.id))
    embedded = [candidate for candidate in picked if candidate.document.action == "embed"]
    chunks, tokens = sum(one.document.chunks for one in embedded), sum(one.tokens for one in embedded)
    cost = _cost(len(embedded), chunks, tokens, usd_per_million_tokens)
    full = _full_rebuild(inspection, source, usd_per_million_tokens)
    return FreshnessPlan(
        method=method,
        restores=not unmet,
        reason=_reason(method, picked, cost, full, unmet, inspection.source_error),
        documents=tuple(candidate.document for candidate in picked),
        cost=cost,
        full_rebuild=full,
        after=_after(picked, inspection, traffic, sla),
        unrestorable=tuple(unmet),
    )


def _candidates(inspection: Inspection, traffic: Traffic, source: SourceNow, sla: FreshnessSla) -> Iterator[_Candidate]:
    weights, total = traffic.overall.documents.astype(float), max(traffic.overall.chunks, 1)
    stale = inspection.ages > sla.max_age_days
    for document, weight, is_stale in zip(inspection.documents, weights, stale, strict=True):
        share = float(weight / total)
        if document.status is DocumentStatus.LAGGING:
            planned = PlannedDocument(
                id=document.id, action="embed", status="lagging", chunks=document.chunks, traffic_share=share
            )
            yield _Candidate(planned, float(weight), bool(is_stale), _tokens(source.lengths[document.id]))
        elif document.status is DocumentStatus.GHOST:
            planned = PlannedDocument(id=document.id, action="delete", status="ghost", chunks=0, traffic_share=share)
            yield _Candidate(planned, float(weight), bool(is_stale), 0)
    per_chunk = _characters_per_chunk(inspection, source)
    for id in inspection.never_embedded:
        length = source.lengths[id]
        chunks = _chunks(length, per_chunk)
        planned = PlannedDocument(id=id, action="embed", status="never_embedded", chunks=chunks, traffic_share=0.0)
        yield _Candidate(planned, 0.0, False, _tokens(length))


def _limits(candidates: Sequence[_Candidate], inspection: Inspection, traffic: Traffic, sla: FreshnessSla) -> _Limits:
    """(bad - taken) / (total - deleted) <= limit, as taken - limit * deleted >= bad - limit * total."""
    status = np.array([candidate.document.status for candidate in candidates], dtype=object)
    weight = np.array([candidate.weight for candidate in candidates])
    stale = np.array([candidate.stale for candidate in candidates], dtype=bool)
    deleted = weight * (status == "ghost")
    taken = (weight * stale, weight * (status == "lagging"), deleted)
    limit = (sla.stale_fraction, sla.source_lag, sla.ghosts)
    bad = (float(traffic.overall.documents[mark].sum()) for mark in inspection.marks(sla.max_age_days))
    rows = [row - bound * deleted for row, bound in zip(taken, limit, strict=True)]
    needed = [amount - bound * traffic.overall.chunks for amount, bound in zip(bad, limit, strict=True)]
    rows.append((status == "never_embedded").astype(float))
    needed.append(len(inspection.never_embedded) - sla.never_embedded * inspection.source_documents)
    return _Limits(MEASURES, np.array(rows, float).reshape(len(MEASURES), -1), np.array(needed, float))


def _choose(
    candidates: Sequence[_Candidate], limits: _Limits, time_limit_s: float
) -> tuple[Method, NDArray[np.bool_], list[str]]:
    """(how, which, measures that stay above their limits)."""
    nothing = np.zeros(len(candidates), dtype=bool)
    unmet = limits.unmet(limits.rows @ nothing)
    if not unmet or not candidates:
        return "nothing to do", nothing, unmet
    # Chunks are whole numbers: one more per document, together less than one chunk, settles what they leave open.
    costs = np.array([candidate.document.chunks + 1 / (len(candidates) + 1) for candidate in candidates])
    chosen, is_possible = _solved(costs, limits, time_limit_s)
    reachable = limits
    if not is_possible:  # only age can be out of reach, by documents that nobody can read
        reachable = limits.without("stale_fraction")
        chosen, _ = _solved(costs, reachable, time_limit_s)
    method: Method = "exact"
    if chosen is None:
        method, chosen = "greedy", _greedy(costs, reachable)
    return method, chosen, limits.unmet(limits.rows @ chosen)


def _solved(costs: NDArray[np.float64], limits: _Limits, time_limit_s: float) -> tuple[NDArray[np.bool_] | None, bool]:
    """(the optimum, proven by HiGHS, or None when there was no time to; whether there can be one)."""
    from scipy import optimize

    if len(costs) > _MOST_CANDIDATES:
        return None, bool((np.maximum(limits.rows, 0).sum(axis=1) >= limits.needed).all())
    constraint: Any = optimize.LinearConstraint  # takes arrays, whatever its stubs say
    result = optimize.milp(
        costs,
        integrality=np.ones(len(costs)),
        bounds=optimize.Bounds(0, 1),
        constraints=constraint(limits.rows, limits.needed, np.inf),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    infeasible = 2
    return (result.x > 0.5 if result.status == 0 else None), result.status != infeasible


def _greedy(costs: NDArray[np.float64], limits: _Limits) -> NDArray[np.bool_]:
    """Measure by measure, most of it per chunk first; then what turned out to be needless is dropped, dearest first."""
    chosen = np.zeros(len(costs), dtype=bool)
    for _ in limits.names:  # deleting for one measure can raise another: look again
        for row, needed in zip(limits.rows, limits.needed, strict=True):
            free = np.flatnonzero(~chosen & (row > 0))
            order = free[np.argsort(-row[free] / costs[free], kind="stable")]
            reached = float(row @ chosen) + np.concatenate([[0.0], np.cumsum(row[order])])
            chosen[order[: int(np.searchsorted(reached, needed - _SLACK))]] = True
    reached = limits.rows @ chosen
    for index in np.argsort(-costs, kind="stable"):
        without = reached - limits.rows[:, index]
        if chosen[index] and limits.unmet(without) == limits.unmet(reached):
            chosen[index], reached = False, without
    return chosen


def _after(
    picked: Sequence[_Candidate], inspection: Inspection, traffic: Traffic, sla: FreshnessSla
) -> dict[str, float]:
    """The estimates that the plan leads to."""
    repaired = {candidate.document.id for candidate in picked}
    deleted = {candidate.document.id for candidate in picked if candidate.document.action == "delete"}
    is_left = np.array([document.id not in repaired for document in inspection.documents], dtype=bool)
    is_served = np.array([document.id not in deleted for document in inspection.documents], dtype=bool)
    weights = traffic.overall.documents
    total = max(int(weights[is_served].sum()), 1)
    marks = inspection.marks(sla.max_age_days)
    after = {name: float(weights[mark & is_left].sum() / total) for name, mark in zip(MEASURES, marks, strict=False)}
    missing = sum(id not in repaired for id in inspection.never_embedded)
    return after | {"never_embedded": missing / max(inspection.source_documents, 1)}


def _full_rebuild(inspection: Inspection, source: SourceNow | None, usd: float | None) -> PlanCost:
    """What is served and still there, and what is new; of a source that cannot be read, what is served."""
    kept = [document for document in inspection.documents if document.status is not DocumentStatus.GHOST]
    if source is None:
        return _cost(len(kept), sum(document.chunks for document in kept), None, usd)
    per_chunk = _characters_per_chunk(inspection, source)
    new = [source.lengths[id] for id in inspection.never_embedded]
    chunks = sum(document.chunks for document in kept) + sum(_chunks(length, per_chunk) for length in new)
    tokens = _tokens(sum(source.lengths.get(document.id, 0) for document in kept) + sum(new))
    return _cost(len(kept) + len(new), chunks, tokens, usd)


def _cost(documents: int, chunks: int, tokens: int | None, usd_per_million: float | None) -> PlanCost:
    usd = None if usd_per_million is None or tokens is None else tokens * usd_per_million / 1e6
    return PlanCost(documents=documents, chunks=chunks, tokens=tokens, cost_usd=usd)


def _characters_per_chunk(inspection: Inspection, source: SourceNow) -> float:
    known = [document for document in inspection.documents if document.id in source.lengths]
    chunks = sum(document.chunks for document in known)
    return max(sum(source.lengths[document.id] for document in known) / chunks, 1.0) if chunks else 1000.0


def _chunks(length: int, per_chunk: float) -> int:
    return max(1, math.ceil(length / per_chunk))


def _tokens(characters: int) -> int:
    return math.ceil(characters / _CHARACTERS_PER_TOKEN)


def _reason(
    method: Method,
    picked: Sequence[_Candidate],
    cost: PlanCost,
    full: PlanCost,
    unmet: Sequence[str],
    source_error: str,
) -> str:
    if method == "nothing to do":
        text = "every estimate is within its limit" if not unmet else "no document can be repaired"
    else:
        deleted = len(picked) - cost.documents
        optimum = "the cheapest that there is" if method == "exact" else "a good one, not proven to be the cheapest"
        text = (
            f"re-embed {cost.documents} documents ({cost.chunks} chunks) and delete {deleted}: {optimum}; "
            f"a full rebuild embeds {full.chunks} chunks"
        )
    if not unmet:
        return text
    why = f"the source cannot be read: {source_error}" if source_error else "documents that cannot be read are too old"
    return f"{text}; {', '.join(unmet)} cannot be restored by it ({why})"
