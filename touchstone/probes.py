"""Is it still the vendor of before? The decision on one cheap look at it, between evals.

Two layers. What the vendor says of itself and what is listed of its model is compared with what was known: a signal at
once. The first token of its answer to each probe passes when it is the usual one of the calibration runs, and the
passes are weighed by the drift engine (`touchstone.drift`), whose evidence may be looked at every hour: `alpha` is of
false alarms in a whole year of hourly looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from touchstone.bundle import Endpoint
from touchstone.drift import (
    Baseline,
    DriftDecision,
    DriftPolicy,
    MetricScores,
    MetricSpec,
    RunScores,
    Verdict,
    decide_drift,
    freeze_baseline,
)
from touchstone.probe_facts import find_signals, known_facts
from touchstone.probe_records import (
    FEWEST_PROBES,
    Learned,
    ProbeLevel,
    ProbeReference,
    ProbeReport,
    ProbeRun,
    ProbeState,
    Signal,
    VendorFacts,
    usual_tokens,
)

CALIBRATION_RUNS = 24  # a day of them; 20 keep the engine's promise
MOST_FAILED = 0.2  # of the probes
_METRIC = MetricSpec(name="usual token", kind="pass_fail", higher_is_better=None)  # more and less of them are change
_LEVELS = {
    Verdict.STABLE: ProbeLevel.STABLE,
    Verdict.FLAGGED: ProbeLevel.FLAGGED,
    Verdict.DRIFTED: ProbeLevel.DETECTED,
    Verdict.UNMEASURABLE: ProbeLevel.UNMEASURABLE,
}
_SHOWN = 20
_REMEMBERED = 100  # names that come and go, as fingerprints do, are news once

Moved = Literal["flagged", "detected", "recovered"]


@dataclass(frozen=True)
class Probed:
    """What is probed: a bundle's endpoint, with a named set of probes."""

    bundle: str
    endpoint: Endpoint
    probes: str
    fingerprint: str


def probe_policy(runs_per_day: float = 24) -> DriftPolicy:
    """The drift engine's settings: a year's false alarms are spread over so many runs."""
    return DriftPolicy(
        runs_per_year=365 * runs_per_day,
        minimum_calibration_runs=CALIBRATION_RUNS,
        horizon_runs=max(1, round(runs_per_day)),
    )


def decide_probe(
    about: Probed, run: ProbeRun, state: ProbeState | None, policy: DriftPolicy, *, announce: bool = True
) -> tuple[ProbeReport, ProbeState]:
    """The decision on a run, and what to remember until the next one.

    Without `announce` there is no transition: a change of level is left to a later run that announces it. A run of
    which more than a fifth of the probes failed is unmeasurable: it is neither learned from nor weighed.
    """
    state = state or ProbeState()
    before = state.reference.facts if state.reference else _learned_facts(state)
    today = datetime.fromisoformat(run.at).date()
    signals = find_signals(run, before, state.signals, about.endpoint, today)
    is_measured = run.n_probes > 0 and len(run.tokens) >= max(FEWEST_PROBES, (1 - MOST_FAILED) * run.n_probes)
    decision: DriftDecision | None = None
    if state.reference is None and is_measured:
        state = _learn(state, run)
        tokens = ProbeLevel.LEARNING
    elif state.reference is None:
        tokens = ProbeLevel.UNMEASURABLE
    else:
        scores = _scores(run.run_key, run.at, run.tokens, state.reference.usual, run.n_probes, run.failures)
        decision, drift = decide_drift(
            scores,
            state.reference.baseline,
            state.drift,
            policy,
            minimum_cases=FEWEST_PROBES,
            maximum_failure_share=MOST_FAILED,
        )
        tokens = _LEVELS[decision.verdict]
        state = state.model_copy(update={"drift": drift})
    level = _level(tokens, signals)
    standing = state.level if level is ProbeLevel.UNMEASURABLE else level
    moved = _moved(state, standing, signals) if announce else None
    state = state.model_copy(update={"level": standing, "signals": signals})
    if announce:
        told = tuple(dict.fromkeys((*state.told_signals, *(signal.key for signal in signals))))[-_REMEMBERED:]
        state = state.model_copy(update={"told_level": standing, "told_signals": told})
    return _report(about, run, state, decision, level, tokens, moved), state


def _learned_facts(state: ProbeState) -> VendorFacts | None:
    return known_facts([one.facts for one in state.learned]) if state.learned else None


