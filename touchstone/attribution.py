"""Quality fell between two runs: which of model, prompt, retrieval config, index version and judge did it?

The cases that fell are replayed with one factor at a time as it was before, beside a control with nothing swapped.
Both are measured now, so choosing the cases by their fall favours neither: while a swap changes nothing, each pair
that differs is a fair coin. The evidence is the exact sign e-value of `touchstone.evalues`, which may be looked at
after every batch, its alpha shared out (Bonferroni) over the swaps that may be tried.

The vendor's model behind an unchanged name cannot be swapped. It is named by elimination: the control still fails,
and all that is ours swapped back together does not restore it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from touchstone.attribution_records import (
    AttributionDecision,
    AttributionVerdict,
    Evidence,
    Fallen,
    Next,
    Replay,
    Scores,
    Standing,
    SwapFinding,
)
from touchstone.evalues import bounded_exp, log_sign_e_value, smallest_sign_alarm
from touchstone.factor_swaps import NAMES, Swap

ALPHA = 0.05
FEWEST_CASES = 3  # repeats of one or two cases would say something of them, not of the product
_SAME = 1e-12


def decide_attribution(evidence: Evidence, alpha: float = ALPHA) -> AttributionDecision:
    """Name the factor whose swap alone restores the cases, or say what is missing. Pure, and total."""
    look = _look(evidence, alpha)
    n = len(evidence.fallen)
    if n < FEWEST_CASES:
        reason = f"only {n} cases fell; at least {FEWEST_CASES} are needed to tell a cause from chance"
        return look.undecided(reason, "more golden cases of the kind that fell")
    if _outweighs(look.passing, look.failing, alpha):
        return look.undecided(
            f"it does not fail any more: {look.passing} of {look.replayed} cases are good again with nothing swapped",
            "a run in which it fails again: what was wrong has passed, at the vendor or in the environment",
        )
    return _by_swaps(look) or _by_elimination(look)


def tests_of(swappable: int) -> int:
    """Swaps that may be tried: each alone and, of several, all together."""
    return swappable + (swappable > 1)


def pairs_needed(swappable: int, alpha: float = ALPHA) -> int:
    """The fewest pairs, all of them restored, that name one of so many factors."""
    return smallest_sign_alarm(max(1, tests_of(swappable)) / alpha)


@dataclass(frozen=True)
class _Look:
    """The evidence, counted."""

    evidence: Evidence
    alpha: float
    findings: tuple[SwapFinding, ...]
    failing: int  # cases of the control that are still low
    passing: int

    @property
    def replayed(self) -> int:
        return self.failing + self.passing

    @property
    def alone(self) -> dict[Swap, SwapFinding]:
        return {finding.swaps[0]: finding for finding in self.findings if len(finding.swaps) == 1}

    @property
    def together(self) -> SwapFinding | None:
        return next((finding for finding in self.findings if len(finding.swaps) > 1), None)

    def undecided(self, reason: str, would_decide: str, then: Next | None = None) -> AttributionDecision:
        return self._decision(AttributionVerdict.UNDECIDED, (), reason, would_decide=would_decide, next=then)

    def named(self, factor: Swap, reason: str, *, by_elimination: bool = False) -> AttributionDecision:
        return self._decision(AttributionVerdict.NAMED, (factor,), reason, by_elimination=by_elimination)

    def interaction(self, factors: Sequence[Swap], reason: str) -> AttributionDecision:
        return self._decision(AttributionVerdict.INTERACTION, tuple(factors), reason)

    def _decision(
        self, verdict: AttributionVerdict, culprits: tuple[Swap, ...], reason: str, **more: object
    ) -> AttributionDecision:
        seen = {"findings": self.findings, "control_cases": self.replayed, "control_failing": self.failing}
        return AttributionDecision.model_validate(
            {"verdict": verdict, "culprits": culprits, "reason": reason} | seen | more
        )


def _by_swaps(look: _Look) -> AttributionDecision | None:
    """What the swaps say; None: no swap restores it."""
    swappable, alone, together = look.evidence.swappable, look.alone, look.together
    missing: list[Swap] = [factor for factor in swappable if factor not in alone]
    if missing:
        return look.undecided(f"not replayed yet: {_names(missing)}", "replaying them", "swaps")
    restoring: list[Swap] = [factor for factor in swappable if alone[factor].restores]
    if len(restoring) > 1:
        parts = "; ".join(f"{NAMES[factor]} {_of(alone[factor])}" for factor in restoring)
        reason = f"each of these restores it alone ({parts}): they harm only together, or each harms other cases"
        return look.interaction(restoring, reason)
    if restoring and (len(swappable) == 1 or 2 * alone[restoring[0]].restored >= alone[restoring[0]].failing):
        return look.named(restoring[0], _restored_by(restoring[0], alone))
    if len(swappable) > 1 and together is None:
        reason = f"{_names(restoring)} restores a part of it" if restoring else "no swap alone restores it"
        return look.undecided(reason, "swapping all back together", "together")
    if restoring and together is not None:
        only = restoring[0]
        if not _restores_more(look, together, alone[only]):
            return look.named(only, _restored_by(only, alone))
        reason = f"{NAMES[only]} alone restores {_of(alone[only])}, {_names(together.swaps)} together {_of(together)}"
        return look.interaction(together.swaps, reason)
    if together is not None and together.restores:
        reason = f"no swap alone restores it, {_names(together.swaps)} together restore {_of(together)}"
        return look.interaction(together.swaps, reason)
    return None


def _by_elimination(look: _Look) -> AttributionDecision:
    """The vendor's model (or judge) behind its unchanged name, if everything else is excluded."""
    evidence, alpha = look.evidence, look.alpha
    whole = look.together or next(iter(look.alone.values()), None)  # all that is ours swapped back
    ours = "nothing on our side differs" if whole is None else "no swap of ours restores it"
    unclear = whole is not None and not whole.does_not_restore
    if not evidence.control and not unclear:
        return look.undecided(ours, "replaying the cases with nothing swapped", "control")
    if unclear or not _outweighs(look.failing, look.passing, alpha):
        return look.undecided(
            f"{look.failing} of {look.replayed} cases still fail and {ours}, but that is too few to be sure",
            f"more cases that fell, or more repeats: {pairs_needed(len(evidence.swappable), alpha)} that fail and "
            "come back name a factor",
            "more",
        )
    if stuck := [state for state in evidence.factors if state.standing is Standing.STUCK]:
        return look.undecided(
            f"the cases still fail and {ours}, but {_names([state.factor for state in stuck])} differs and cannot be "
            "replayed: it may be that, or the vendor",
            "making it possible again: " + "; ".join(f"{NAMES[state.factor]}: {state.note}" for state in stuck),
        )
    if not _outweighs(evidence.fell, evidence.rose, alpha):
        reason = f"the fall may be chance: {evidence.fell} cases fell, {evidence.rose} rose, and {ours}"
        return look.undecided(reason, "another run of both, or more golden cases")
    if evidence.judged:
        found = _judge_moved(look, ours)
        if found is not None:
            return found
    if not evidence.model_moves:
        reason = f"the cases still fail, {ours}, and the model cannot move this metric"
        return look.undecided(reason, "a look at what is retrieved: `touchstone index search`")
    excluded = ours if whole is None else f"{ours} ({_names(whole.swaps)} as before: {_of(whole)})"
    still = f"{look.failing} of {look.replayed} cases still fail with nothing swapped"
    return look.named(
        "model", f"{still}, and {excluded}: the model moved behind its unchanged name", by_elimination=True
    )


