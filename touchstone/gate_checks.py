"""Checks of a candidate that ask for no statistics: floors, cases without tolerance, personal data, cost, latency."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from touchstone.cases import GoldenCase
from touchstone.errors import BadInput
from touchstone.gate_records import GateVerdict, HardCheck, Sample, Spend
from touchstone.pii import find_pii
from touchstone.policy import Policy
from touchstone.release_policy import MetricGate, ZeroTolerance
from touchstone.report import case_scores
from touchstone.results import CaseResult, FailureKind

_JUDGE = "judge"


def zero_tolerance(
    rules: Sequence[ZeroTolerance], cases: Sequence[GoldenCase], results: Sequence[CaseResult]
) -> list[HardCheck]:
    """Each rule's cases must pass in every trial; one that has no score in some trial could not be looked at."""
    trials = _by_case(results)
    checks = []
    for rule in rules:
        named = [case for case in cases if case.segment in rule.segments or set(case.tags) & set(rule.tags)]
        where = " or ".join([*rule.segments, *(f"#{tag}" for tag in rule.tags)])
        if not named:
            raise BadInput(f"policy: release.zero_tolerance: no golden case is in {where}; name segments or tags of it")
        scores = {
            case.id: [one.scores[rule.metric].value if rule.metric in one.scores else None for one in trials[case.id]]
            for case in named
        }
        broken = [case for case, found in scores.items() if any(value is not None and value <= 0 for value in found)]
        unseen = [case for case, found in scores.items() if not found or None in found]
        asked = f"{rule.metric} of the {len(named)} cases in {where}"
        if broken:
            verdict, detail = GateVerdict.FAIL, f"{asked}: {len(broken)} failed in some trial, none may"
        elif unseen:
            verdict, detail = GateVerdict.UNMEASURABLE, f"{asked}: {len(unseen)} have no score in some trial"
        else:
            verdict, detail = GateVerdict.PASS, f"{asked}: all passed in every trial"
        checks.append(_proof(f"zero tolerance {where}", verdict, detail, broken or unseen))
    return checks


def forbidden_pii(kinds: Sequence[str], cases: Sequence[GoldenCase], results: Sequence[CaseResult]) -> list[HardCheck]:
    """No answer holds a forbidden kind that neither its question nor its reference holds.

    A document that holds one excuses nothing: handing that out is what the check is for.
    """
    if not kinds:
        return []
    known = {case.id: find_pii(f"{case.question}\n{case.reference or ''}") for case in cases}
    found: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result.answer and result.case_id in known:
            leaked = set(result.answer.pii or find_pii(result.answer.text)) & set(kinds) - set(known[result.case_id])
            if leaked:
                found[result.case_id] |= leaked
    if not found:
        return [_proof("personal data", GateVerdict.PASS, f"no answer holds one of {', '.join(kinds)}")]
    counts = Counter(kind for leaked in found.values() for kind in leaked)
    detail = "answers hold " + ", ".join(f"{kind} ({count} cases)" for kind, count in sorted(counts.items()))
    return [_proof("personal data", GateVerdict.FAIL, detail, found)]


def floors(
    policy: Policy, gates: Mapping[str, MetricGate], required_score: float | None, results: Sequence[CaseResult]
) -> list[HardCheck]:
    """Means of the candidate as measured: a floor says what this golden set must show, and infers nothing."""
    asked = [(f"floor of {name}", name, gate.floor) for name, gate in gates.items() if gate.floor is not None]
    if required_score is not None:
        headline = policy.metrics[0].name
        if policy.metrics[0].higher_is_better is None:
            raise BadInput(
                f"the prompt's eval_score_required is of the policy's first metric, but {headline} has no better "
                "direction; list another scorer first"
            )
        asked.append(("eval_score_required", headline, required_score))
    checks = []
    for name, metric, floor in asked:
        low, high = policy.scale_of(metric)
        if not low <= floor <= high:
            raise BadInput(f"{name}: {floor:g} is outside {low:g}..{high:g}, the scale of {metric}")
        scores = case_scores(results, metric)
        if not scores:
            checks.append(_check(name, GateVerdict.UNMEASURABLE, f"no case has a score of {metric}"))
            continue
        mean = math.fsum(math.fsum(trials) / len(trials) for trials in scores.values()) / len(scores)
        holds = mean >= floor - 1e-9
        detail = f"{metric} {mean:.3f} over {len(scores)} cases, at least {floor:g} is required"
        checks.append(_check(name, GateVerdict.PASS if holds else GateVerdict.FAIL, detail))
    return checks