def _learn(state: ProbeState, run: ProbeRun) -> ProbeState:
    """Add a run to the reference, and freeze it once there are enough."""
    new = Learned(run_key=run.run_key, at=run.at, tokens=run.tokens, facts=run.facts)
    learned = (*state.learned, new)
    if len(learned) < CALIBRATION_RUNS:
        return state.model_copy(update={"learned": learned})
    usual = usual_tokens(learned)
    runs = [_scores(one.run_key, one.at, one.tokens, usual, len(usual)) for one in learned]
    baseline: Baseline = freeze_baseline(runs, [_METRIC], minimum_calibration_runs=CALIBRATION_RUNS)
    reference = ProbeReference(usual=usual, facts=known_facts([one.facts for one in learned]), baseline=baseline)
    return state.model_copy(update={"learned": (), "reference": reference})


def _scores(
    run_key: str,
    at: str,
    tokens: Mapping[str, str],
    usual: Mapping[str, str],
    planned: int,
    failures: Mapping[str, int] | None = None,
) -> RunScores:
    known = {probe: token for probe, token in tokens.items() if probe in usual}
    passes = tuple((float(token == usual[probe]),) for probe, token in known.items())
    return RunScores(
        run_key=run_key,
        at=at,
        metrics={_METRIC.name: MetricScores(case_ids=tuple(known), scores=passes)} if known else {},
        n_cases=planned,
        n_failed=sum((failures or {}).values()),
        failures=dict(failures or {}),
        case_digests=dict.fromkeys(usual, ""),
    )


def _level(tokens: ProbeLevel, signals: tuple[Signal, ...]) -> ProbeLevel:
    """The higher of tokens and signals; a model that is gone is no outage."""
    if tokens is ProbeLevel.UNMEASURABLE and not any(signal.what == "refused" for signal in signals):
        return tokens
    highest = max((ProbeLevel(signal.level) for signal in signals), key=lambda level: level.height, default=tokens)
    return highest if highest.height > tokens.height else tokens


def _moved(state: ProbeState, now: ProbeLevel, signals: tuple[Signal, ...]) -> Moved | None:
    """What is new since the last transition: a higher level or another signal, or that all is quiet again."""
    new = {signal.level for signal in signals if signal.key not in state.told_signals}
    if "detected" in new or (now is ProbeLevel.DETECTED and state.told_level is not now):
        return "detected"
    if "flagged" in new or (now is ProbeLevel.FLAGGED and not state.told_level.height):
        return "flagged"
    return "recovered" if state.told_level.height and not now.height else None


def _report(
    about: Probed,
    run: ProbeRun,
    state: ProbeState,
    decision: DriftDecision | None,
    level: ProbeLevel,
    tokens: ProbeLevel,
    moved: Moved | None,
) -> ProbeReport:
    stream = decision.streams[0] if decision and decision.streams else None
    usual = state.reference.usual if state.reference else {}
    changed = [(id, usual[id], token) for id, token in run.tokens.items() if id in usual and usual[id] != token]
    return ProbeReport(
        bundle=about.bundle,
        model=about.endpoint.model,
        probes=about.probes,
        fingerprint=about.fingerprint,
        run_key=run.run_key,
        checked_at=run.at,
        level=level,
        transition=moved,
        reason="; ".join(filter(None, (*(one.reason for one in state.signals), _words(run, state, decision, tokens)))),
        signals=state.signals,
        facts=run.facts,
        n_probes=run.n_probes,
        n_answered=len(run.tokens),
        n_calibration=len(state.reference.baseline.run_keys) if state.reference else len(state.learned),
        n_needed=CALIBRATION_RUNS,
        usual_share=stream.mean_now if stream else None,
        usual_share_before=stream.mean_baseline if stream else None,
        changed=tuple(changed[:_SHOWN]),
        e_value=stream.adjusted if stream else None,
        minimum_detectable_effect=stream.minimum_detectable_effect if stream else None,
        change_point=stream.change_point if stream else None,
        failures=run.failures,
        calls=run.calls,
        cost_usd=run.cost_usd,
        wall_s=run.wall_s,
    )


def _words(run: ProbeRun, state: ProbeState, decision: DriftDecision | None, tokens: ProbeLevel) -> str:
    """What the tokens say."""
    if tokens is ProbeLevel.UNMEASURABLE:
        said = f" ({run.example})" if run.example else ""
        return f"unmeasurable: {sum(run.failures.values())} of {run.n_probes} probes have no answer{said}"
    if decision is not None:
        return decision.reason
    if state.reference is not None:
        return f"the reference is complete: {CALIBRATION_RUNS} runs over {len(state.reference.usual)} probes"
    return f"learning what the vendor usually answers: run {len(state.learned)} of {CALIBRATION_RUNS}"