def _judge_moved(look: _Look, ours: str) -> AttributionDecision | None:
    """Whether the present judge gives the good answers of before a low score, too. None: it does not."""
    judged_now = look.evidence.judged_now
    if judged_now is None:
        return look.undecided(f"the cases still fail and {ours}", "judging the answers of before again", "judge")
    low, good = _low_and_good(look.evidence.fallen, {case: (score,) for case, score in judged_now.items()})
    said = f"{ours}, and the present judge gives {low} of {low + good} good answers of before a low score"
    if _outweighs(low, good, look.alpha):
        return look.named("judge", f"{said}: the judge moved behind its unchanged name", by_elimination=True)
    if _outweighs(good, low, look.alpha):
        return None
    return look.undecided(said, "labels from people on these answers, old and new")


def _look(evidence: Evidence, alpha: float) -> _Look:
    tests = max(1, tests_of(len(evidence.swappable)))
    findings = tuple(_finding(evidence.fallen, replay, alpha / tests, alpha) for replay in evidence.replays)
    # Where no answer was needed anew: the recorded ones, under the present judge.
    judged = next((replay.control for replay in evidence.replays if replay.swaps == ("judge",)), {})
    failing, passing = _low_and_good(evidence.fallen, evidence.control or judged)
    return _Look(evidence, alpha, findings, failing, passing)


