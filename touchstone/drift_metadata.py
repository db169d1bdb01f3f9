"""What the vendor says of itself: a new model id or system fingerprint is a signal at once, without statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from touchstone.drift_records import Baseline, DriftState, MetadataSignal, RunScores, Transition


def metadata_signals(run: RunScores, baseline: Baseline) -> tuple[MetadataSignal, ...]:
    """Names that the vendor did not use in the baseline; where the baseline knows none, nothing can be said."""

    def signal(what: Literal["served_model", "fingerprint"], now: set[str], before: set[str]) -> list[MetadataSignal]:
        if not before or now <= before:
            return []
        return [MetadataSignal(what=what, new=tuple(sorted(now - before)), baseline=tuple(sorted(before)))]

    models = signal("served_model", set(run.served_models), set(baseline.served_models))
    prints = signal("fingerprint", set(run.fingerprints), set(baseline.fingerprints))
    return (*models, *prints)


def signal_transitions(
    run: RunScores, state: DriftState, signals: Sequence[MetadataSignal]
) -> tuple[dict[str, tuple[str, ...]], tuple[Transition, ...]]:
    """(the signals that stand now, the transitions): a signal is raised once, and a model's end is told."""
    standing: dict[str, tuple[str, ...]] = {signal.what: signal.new for signal in signals}
    transitions = []
    for what, new in standing.items():
        if not set(new) <= set(state.signals.get(what, ())):
            kind = "detected" if what == "served_model" else "flagged"
            transitions.append(Transition(kind=kind, stream=f"metadata/{what}"))
    for what, names in (("served_model", run.served_models), ("fingerprint", run.fingerprints)):
        if what in state.signals and what not in standing:
            if not names:  # the vendor said nothing: what it said last stands
                standing[what] = state.signals[what]
            elif what == "served_model":
                transitions.append(Transition(kind="recovered", stream=f"metadata/{what}"))
    return standing, tuple(transitions)