def cost_per_case(candidate: Sequence[CaseResult], champion: Sequence[CaseResult] | None) -> Spend:
    """USD per trial of a case without its judging: what production will pay."""
    return _spend(_mean_cost(candidate), None if champion is None else _mean_cost(champion))


def latency_p95(candidate: Sequence[CaseResult], champion: Sequence[CaseResult] | None) -> Spend:
    """95th percentile of the generating calls, milliseconds."""
    return _spend(_p95(candidate), None if champion is None else _p95(champion))


def at_most(name: str, spend: Spend, most: float | None, unit: str) -> list[HardCheck]:
    """A limit on an increase; without one nothing is asked."""
    if most is None:
        return []
    if spend.champion is None or spend.candidate is None:
        return [_check(name, GateVerdict.UNMEASURABLE, f"{name} is not known on both sides: no price, or no call")]
    detail = f"{spend.champion:.6g} to {spend.candidate:.6g} {unit}"
    if spend.increase is None:  # from nothing to something: no share says how much
        return [_check(name, GateVerdict.FAIL, f"{detail}: the champion's is 0")]
    verdict = GateVerdict.PASS if spend.increase <= most else GateVerdict.FAIL
    return [_check(name, verdict, f"{detail}: {spend.increase:+.1%}, at most {most:+.1%} is allowed")]


def sample(results: Sequence[CaseResult]) -> Sample:
    """What was run of one side, and what of it failed."""
    kinds: Counter[str] = Counter()
    example = ""
    trials = _by_case(results)
    for case_id, found in trials.items():
        failures = [failure for result in found for failure in result.failures]
        first = next((one for one in failures if one.kind is FailureKind.BUDGET), failures[0] if failures else None)
        if first:
            kinds[first.kind.value] += 1
            example = example or f"{case_id}: {first.reason}"
    return Sample(cases=len(trials), failed=sum(kinds.values()), failures=dict(kinds), example=example)


def _check(name: str, verdict: GateVerdict, detail: str) -> HardCheck:
    return HardCheck(name=name, verdict=verdict, detail=detail)


def _proof(name: str, verdict: GateVerdict, detail: str, cases: Iterable[str] = ()) -> HardCheck:
    return HardCheck(name=name, verdict=verdict, detail=detail, cases=tuple(cases), one_answer_is_proof=True)


def _by_case(results: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    found: dict[str, list[CaseResult]] = defaultdict(list)
    for result in results:
        found[result.case_id].append(result)
    return found


def _spend(candidate: float | None, champion: float | None) -> Spend:
    increase = None
    if candidate is not None and champion is not None:
        increase = candidate / champion - 1 if champion else (0.0 if not candidate else None)
    return Spend(champion=champion, candidate=candidate, increase=increase)


def _mean_cost(results: Sequence[CaseResult]) -> float | None:
    answered = [result for result in results if result.answer]
    costs = [call.cost_usd for result in answered for call in result.calls if call.role != _JUDGE]
    if not costs or any(cost is None for cost in costs):
        return None
    return math.fsum(cost for cost in costs if cost is not None) / len(answered)


def _p95(results: Sequence[CaseResult]) -> float | None:
    spent = [call.latency_ms for result in results for call in result.calls if call.role == "generation"]
    return round(float(np.percentile(spent, 95)), 3) if spent else None
