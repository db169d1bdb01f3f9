"""May a candidate replace the champion? Both on the same golden cases, paired; a decision with all its reasons.

PASS asks for everything: not inferior on every metric of the gate, no hard check broken, little enough failed. FAIL
asks for certainty, or for a broken hard check. Whatever is neither is UNMEASURABLE, and promotes nothing.
How the chance of an error is divided: `touchstone.gate_comparisons`. In plain words: docs/gate.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from touchstone import gate_checks
from touchstone.canary import CanaryGate
from touchstone.cases import GoldenCase, dataset_digest
from touchstone.errors import BadInput
from touchstone.gate_changes import case_changes, described
from touchstone.gate_comparisons import (
    Levels,
    Pairs,
    Stage,
    compare_metrics,
    harm_so_far,
    levels_for,
    repeats_can_help,
)
from touchstone.gate_records import (
    WHOLE,
    CaseChange,
    Comparison,
    GateDecision,
    GateVerdict,
    HardCheck,
    Sample,
    Spend,
)
from touchstone.policy import Policy
from touchstone.release_policy import Factor, MetricGate
from touchstone.report import case_scores
from touchstone.results import CaseResult

__all__ = [
    "CanaryGate",
    "CaseChange",
    "Comparison",
    "EarlyEnd",
    "GateDecision",
    "GateVerdict",
    "HardCheck",
    "Sample",
    "Spend",
    "Stage",
    "case_order",
    "cases_to_repeat",
    "decide_gate",
    "early_end",
]

Results = Sequence[CaseResult]


@dataclass(frozen=True)
class EarlyEnd:
    """Why a first pass ends before its last case; `harmed` metrics are certainly lower."""

    reason: str
    harmed: tuple[str, ...] = ()


def decide_gate(
    cases: Sequence[GoldenCase],
    candidate: Results,
    champion: Results | None,
    policy: Policy,
    *,
    changed: Sequence[Factor] = (),
    required_score: float | None = None,
    stage: Stage | None = None,
    settled: Sequence[Comparison] = (),
    harmed: Collection[str] = (),
) -> GateDecision:
    """The decision after `stage`; without a champion it is a first release: floors and hard checks only.

    `required_score` is the prompt's `eval_score_required`, a floor of the policy's first metric. `settled` are the
    comparisons of earlier stages that stay as they were, `harmed` what an early end of the first pass found. Raises
    BadInput for a policy that asks for what no score can show, or compares nothing.
    """
    stage = stage or Stage()
    gates = _gates(policy, changed, champion)
    rows: tuple[Comparison, ...] = ()
    if champion is not None:
        rows = compare_metrics(cases, candidate, champion, policy, gates, stage, settled, harmed)
    cost, latency = gate_checks.cost_per_case(candidate, champion), gate_checks.latency_p95(candidate, champion)
    release = policy.release
    checks = [
        *gate_checks.zero_tolerance(release.zero_tolerance, cases, candidate),
        *gate_checks.forbidden_pii(release.forbidden_pii, cases, candidate),
        *gate_checks.floors(policy, gates, required_score, candidate),
    ]
    if champion is not None:
        checks += gate_checks.at_most("cost per case", cost, release.max_cost_increase, "USD")
        checks += gate_checks.at_most("p95 latency", latency, release.max_latency_increase, "ms")
    sides = [gate_checks.sample(results) for results in (candidate, champion) if results is not None]
    worse, better = case_changes(cases, candidate, champion, policy, rows)
    verdict, reason = _verdict(len(cases), sides, rows, checks, policy)
    return GateDecision(
        verdict=verdict,
        reason=reason if champion is not None else f"first release, no champion to compare with: {reason}",
        changed=tuple(changed),
        is_first_release=champion is None,
        comparisons=rows,
        checks=tuple(checks),
        regressions=described(worse, candidate, champion),
        improvements=described(better, candidate, champion),
        n_worse=len(worse),
        n_better=len(better),
        cost_per_case=cost,
        latency_p95_ms=latency,
        n_cases=len(cases),
        candidate=sides[0],
        champion=sides[1] if champion is not None else None,
        stage=stage.number,
        stages=stage.of,
        scores=_means(candidate, policy),
    )


def cases_to_repeat(
    decision: GateDecision, cases: Sequence[GoldenCase], policy: Policy, stage: Stage
) -> list[GoldenCase]:
    """Cases of the comparisons that another trial could settle: all cases of each; none when nothing can be bought.

    Never cases chosen by how they came out. Repeating those that got worse would draw their means up again
    (regression to the mean) while the lucky ones kept their luck, and a worse candidate would pass too often. What
    may be chosen by outcome is the comparison, for each stage of each has its own share of alpha.
    """
    if decision.verdict is not GateVerdict.UNMEASURABLE or stage.number >= stage.of:
        return []
    others = [row for row in decision.comparisons if row.verdict == "unmeasurable"]
    if others or any(check.verdict is not GateVerdict.PASS for check in decision.checks):
        return []  # no trial can lead to a pass
    levels = levels_for(policy, _gates(policy, decision.changed, ()), cases, stage)
    segments = set()
    for row in decision.undecided:
        low, high = policy.scale_of(row.metric)
        if not repeats_can_help(row, levels, high - low):
            return []  # this one stays undecided, whatever the others do
        segments.add(row.segment)
    return [case for case in cases if WHOLE in segments or case.segment in segments]


def case_order(cases: Sequence[GoldenCase]) -> list[GoldenCase]:
    """The order in which cases are run: drawn before any answer, and with each segment's share in every stretch."""
    rng = np.random.default_rng(int(dataset_digest(cases)[:16], 16))
    by_segment: dict[str, list[GoldenCase]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.id):
        by_segment[case.segment].append(case)
    placed = []
    for segment in sorted(by_segment):
        found = by_segment[segment]
        offset = rng.random()  # or the first of every small segment would come at the same place
        shuffled = [found[place] for place in rng.permutation(len(found))]
        placed += [((rank + offset) / len(found), segment, case) for rank, case in enumerate(shuffled)]
    return [case for _, _, case in sorted(placed, key=lambda item: item[:2])]


