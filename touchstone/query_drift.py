"""Did what people ask move away from what they asked before? Two levels, persistence, recovery; all of it pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from touchstone.drift_records import Verdict
from touchstone.pii import scrub
from touchstone.privacy import redact_secrets
from touchstone.query_shift import QueryShift, nearest_similarity
from touchstone.retrieval_config import QueryDriftPolicy

_MOST_OVERLAP = 0.25  # of a window with the one counted before: schedules are late, and a day may have 23 hours
_EXAMPLES = 5
_ALIKE = 0.9  # cosine above which two queries would show the same thing
_LONGEST_EXAMPLE = 200
_RANK = {Verdict.STABLE: 0, Verdict.FLAGGED: 1, Verdict.DRIFTED: 2}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Transition(StrEnum):
    """A change of level that is announced. A flag that falls back is not."""

    FLAGGED = "flagged"
    DRIFTED = "drifted"
    RECOVERED = "recovered"


class QueryWindows(_Record):
    """The newest window [start, end), and the reference window before it.

    The reference ends where the newest window starts, unless windows of the last days were beyond the limit that acts:
    then it stays before them, or what was asked in a bad week would make the return to normal look like drift.
    """

    reference_start: AwareDatetime
    reference_end: AwareDatetime
    start: AwareDatetime
    end: AwareDatetime
    n: int = Field(ge=0, description="Queries that were compared, a sample at most")
    reference_n: int = Field(ge=0)


class FarQuery(_Record):
    """A query of the newest window that is unlike everything in the reference: scrubbed, and cut short."""

    text: str
    similarity: float = Field(description="Cosine to the most similar query of the reference")


class QueryDriftState(_Record):
    """What one check leaves to the next."""

    level: Verdict = Verdict.STABLE
    acting: int = Field(default=0, description="Windows in a row beyond the limit that acts")
    quiet: int = Field(default=0, description="Windows in a row within both limits")
    counted_until: AwareDatetime | None = Field(default=None, description="End of the last window that counted")
    reference_end: AwareDatetime | None = Field(default=None, description="Where the reference is held; None: nowhere")
    acted_until: AwareDatetime | None = Field(default=None, description="End of the last window beyond what acts")


class QueryDriftDecision(_Record):
    """What was decided, and on which numbers."""

    verdict: Verdict = Field(description="The level after this window; or unmeasurable, which leaves it as it was")
    window_verdict: Verdict = Field(description="This window alone; `drifted`: beyond the limit that acts")
    transition: Transition | None = None
    reason: str
    counted: bool = Field(description="False: unmeasurable, or a window that was counted already")
    windows: QueryWindows
    shift: QueryShift | None = None
    examples: tuple[FarQuery, ...] = ()


def windows_until(now: datetime, policy: QueryDriftPolicy, state: QueryDriftState | None = None) -> QueryWindows:
    """The windows that end now, no query counted yet."""
    start = now - timedelta(days=policy.window_days)
    end = _reference_end(start, policy, state or QueryDriftState())
    before = end - timedelta(days=policy.reference_days)
    return QueryWindows(reference_start=before, reference_end=end, start=start, end=now, n=0, reference_n=0)


def _reference_end(start: datetime, policy: QueryDriftPolicy, state: QueryDriftState) -> datetime:
    """Held before the windows that were beyond what acts, until no reference window would contain them.

    When they still are after a whole reference window, there is a new normal: the reference moves on.
    """
    if state.reference_end is None or state.acted_until is None:
        return start
    span = timedelta(days=policy.reference_days)
    gone = start - state.acted_until >= span
    new_normal = state.acting > 0 and start - state.reference_end >= span
    return start if gone or new_normal else state.reference_end


def too_few(windows: QueryWindows, policy: QueryDriftPolicy) -> str | None:
    """Why these windows cannot be compared; None: they can."""
    for name, found, start, end in (
        ("newest", windows.n, windows.start, windows.end),
        ("reference", windows.reference_n, windows.reference_start, windows.reference_end),
    ):
        if found < policy.minimum_queries:
            return (
                f"{found} production queries in the {name} window ({start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}), "
                f"query_drift.minimum_queries is {policy.minimum_queries}"
            )
    return None


def farthest_queries(
    texts: Sequence[str], newest: NDArray[np.floating], reference: NDArray[np.floating]
) -> tuple[FarQuery, ...]:
    """The queries of the newest window that are least like any query of the reference, and unlike each other."""
    similarity = nearest_similarity(reference, newest)
    chosen: list[int] = []
    for row in np.argsort(similarity, kind="stable").tolist():
        if len(chosen) < _EXAMPLES and all(newest[row] @ newest[other] < _ALIKE for other in chosen):
            chosen.append(row)
    return tuple(FarQuery(text=_fit_to_print(texts[row]), similarity=round(similarity[row], 3)) for row in chosen)


def decide_query_drift(
    windows: QueryWindows,
    shift: QueryShift | None,
    state: QueryDriftState | None,
    policy: QueryDriftPolicy,
    examples: tuple[FarQuery, ...] = (),
) -> tuple[QueryDriftDecision, QueryDriftState]:
    """Decide on the newest window; returns the state for the next check too.

    A window beyond the limits flags at once. `drifted` needs `policy.windows` windows in a row beyond the limits that
    act, and any level is left after as many in a row within all limits. `shift` None: there were too few queries.
    """
    state = state or QueryDriftState()
    if shift is None:
        reason = f"{too_few(windows, policy) or 'nothing was compared'}: the level stays {state.level}"
        decision = QueryDriftDecision(
            verdict=Verdict.UNMEASURABLE,
            window_verdict=Verdict.UNMEASURABLE,
            reason=reason,
            counted=False,
            windows=windows,
        )
        return decision, state
    found = judge_window(shift, policy)
    counted = _is_new(windows, state)
    after = _next_state(state, found, windows, policy) if counted else state
    numbers = describe(shift, found, policy)
    decision = QueryDriftDecision(
        verdict=after.level,
        window_verdict=found,
        transition=_transition(state.level, after.level),
        reason=f"{numbers}; {_standing(state, after, found, counted, policy)}",
        counted=counted,
        windows=windows,
        shift=shift,
        examples=examples,
    )
    return decision, after


def judge_window(shift: QueryShift, policy: QueryDriftPolicy) -> Verdict:
    """One window alone: beyond a limit, and by more than chance."""
    if not shift.is_significant:
        return Verdict.STABLE
    if shift.exceeds(policy.centroid_act, policy.psi_act):
        return Verdict.DRIFTED
    return Verdict.FLAGGED if shift.exceeds(policy.centroid_flag, policy.psi_flag) else Verdict.STABLE


def describe(shift: QueryShift, found: Verdict, policy: QueryDriftPolicy) -> str:
    """The figures against their limits, in one sentence."""
    cosine = "undefined" if shift.centroid_cosine is None else f"{shift.centroid_cosine:.3f}"
    text = (
        f"centroid cosine {cosine} (flag < {policy.centroid_flag:g}, act < {policy.centroid_act:g}), "
        f"PSI {shift.psi:.3f} of the {shift.largest.name} (flag > {policy.psi_flag:g}, act > {policy.psi_act:g}), "
        f"{shift.n} queries against {shift.reference_n}"
    )
    if found is Verdict.STABLE and shift.exceeds(policy.centroid_flag, policy.psi_flag):
        text += f"; chance alone gives as much (p = {shift.p:.2g})"
    return text


def _is_new(windows: QueryWindows, state: QueryDriftState) -> bool:
    """Not a second look at the window that was counted last."""
    if state.counted_until is None:
        return True
    return windows.end - state.counted_until >= (1 - _MOST_OVERLAP) * (windows.end - windows.start)


def _next_state(
    state: QueryDriftState, found: Verdict, windows: QueryWindows, policy: QueryDriftPolicy
) -> QueryDriftState:
    acts = found is Verdict.DRIFTED
    acting = state.acting + 1 if acts else 0
    quiet = state.quiet + 1 if found is Verdict.STABLE else 0
    level = state.level
    if acting >= policy.windows:
        level = Verdict.DRIFTED
    elif found is not Verdict.STABLE and level is Verdict.STABLE:
        level = Verdict.FLAGGED
    elif quiet >= policy.windows:
        level = Verdict.STABLE
    held = acts or windows.reference_end < windows.start
    return QueryDriftState(
        level=level,
        acting=acting,
        quiet=quiet,
        counted_until=windows.end,
        reference_end=windows.reference_end if held else None,
        acted_until=windows.end if acts else state.acted_until if held else None,
    )


def _transition(before: Verdict, after: Verdict) -> Transition | None:
    if _RANK[after] > _RANK[before]:
        return Transition(after.value)
    return Transition.RECOVERED if (before, after) == (Verdict.DRIFTED, Verdict.STABLE) else None


def _standing(
    before: QueryDriftState, after: QueryDriftState, found: Verdict, counted: bool, policy: QueryDriftPolicy
) -> str:
    """Where this leaves the level."""
    if not counted:
        return (
            f"a second look at the window counted until {before.counted_until:%Y-%m-%d %H:%M}: "
            f"the level stays {before.level}"
        )
    if found is Verdict.DRIFTED:
        more = f" ({policy.windows} make it drifted)" if after.acting < policy.windows else ""
        return f"beyond a limit that acts {_times(after.acting)}{more}"
    if found is Verdict.FLAGGED:
        return "beyond a limit that flags"
    if before.level is Verdict.DRIFTED and after.level is Verdict.STABLE:
        return f"within the limits {_times(after.quiet)}: queries are again like those of the reference window"
    if before.level is not Verdict.STABLE:
        return f"within the limits {_times(after.quiet)} ({policy.windows} end {before.level})"
    return "within the limits"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times in a row"


def _fit_to_print(text: str) -> str:
    text = scrub(redact_secrets(" ".join(text.split())))
    return text if len(text) <= _LONGEST_EXAMPLE else text[: _LONGEST_EXAMPLE - 1] + "…"
