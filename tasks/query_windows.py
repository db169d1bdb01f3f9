"""Two windows of production queries from the retrieval log, their embeddings, and what was decided on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tasks.embedding import Embedder, open_embedder
from tasks.ledger import Ledger
from tasks.retrieval_traffic import read_queries
from touchstone.errors import LedgerConflict
from touchstone.ledger import EventKind, LedgerEvent, index_subject
from touchstone.query_drift import (
    FarQuery,
    QueryDriftDecision,
    QueryDriftState,
    QueryWindows,
    decide_query_drift,
    farthest_queries,
    too_few,
    windows_until,
)
from touchstone.query_shift import QueryShift, measure_shift
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

MOST_QUERIES = 1_000  # of a window: more make the answer hardly surer, and the embedding dearer


@dataclass(frozen=True)
class MeasuredWindows:
    """What a decision needs; `shift` is None when there are too few queries to compare."""

    windows: QueryWindows
    shift: QueryShift | None
    examples: tuple[FarQuery, ...]


def measure_windows(settings: Settings, config: RetrievalConfig, now: datetime | None = None) -> MeasuredWindows:
    """Compare the window that ends now with the reference before it; nothing is embedded when that is not possible."""
    policy = config.query_drift
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        state = _state(ledger.latest(EventKind.QUERIES_CHECKED, index_subject(config.name)))
    windows = windows_until(now or datetime.now(UTC), policy, state)
    newest = _read(settings, config, windows.start, windows.end)
    reference = _read(settings, config, windows.reference_start, windows.reference_end)
    windows = windows.model_copy(update={"n": len(newest), "reference_n": len(reference)})
    if too_few(windows, policy):
        return MeasuredWindows(windows, None, ())
    embedder = open_embedder(config, settings)
    vectors = _embed(embedder, [*reference, *newest])
    before, after = vectors[: len(reference)], vectors[len(reference) :]
    return MeasuredWindows(windows, measure_shift(before, after, policy), farthest_queries(newest, after, before))


def decide_and_record(settings: Settings, config: RetrievalConfig, measured: MeasuredWindows) -> QueryDriftDecision:
    """Decide on what the check before left, and append the decision; the queries it quotes lie in erasable content."""
    subject = index_subject(config.name)
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        while True:
            last = ledger.latest(EventKind.QUERIES_CHECKED, subject)
            decision, state = decide_query_drift(
                measured.windows, measured.shift, _state(last), config.query_drift, measured.examples
            )
            content = decision.model_dump_json().encode()
            after = last.sequence if last else 0
            try:
                ledger.append(
                    EventKind.QUERIES_CHECKED, subject, _payload(decision, state), content=content, after=after
                )
            except LedgerConflict:
                continue  # another check of this config was decided meanwhile: decide on what it left
            return decision


def past_checks(settings: Settings, config: RetrievalConfig, newest: int) -> list[LedgerEvent]:
    """The last checks of a config, oldest first."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        return ledger.events(EventKind.QUERIES_CHECKED, index_subject(config.name), newest=newest)[::-1]


def _state(last: LedgerEvent | None) -> QueryDriftState | None:
    return QueryDriftState.model_validate(last.payload["state"]) if last else None


def _payload(decision: QueryDriftDecision, state: QueryDriftState) -> dict[str, object]:
    shift = decision.shift
    return {
        "verdict": decision.verdict.value,
        "window_verdict": decision.window_verdict.value,
        "transition": decision.transition.value if decision.transition else None,
        "reason": decision.reason,
        "counted": decision.counted,
        "window_end": decision.windows.end.isoformat(),
        "n": decision.windows.n,
        "reference_n": decision.windows.reference_n,
        "centroid_cosine": shift.centroid_cosine if shift else None,
        "psi": shift.psi if shift else None,
        "spread_ratio": shift.spread_ratio if shift else None,
        "state": state.model_dump(mode="json"),
    }


def _read(settings: Settings, config: RetrievalConfig, start: datetime, end: datetime) -> list[str]:
    found = read_queries(settings.state / "retrievals", config.name, start, end, MOST_QUERIES)
    return [query for query in found if query.strip()]


def _embed(embedder: Embedder, queries: Sequence[str]) -> NDArray[np.floating]:
    """One row for each query; one that is asked often is embedded once."""
    distinct = list(dict.fromkeys(queries))
    row = {query: index for index, query in enumerate(distinct)}
    return embedder.embed(distinct)[[row[query] for query in queries]]
