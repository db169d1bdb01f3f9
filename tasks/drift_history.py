"""Frozen baselines and drift states in the ledger: who decides second decides on what the first one left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.ledger import Ledger
from tasks.plan import EvalManifest
from touchstone.drift import (
    Baseline,
    DriftDecision,
    DriftState,
    MetricSpec,
    RunScores,
    Verdict,
    decide_drift,
    freeze_baseline,
)
from touchstone.errors import LedgerConflict
from touchstone.ledger import EventKind, LedgerEvent, drift_subject
from touchstone.policy import Policy


@dataclass(frozen=True)
class DriftHistory:
    """What the ledger knows of one bundle on one golden set."""

    baseline: Baseline | None
    decided: tuple[LedgerEvent, ...]  # on this baseline, newest first
    baseline_sequence: int  # 0: none
    last_sequence: int  # of the subject's latest decision on any baseline; 0: none


def subject_of(manifest: EvalManifest) -> str:
    return drift_subject(manifest.bundle_name, manifest.bundle_fingerprint, manifest.dataset_name)


def read_history(ledger: Ledger, subject: str) -> DriftHistory:
    """The current baseline and the decisions on it."""
    decided = ledger.events(EventKind.EVAL_DECIDED, subject)[::-1]
    last = decided[0].sequence if decided else 0
    frozen = ledger.latest(EventKind.BASELINE_FROZEN, subject)
    if frozen is None:
        return DriftHistory(None, (), 0, last)
    since = tuple(event for event in decided if event.sequence > frozen.sequence and event.content_digest)
    return DriftHistory(Baseline.model_validate_json(ledger.content(frozen)), since, frozen.sequence, last)


def record_baseline(ledger: Ledger, subject: str, baseline: Baseline, *, after: int | None = None) -> LedgerEvent:
    """Freeze a baseline; decisions on the one before (`after`, as in `Ledger.append`) end with it."""
    payload = {"id": baseline.id, "provisional": baseline.provisional, "run_keys": list(baseline.run_keys)}
    content = baseline.model_dump_json().encode()
    return ledger.append(EventKind.BASELINE_FROZEN, subject, payload, content=content, after=after)


def decide_and_record(
    ledger: Ledger, manifest: EvalManifest, run: RunScores, specs: Sequence[MetricSpec], policy: Policy
) -> DriftDecision:
    """Decide on a run and append the decision to the ledger; the first run becomes the provisional baseline.

    A run that was decided before, and resumed since, is decided again on the state that was before it. When
    other runs were decided meanwhile, its decision is returned, but their state stays. A run that the baseline is
    made of is no evidence against it.
    """
    subject = subject_of(manifest)
    while True:
        history = read_history(ledger, subject)
        baseline = history.baseline
        try:
            if baseline is None or (baseline.run_keys == (run.run_key,) and not history.decided):
                decision = _first_decision(ledger, subject, run, specs, policy, history.baseline_sequence)
                if decision.verdict is Verdict.UNMEASURABLE and baseline is None:
                    _append(ledger, subject, run, decision, None, history.last_sequence)  # it ran, and left no state
                return decision
            state, later_runs = _state_before(ledger, history, run.run_key)
            decision, state = decide(run, baseline, state, policy)
            if not later_runs and run.run_key not in baseline.run_keys:
                _append(ledger, subject, run, decision, state, history.last_sequence)
        except LedgerConflict:
            continue  # another run of this bundle was decided meanwhile: decide on what it left
        return decision


def decide(
    run: RunScores, baseline: Baseline, state: DriftState | None, policy: Policy
) -> tuple[DriftDecision, DriftState]:
    """`decide_drift` under a golden set's policy."""
    return decide_drift(
        run,
        baseline,
        state,
        policy.drift,
        minimum_cases=policy.minimum_cases,
        maximum_failure_share=policy.maximum_failure_share,
    )


def _first_decision(
    ledger: Ledger, subject: str, run: RunScores, specs: Sequence[MetricSpec], policy: Policy, after: int
) -> DriftDecision:
    """Compared with itself a run is stable or unmeasurable; only a measurable one may be a baseline."""
    if not run.metrics:
        kinds = ", ".join(f"{count} {kind}" for kind, count in run.failures.items()) or "no metric applies to them"
        reason = f"none of {run.n_cases} cases could be scored: {kinds}"
        return DriftDecision(verdict=Verdict.UNMEASURABLE, direction=None, reason=reason, provisional=True)
    baseline = freeze_baseline([run], specs, provisional=True)
    decision, _ = decide(run, baseline, None, policy)
    if decision.verdict is Verdict.UNMEASURABLE:
        return decision
    record_baseline(ledger, subject, baseline, after=after)
    reason = (
        "first run of this bundle on this golden set: frozen as its provisional baseline; "
        f"{policy.drift.minimum_calibration_runs} runs (`touchstone drift calibrate`) make it a full one"
    )
    return decision.model_copy(update={"reason": reason})


def _state_before(ledger: Ledger, history: DriftHistory, run_key: str) -> tuple[DriftState | None, bool]:
    """(the state before this run, whether later runs were decided)."""
    own = [index for index, event in enumerate(history.decided) if event.payload["run_key"] == run_key]
    # From its first decision back: a run that was resumed several times has as many decisions.
    previous = history.decided[own[-1] + 1 :] if own else history.decided
    state = DriftState.model_validate_json(ledger.content(previous[0])) if previous else None
    return state, bool(own and own[0] > 0)


def _append(
    ledger: Ledger, subject: str, run: RunScores, decision: DriftDecision, state: DriftState | None, after: int
) -> None:
    payload = {
        "run_key": run.run_key,
        "verdict": decision.verdict.value,
        "direction": decision.direction.value if decision.direction else None,
        "reason": decision.reason,
    }
    content = state.model_dump_json().encode() if state else None
    ledger.append(EventKind.EVAL_DECIDED, subject, payload, content=content, after=after)
