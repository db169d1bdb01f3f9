"""A canary judged on live traffic: evidence request by request, valid whenever somebody looks.

For each judged canary request D = its score - the mean score of champion requests of the same time. Two bets run on
D: that the canary is *not worse by delta* (wealth grows by 1 + s (D + delta), fair or losing while E D <= -delta) and
that it is *worse* (1 - s D, fair or losing while E D >= 0). A bet's wealth is an e-process: while its null holds it
ever reaches 1/alpha with probability alpha at most (Ville 1939), however often one looks and for any law of scores in
[0, 1]. Stakes s are predictable: they come from the variance of the requests before.

Sources: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting" (the bets, predictable
stakes, mixtures); Howard, Ramdas, McAuliffe & Sekhon 2020, "Time-uniform Chernoff bounds" (Ville's inequality at
any time); Vovk & Wang 2021, "E-values: calibration, combination and applications" (the average over metrics).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from touchstone.evalues import bounded_exp, e_bh

Verdict = Literal["promote", "rollback"]

# Of delta / v, the stake that grows fastest where the truth is "equal". At twice that a bet on promotion gains nothing
# there, and lets through more of what is a little worse than the margin.
PROMOTE_STAKES, ROLLBACK_STAKES = (0.25, 0.5, 1.0), (0.5, 1.0, 2.0)
_MOST = 0.95  # of the stake at which one request could take everything
_PRIOR_VARIANCE, _PRIOR_WEIGHT = 0.25, 50.0  # of D: the largest that one score can have, so first stakes are small


class CanaryGate:
    """One metric of a canary: is it not worse by `delta`, or is it worse? Scores lie in [0, 1], higher is better."""

    def __init__(self, delta: float, alpha: float = 0.05) -> None:
        if not 0 < delta < 1 or not 0 < alpha < 1:
            raise ValueError(f"delta {delta} and alpha {alpha} must lie between 0 and 1")
        self.delta, self.alpha = delta, alpha
        self.n = 0
        self._sum = self._squares = 0.0
        self._promote = [0.0] * len(PROMOTE_STAKES)  # log wealth of each stake
        self._rollback = [0.0] * len(ROLLBACK_STAKES)

    def update(self, canary_score: float, baseline_scores: Sequence[float]) -> Verdict | None:
        """Count one canary request beside champion requests of its time; what is known by now.

        A champion request may be given once only: used twice, its luck would count twice.
        """
        for score in (canary_score, *baseline_scores):
            if not 0 <= score <= 1:  # catches NaN too
                raise ValueError(f"the score {score} does not lie between 0 and 1")
        if not baseline_scores:
            raise ValueError("a canary request is compared with one champion request at least")
        difference = canary_score - math.fsum(baseline_scores) / len(baseline_scores)
        unit = self.delta / self._variance()
        for place, share in enumerate(PROMOTE_STAKES):
            stake = min(share * unit, _MOST / (1 - self.delta))
            self._promote[place] += math.log1p(stake * (difference + self.delta))
        for place, share in enumerate(ROLLBACK_STAKES):
            self._rollback[place] += math.log1p(-min(share * unit, _MOST) * difference)
        self.n += 1
        self._sum += difference
        self._squares += difference * difference
        return self.verdict

    @property
    def verdict(self) -> Verdict | None:
        """What the evidence shows now; who stops at the first verdict errs with probability alpha at most."""
        limit = math.log(1 / self.alpha)
        if _log_mean_exp(self._rollback) >= limit:
            return "rollback"
        return "promote" if _log_mean_exp(self._promote) >= limit else None

    @property
    def promote_e_value(self) -> float:
        """Evidence now against "worse by delta or more"."""
        return bounded_exp(self.log_promote_e_value)

    @property
    def log_promote_e_value(self) -> float:
        return _log_mean_exp(self._promote)

    @property
    def rollback_e_value(self) -> float:
        """Evidence now against "not worse"."""
        return bounded_exp(_log_mean_exp(self._rollback))

    @property
    def mean_difference(self) -> float | None:
        """Canary less champion, so far; it decides nothing."""
        return self._sum / self.n if self.n else None

    def state(self) -> dict[str, Any]:
        """JSON-able; `from_state` gives the same evidence to the last bit."""
        return {
            "delta": self.delta,
            "alpha": self.alpha,
            "n": self.n,
            "sum": self._sum,
            "squares": self._squares,
            "promote": list(self._promote),
            "rollback": list(self._rollback),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CanaryGate:
        gate = cls(state["delta"], state["alpha"])
        gate.n, gate._sum, gate._squares = state["n"], state["sum"], state["squares"]
        gate._promote, gate._rollback = list(state["promote"]), list(state["rollback"])
        return gate

    def _variance(self) -> float:
        """Of D, from the requests before this one; the prior keeps the first stakes sane."""
        scatter = self._squares - self._sum**2 / self.n if self.n else 0.0
        return (_PRIOR_WEIGHT * _PRIOR_VARIANCE + max(scatter, 0.0)) / (_PRIOR_WEIGHT + self.n)


@dataclass(frozen=True)
class MetricEvidence:
    """One guardrail's numbers, for reports."""

    n: int
    mean_difference: float | None
    promote_e_value: float
    rollback_e_value: float


