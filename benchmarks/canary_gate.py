"""How often a canary that is worse reaches all traffic, and an equal one does, beside the rules that people use.

    python -m benchmarks.canary_gate [--quick] [--seed 1]

Seeded streams of live scores: 120 requests a minute, 5 % and then 25 % of them the canary's, a look every 5 minutes,
2 hours at most. `touchstone` is the code that runs in production (`CanaryEvidence`, `decide_look`, the default
policy: margin 0.05, two shares, guardrails `judge` and `answered`); `gate alone` is one `CanaryGate` until its first
verdict. Wald's bound is the least expected number of requests of any test that knows both laws and errs with
probability 0.05: log(20) / KL.

Limits: 6 points worse promoted <= 1 %, its requests to the roll-back <= 2 x Wald, equal promoted >= 80 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, digamma
from scipy.stats import norm

from tasks.canary_ready import ANSWERED, WEIGHTS
from touchstone.canary import CanaryEvidence, CanaryGate
from touchstone.canary_look import CanaryVerdict, LookFacts, decide_look
from touchstone.release import Canary
from touchstone.release_policy import CanaryPolicy

Floats = NDArray[np.float64]
Law = Callable[[np.random.Generator, int], Floats]

POLICY = CanaryPolicy()
DELTA = POLICY.margin
PER_MINUTE, LOOK_MINUTES, HOURS = 120, 5, 2
GATE_CAP = 1500
_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Outcome:
    """One run of one rule: what became of the canary, after how many of its requests."""

    verdict: str  # promoted, rolled back or held
    requests: int


@dataclass(frozen=True)
class Result:
    """Many runs of one rule on one pair of laws."""

    promoted: float
    rolled_back: float
    held: float
    mean_requests: float  # to the verdict, of all runs
    to_roll_back: float  # of those that were rolled back


class Stream:
    """Live scores of both arms, drawn as they are asked for."""

    def __init__(self, canary: Law, champion: Law, rng: np.random.Generator) -> None:
        self._canary, self._champion, self._rng = canary, champion, rng

    def pairs(self, n: int, block: int) -> list[tuple[float, list[float]]]:
        scores = self._canary(self._rng, n).tolist()
        return list(zip(scores, self._champion(self._rng, n * block).reshape(n, block).tolist(), strict=True))

    def minutes(self, share: float) -> tuple[Floats, Floats]:
        """Mean scores per minute of 2 hours, of the canary and the champion."""
        n, minutes = round(PER_MINUTE * share), 60 * HOURS
        canary = self._canary(self._rng, n * minutes).reshape(minutes, n).mean(axis=1)
        rest = PER_MINUTE - n
        return canary, self._champion(self._rng, rest * minutes).reshape(minutes, rest).mean(axis=1)


Rule = Callable[[Stream], Outcome]


def touchstone(stream: Stream) -> Outcome:
    """The whole procedure: evidence, looks, ladder, minimum counts, time limit."""
    evidence = CanaryEvidence(["judge", ANSWERED], POLICY.margin, POLICY.alpha, WEIGHTS)
    canary = Canary(
        canary_id="c",
        share=POLICY.shares[0],
        salt="s",
        started_at=_START.isoformat(),
        share_since=_START.isoformat(),
    )
    requests = at_share = 0
    for number in range(1, 60 * HOURS // LOOK_MINUTES + 2):
        now, n = _START + timedelta(minutes=number * LOOK_MINUTES), round(PER_MINUTE * LOOK_MINUTES * canary.share)
        n = min(n, POLICY.judged_per_look)
        block = min(POLICY.baseline_block, int((1 - canary.share) / canary.share))
        for score, champions in stream.pairs(n, block):
            evidence.update({"judge": (score, champions), ANSWERED: (1.0, [1.0] * block)})
        requests, at_share = requests + n, at_share + n
        facts = LookFacts(now=now, n_at_share=at_share, last_canary_at=now, last_champion_at=now)
        match decide_look(evidence, facts, canary, POLICY).verdict:
            case CanaryVerdict.ROLLBACK:
                return Outcome("rolled back", requests)
            case CanaryVerdict.GRADUATE:
                return Outcome("promoted", requests)
            case CanaryVerdict.HOLD:
                return Outcome("held", requests)
            case CanaryVerdict.WIDEN:
                wider = next(share for share in POLICY.shares if share > canary.share)
                canary = canary.model_copy(update={"share": wider, "share_since": now.isoformat()})
                at_share = 0
    raise AssertionError("the time limit holds it")


def gate_alone(stream: Stream) -> Outcome:
    """One gate, looked at after every request, until it says something."""
    gate = CanaryGate(DELTA)
    for chunk in range(GATE_CAP // 50):
        for score, champions in stream.pairs(50, POLICY.baseline_block):
            if verdict := gate.update(score, champions):
                return Outcome({"promote": "promoted", "rollback": "rolled back"}[verdict], gate.n)
        assert gate.n == 50 * (chunk + 1)
    return Outcome("held", gate.n)


def mean_not_lower(stream: Stream, minutes: int = 60 * HOURS) -> Outcome:
    """Promote when the canary's mean is not below the champion's."""
    canary, champion = (scores[:minutes] for scores in stream.minutes(POLICY.shares[0]))
    verdict = "promoted" if canary.mean() >= champion.mean() else "rolled back"
    return Outcome(verdict, round(PER_MINUTE * POLICY.shares[0]) * minutes)


def mean_not_lower_early(stream: Stream) -> Outcome:
    """The same after 60 canary requests."""
    return mean_not_lower(stream, round(60 / (PER_MINUTE * POLICY.shares[0])))


def mann_whitney(stream: Stream, minutes: int = 60 * HOURS) -> Outcome:
    """A canary judge on minute means: the shift's 98 % interval beyond 0.25 of its estimate is a failure."""
    canary, champion = (scores[:minutes] for scores in stream.minutes(POLICY.shares[0]))
    shifts = np.sort(np.subtract.outer(canary, champion).ravel())
    n, m = len(canary), len(champion)
    out = max(0, int(n * m / 2 - norm.ppf(0.99) * np.sqrt(n * m * (n + m + 1) / 12)))
    high, estimate = shifts[-1 - out], np.median(shifts)
    is_low = high < -0.25 * abs(estimate)
    return Outcome("rolled back" if is_low else "promoted", round(PER_MINUTE * POLICY.shares[0]) * n)