def early_end(
    cases: Sequence[GoldenCase],
    candidate: Results,
    champion: Results | None,
    policy: Policy,
    *,
    changed: Sequence[Factor] = (),
    stage: Stage,
) -> EarlyEnd | None:
    """Within the first pass: why the rest of it cannot change the verdict; None when it can."""
    sides = {"candidate": candidate} | ({"champion": champion} if champion is not None else {})
    for name, results in sides.items():
        found = gate_checks.sample(results)
        if "budget" in found.failures:
            return EarlyEnd(f"the spend cap is reached ({found.example})")
        if found.failed > policy.maximum_failure_share * len(cases):
            return EarlyEnd(f"{found.failed} of {len(cases)} cases of the {name} have failed ({found.example})")
    for check in [
        *gate_checks.zero_tolerance(policy.release.zero_tolerance, cases, candidate),
        *gate_checks.forbidden_pii(policy.release.forbidden_pii, cases, candidate),
    ]:
        if check.verdict is GateVerdict.FAIL:
            return EarlyEnd(f"{check.name}: {check.detail}")
    if champion is None:
        return None
    gates = _gates(policy, changed, champion)
    levels = levels_for(policy, gates, cases, stage)
    harmed = [
        metric for metric, gate in gates.items() if _is_harmed(cases, candidate, champion, policy, metric, gate, levels)
    ]
    return EarlyEnd(f"{', '.join(harmed)} certainly lower than the champion's", tuple(harmed)) if harmed else None