class CanaryEvidence:
    """The gates of all guardrails of one canary.

    Each guardrail must show "not worse by delta" at alpha by itself: no split, as one that fails is enough to keep
    the canary out. Harm in any of them counts: the average of their e-values is an e-process of "none is worse". It
    may be weighted, by weights fixed beforehand: one whose harm is drastic (no answers at all) needs little weight.
    """

    def __init__(
        self, metrics: Iterable[str], delta: float, alpha: float = 0.05, weights: Mapping[str, float] | None = None
    ) -> None:
        self.alpha = alpha
        self.gates = {name: CanaryGate(delta, alpha) for name in metrics}
        self.weights = {name: (weights or {}).get(name, 1.0) for name in self.gates}
        self.worst_harm = 1.0 if self.gates else 0.0  # the largest that the average has been
        if not self.gates:
            raise ValueError("a canary needs a metric to be judged by")

    def update(self, scores: Mapping[str, tuple[float, Sequence[float]]]) -> None:
        """Count one canary request: by metric, its score and its champions'. What has no score is not in it."""
        for name, (canary_score, baseline_scores) in scores.items():
            self.gates[name].update(canary_score, baseline_scores)
        self.worst_harm = max(self.worst_harm, self.harm_e_value)

    @property
    def harm_e_value(self) -> float:
        """The weighted average of the guardrails' roll-back e-values, now."""
        total = math.fsum(self.weights.values())
        return math.fsum(gate.rollback_e_value * (self.weights[name] / total) for name, gate in self.gates.items())

    @property
    def is_harmful(self) -> bool:
        return self.worst_harm >= 1 / self.alpha

    @property
    def harmed(self) -> list[str]:
        """The metrics that e-BH names at alpha; where it names none, the one with most evidence of harm."""
        names = list(self.gates)
        found = e_bh([self.gates[name].rollback_e_value * self.alpha for name in names])
        named = [name for name, is_named in zip(names, found, strict=True) if is_named]
        return named or [max(names, key=lambda name: self.gates[name].rollback_e_value * self.weights[name])]

    def progress(self) -> tuple[float, str]:
        """How far the slowest guardrail is on the way to 1/alpha (log scale; 1: there), and which one it is."""
        way = math.log(1 / self.alpha)
        shares = {name: gate.log_promote_e_value / way for name, gate in self.gates.items()}
        slowest = min(shares, key=lambda name: shares[name])
        return shares[slowest], slowest

    def numbers(self) -> dict[str, MetricEvidence]:
        return {
            name: MetricEvidence(
                n=gate.n,
                mean_difference=gate.mean_difference,
                promote_e_value=gate.promote_e_value,
                rollback_e_value=gate.rollback_e_value,
            )
            for name, gate in self.gates.items()
        }

    def state(self) -> dict[str, Any]:
        gates = {name: gate.state() for name, gate in self.gates.items()}
        return {"alpha": self.alpha, "weights": self.weights, "worst_harm": self.worst_harm, "gates": gates}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CanaryEvidence:
        found = cls(state["gates"], 0.5, state["alpha"], state["weights"])  # each gate brings its own delta
        found.gates = {name: CanaryGate.from_state(gate) for name, gate in state["gates"].items()}
        found.worst_harm = state["worst_harm"]
        return found


def _log_mean_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values) / len(values))