def _finding(fallen: Sequence[Fallen], replay: Replay, share: float, alpha: float) -> SwapFinding:
    pairs = [
        (case, now, control)
        for case, scores in replay.scores.items()
        for now, control in zip(scores, replay.control.get(case, ()), strict=False)
        if now is not None and control is not None
    ]
    helped = [case for case, now, control in pairs if now > control + _SAME]
    worse = sum(now < control - _SAME for _, now, control in pairs)
    paired = {case for case, _, _ in pairs}
    failing = [case for case in fallen if case.case_id in paired and _is_low(case, replay.control)]
    restored = sum(not _is_low(case, replay.scores) for case in failing)
    evidence = bounded_exp(log_sign_e_value(len(helped), worse)) * share
    return SwapFinding(
        swaps=replay.swaps,
        n_cases=len(paired),
        n_pairs=len(pairs),
        better=len(helped),
        worse=worse,
        failing=len(failing),
        restored=restored,
        evidence=evidence,
        restores=evidence >= 1 - _SAME and len(set(helped)) >= FEWEST_CASES,
        does_not_restore=_outweighs(len(failing) - restored, restored, alpha),
    )


def _restores_more(look: _Look, together: SwapFinding, alone: SwapFinding) -> bool:
    """All swaps together bring back cases that the one alone does not."""
    scores = {replay.swaps: replay.scores for replay in look.evidence.replays}
    here, there = scores[together.swaps], scores[alone.swaps]
    both = [case for case in look.evidence.fallen if _mean(case, here) is not None and _mean(case, there) is not None]
    gained = sum(not _is_low(case, here) and _is_low(case, there) for case in both)
    lost = sum(_is_low(case, here) and not _is_low(case, there) for case in both)
    return _outweighs(gained, lost, look.alpha)


def _low_and_good(fallen: Sequence[Fallen], scores: Scores) -> tuple[int, int]:
    """(cases that are still low, cases that are good again); those without a score are neither."""
    known = [case for case in fallen if _mean(case, scores) is not None]
    low = sum(_is_low(case, scores) for case in known)
    return low, len(known) - low


def _is_low(case: Fallen, scores: Scores) -> bool:
    mean = _mean(case, scores)
    return mean is not None and mean < case.halfway


def _mean(case: Fallen, scores: Scores) -> float | None:
    known = [score for score in scores.get(case.case_id, ()) if score is not None]
    return math.fsum(known) / len(known) if known else None


def _outweighs(these: int, those: int, alpha: float) -> bool:
    return bounded_exp(log_sign_e_value(these, those)) >= 1 / alpha


def _restored_by(factor: Swap, alone: dict[Swap, SwapFinding]) -> str:
    finding = alone[factor]
    others = ", ".join(f"{NAMES[other]} {_of(found)}" for other, found in alone.items() if other != factor)
    beside = f" (beside it: {others})" if others else ""
    left = finding.failing - finding.restored
    rest = f"; {left} stay low, which something else must explain" if left > finding.restored else ""
    return f"with the {NAMES[factor]} of before {_of(finding)} are good again{beside}{rest}"


def _of(finding: SwapFinding) -> str:
    return f"{finding.restored} of {finding.failing} cases"


def _names(factors: Sequence[Swap]) -> str:
    names = [NAMES[factor] for factor in factors]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