def _is_harmed(
    cases: Sequence[GoldenCase],
    candidate: Results,
    champion: Results,
    policy: Policy,
    metric: str,
    gate: MetricGate,
    levels: Levels,
) -> bool:
    scale = policy.scale_of(metric)
    both = case_scores(candidate, metric), case_scores(champion, metric)
    pairs = Pairs.of_cases([case.id for case in cases], both, set(), scale)
    return harm_so_far(pairs, gate.margin / (scale[1] - scale[0]), levels.look)


def _gates(policy: Policy, changed: Sequence[Factor], champion: Results | None) -> Mapping[str, MetricGate]:
    gates = policy.gates_for(changed)
    if champion is not None and not gates:
        raise BadInput(
            "policy: field gate names no metric, so a candidate would be compared by nothing; add for example "
            "`gate: {" + policy.metrics[0].name + ": {margin: 0.05}}`"
        )
    return gates


def _verdict(
    n_cases: int, sides: Sequence[Sample], rows: Sequence[Comparison], checks: Sequence[HardCheck], policy: Policy
) -> tuple[GateVerdict, str]:
    """What is certain comes first: a broken rule is broken also in a run that failed in part."""
    broken = [f"{check.name}: {check.detail}" for check in checks if check.verdict is GateVerdict.FAIL]
    is_proof = any(check.one_answer_is_proof for check in checks if check.verdict is GateVerdict.FAIL)
    worse = [f"{row.name} {row.reason}" for row in rows if row.verdict == "inferior"]
    gaps = _gaps(n_cases, sides, policy)
    if is_proof or worse:
        return GateVerdict.FAIL, "; ".join([*broken, *worse])
    if gaps:
        return GateVerdict.UNMEASURABLE, "; ".join(gaps)
    if broken:
        return GateVerdict.FAIL, "; ".join(broken)
    open_ = [f"{row.name} {row.reason}{_or_repeats(row)}" for row in rows if row.stands_in_the_way]
    open_ += [f"{check.name}: {check.detail}" for check in checks if check.verdict is GateVerdict.UNMEASURABLE]
    if open_:
        return GateVerdict.UNMEASURABLE, "; ".join(open_)
    held = ", ".join(
        f"{row.metric} {row.candidate:.3f} against {row.champion:.3f} "
        f"(at worst {row.bound:+.3f}, n {row.n} of {row.of})"
        for row in rows
        if row.segment == WHOLE
    )
    passed = f"{len(checks)} hard checks passed"
    return GateVerdict.PASS, f"not inferior within the margins: {held}; {passed}" if rows else passed


def _gaps(n_cases: int, sides: Sequence[Sample], policy: Policy) -> list[str]:
    """Why what was run cannot carry a pass."""
    gaps = []
    for name, side in zip(("candidate", "champion"), sides, strict=False):
        if "budget" in side.failures:
            gaps.append(f"the spend cap stopped the {name}: {side.example}")
        elif side.failed > policy.maximum_failure_share * max(side.cases, 1):
            kinds = ", ".join(f"{count} {kind}" for kind, count in side.failures.items())
            gaps.append(
                f"{side.failed} of {side.cases} cases of the {name} failed ({kinds}; {side.example}), the policy "
                f"allows {policy.maximum_failure_share:.0%}"
            )
        elif side.cases < n_cases:
            gaps.append(f"only {side.cases} of {n_cases} cases of the {name} were run")
        if side.cases - side.failed < policy.minimum_cases and not gaps:
            gaps.append(
                f"{side.cases - side.failed} cases of the {name} have an answer and its scores, the policy asks for "
                f"{policy.minimum_cases}"
            )
    return gaps


def _or_repeats(row: Comparison) -> str:
    return f", or {row.needed_repeats} trials per case" if row.needed_repeats else ""


def _means(candidate: Results, policy: Policy) -> dict[str, float]:
    found = {}
    for spec in policy.metrics:
        if scores := case_scores(candidate, spec.name):
            found[spec.name] = sum(sum(trials) / len(trials) for trials in scores.values()) / len(scores)
    return found
