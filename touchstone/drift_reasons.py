"""What a drift decision says: one sentence with the numbers, for an engineer who was just woken up."""

from __future__ import annotations

from collections.abc import Sequence

from touchstone.drift_records import (
    WHOLE,
    Direction,
    DriftPolicy,
    DriftState,
    MetadataSignal,
    RunScores,
    StreamEvidence,
    Verdict,
)

_MOST_NAMED = 3


def failure_reason(run: RunScores, maximum_failure_share: float) -> str:
    """Too much of the run failed."""
    if not run.n_cases:
        return "unmeasurable: no case was planned"
    kind = max(run.failures, key=lambda kind: run.failures[kind], default="of unknown kind")
    return (
        f"unmeasurable: {run.n_failed} of {run.n_cases} cases failed ({run.n_failed / run.n_cases:.0%}; at most "
        f"{maximum_failure_share:.0%} may), mostly {kind} ({run.failures.get(kind, 0)})"
    )


def few_cases_reason(paired: int, minimum_cases: int, changed: int, new: int, planned: int) -> str:
    """Too few scored cases have a counterpart in the baseline."""
    text = f"unmeasurable: {paired} scored cases can be compared with the baseline, {minimum_cases} are needed"
    if not changed and not new:
        return text
    return (
        f"{text}; the golden set changed: of {planned} cases {changed} have other content than in the baseline and "
        f"{new} are new; freeze a new baseline"
    )


def unmeasured_but_standing(state: DriftState) -> str:
    """What an unmeasurable run leaves as it was."""
    levels = [stream.level for stream in state.streams.values()]
    worst = Verdict.DRIFTED if Verdict.DRIFTED in levels else Verdict.FLAGGED if Verdict.FLAGGED in levels else None
    return f"it stays {worst}, as before" if worst else ""


def drift_reason(worst: StreamEvidence, policy: DriftPolicy, streams: Sequence[StreamEvidence]) -> str:
    """A stream is flagged or drifted: what moved, from where to where, on how many cases, how sure, since when."""
    bar = "act at 1" if worst.level is Verdict.DRIFTED else f"flag at {policy.flag_at:g}, act at 1"
    if worst.level is Verdict.FLAGGED and worst.adjusted >= 1:
        bar = f"act at 1, once it stands {policy.persistence} runs in a row"
    since = worst.change_point or worst.since
    text = f"{_moved(worst)} (e-value {worst.adjusted:.2g}, {bar}); since run {since}"
    others = [other for other in streams if other is not worst and other.level is worst.level]
    if others:
        named = ", ".join(f"{_name(other)} {_verb(other)}" for other in others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        text += f"; also {named}{more}"
    return text


def stable_reason(streams: Sequence[StreamEvidence], policy: DriftPolicy, recovered: bool) -> str:
    """Nothing stands: the headline's figures, the strongest evidence, and what would have been seen."""
    headline, strongest = streams[0], max(streams, key=lambda stream: stream.adjusted)
    text = "recovered: " if recovered else "no evidence of a shift: "
    text += f"{_figures(headline)} (strongest e-value {strongest.adjusted:.2g}"
    if strongest.metric != headline.metric or strongest.segment != headline.segment:
        text += f", {_name(strongest)}"
    return f"{text}; flag at {policy.flag_at:g}, act at 1)"


def detectable_reason(headline: StreamEvidence, runs: int) -> str:
    """The smallest shift that would have been found."""
    effect = headline.minimum_detectable_effect
    if effect is None:
        return ""
    return f"; finds a shift of {_figure(effect)} within {runs} run{'s' if runs > 1 else ''} (80 % power)"


def signal_reason(signals: Sequence[MetadataSignal]) -> str:
    """The vendor says something new of itself."""
    texts = []
    for signal in signals:
        name = "model" if signal.what == "served_model" else "system fingerprint"
        new, before = ", ".join(signal.new), ", ".join(signal.baseline)
        texts.append(f"the vendor now returns {name} {new} (baseline: {before})")
    return "; ".join(texts)


def _moved(stream: StreamEvidence) -> str:
    return f"{_name(stream)} {_verb(stream)} {_change(stream)}"


def _figures(stream: StreamEvidence) -> str:
    return f"{_name(stream)} {_change(stream)}"


def _change(stream: StreamEvidence) -> str:
    means = f"{_figure(stream.mean_baseline)} -> {_figure(stream.mean_now)}"
    return f"{means} on {stream.n} of {stream.n_planned} cases"


def _name(stream: StreamEvidence) -> str:
    return stream.metric if stream.segment == WHOLE else f"{stream.metric} in segment {stream.segment!r}"


def _verb(stream: StreamEvidence) -> str:
    if stream.direction is Direction.CHANGED or stream.difference == 0:
        return "moved"
    return "fell" if stream.difference < 0 else "rose"


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