def mann_whitney_early(stream: Stream) -> Outcome:
    """The same on half an hour."""
    return mann_whitney(stream, 30)


GATE_RULE: Rule = touchstone
RULES: Mapping[str, Rule] = {
    "touchstone": touchstone,
    "gate alone": gate_alone,
    "mean not lower, 2 h": mean_not_lower,
    "mean not lower, n = 60": mean_not_lower_early,
    "Mann-Whitney judge, 2 h": mann_whitney,
    "Mann-Whitney, 30 min": mann_whitney_early,
}


def pass_fail(p: float) -> Law:
    return lambda rng, n: (rng.random(n) < p).astype(np.float64)


def graded(mean: float, weight: float = 6.0) -> Law:
    return lambda rng, n: rng.beta(mean * weight, (1 - mean) * weight, n)


def wald_bound(worse: float, equal: float) -> float:
    """Least expected requests of any test at 0.05 that knows both pass rates, while the canary is worse."""
    divergence = worse * log(worse / equal) + (1 - worse) * log((1 - worse) / (1 - equal))
    return log(1 / POLICY.alpha) / divergence


def wald_bound_graded(worse: float, equal: float, weight: float = 6.0) -> float:
    """The same of two Beta laws."""
    a, b, c, d = worse * weight, (1 - worse) * weight, equal * weight, (1 - equal) * weight
    divergence = betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b)
    return log(1 / POLICY.alpha) / float(divergence + (c - a + d - b) * digamma(weight))


def simulate(
    rule: Rule, canary: float, champion: float, runs: int, seed: int, law: Callable[[float], Law] = pass_fail
) -> Result:
    """Many seeded runs of a rule; the same seed gives every rule streams of the same laws."""
    rng = np.random.default_rng(seed)
    outcomes = [rule(Stream(law(canary), law(champion), rng)) for _ in range(runs)]
    back = [outcome.requests for outcome in outcomes if outcome.verdict == "rolled back"]
    return Result(
        promoted=sum(outcome.verdict == "promoted" for outcome in outcomes) / runs,
        rolled_back=len(back) / runs,
        held=sum(outcome.verdict == "held" for outcome in outcomes) / runs,
        mean_requests=float(np.mean([outcome.requests for outcome in outcomes])),
        to_roll_back=float(np.mean(back)) if back else float("nan"),
    )


SCENES: list[tuple[str, float, float, Callable[[float], Law], float | None]] = [
    ("pass/fail 0.89, 6 points worse", 0.83, 0.89, pass_fail, wald_bound(0.83, 0.89)),
    ("pass/fail 0.89, equal", 0.89, 0.89, pass_fail, None),
    ("graded, mean 0.80, 6 points worse", 0.74, 0.80, graded, wald_bound_graded(0.74, 0.80)),
    ("graded, mean 0.80, equal", 0.80, 0.80, graded, None),
]


def main() -> None:
    """Print a table per scene, then the limits; exit 1 when one is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    runs, begun = 200 if arguments.quick else 2000, time.process_time()
    found: dict[str, Result] = {}
    for title, canary, champion, law, bound in SCENES:
        print(f"\n{title}: {runs} runs" + (f", Wald's bound {bound:.0f} requests" if bound else ""))
        print(f"{'rule':<26}{'promoted':>10}{'rolled back':>13}{'held':>8}{'requests':>10}{'x Wald':>8}")
        for name, rule in RULES.items():
            result = simulate(rule, canary, champion, runs, arguments.seed, law)
            found[f"{title}/{name}"] = result
            ratio = f"{result.to_roll_back / bound:.2f}" if bound else ""
            print(
                f"{name:<26}{result.promoted:>10.1%}{result.rolled_back:>13.1%}{result.held:>8.1%}"
                f"{result.mean_requests:>10.0f}{ratio:>8}",
                flush=True,
            )
    worse, equal = (found[f"{SCENES[place][0]}/touchstone"] for place in (0, 1))
    bound = wald_bound(0.83, 0.89)
    checks = {
        f"6 points worse promoted {worse.promoted:.2%} (limit 1 %)": worse.promoted <= 0.01,
        f"to the roll-back {worse.to_roll_back / bound:.2f} x Wald (limit 2)": worse.to_roll_back <= 2 * bound,
        f"equal promoted {equal.promoted:.1%} (limit 80 %)": equal.promoted >= 0.80,
    }
    print("\n" + "\n".join(f"{'kept  ' if kept else 'BROKEN'}  {what}" for what, kept in checks.items()))
    print(f"seed {arguments.seed}, {time.process_time() - begun:.0f} s of CPU")
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
