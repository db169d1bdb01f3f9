"""How often quiet years raise an alarm, how soon a silent drift is found, and how well it is dated.

    python -m benchmarks.detection [--quick] [--seed 1]

Simulated daily runs through the real detectors, beside the rules that people write first. Prints one table:
figure, limit, peer on the same simulated runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from touchstone.drift import GradedDetector, PassFailDetector
from touchstone.evalues import alarm_threshold, minimum_detectable_effect

Floats = NDArray[np.float64]
ITEMS, RUNS, CALIBRATION = 150, 365, 20
BEFORE, AFTER = 0.89, 0.83
QUIET_DAYS, WATCHED_DAYS = 10, 200  # before the drift, and from it on
LIMIT = 0.05


def beta_law(mean: float, icc: float) -> Callable[[np.random.Generator], Floats]:
    """Items spread like a Beta with this mean; icc: the share of the variance that lies between items."""
    total = 1 / icc - 1
    return lambda rng: rng.beta(mean * total, (1 - mean) * total, ITEMS)


LAWS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "Beta .89, ICC .5": beta_law(BEFORE, 0.5),
    "Beta .89, ICC .2": beta_law(BEFORE, 0.2),
    "two clusters .98/.40": lambda rng: np.where(rng.random(ITEMS) < 0.85, 0.98, 0.40),
    "homogeneous .89": lambda rng: np.full(ITEMS, BEFORE),
    "near-deterministic": lambda rng: np.where(rng.random(ITEMS) < BEFORE, 0.9995, 0.0005),
    "Beta .50, ICC .3": beta_law(0.5, 0.3),
}


@dataclass
class Table:
    """The figures, printed as they come."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, figure: str, measured: str, limit: str = "", peer: str = "") -> None:
        self.rows.append((figure, measured, limit, peer))
        print(f"{figure:<58} {measured:<24} {limit:<20} {peer}", flush=True)


@dataclass(frozen=True)
class Year:
    """One simulated year: items, calibration runs [m, n], later runs [days, n]."""

    p: Floats
    calibration: Floats
    runs: Floats


def flips(rng: np.random.Generator, *probabilities: Any) -> Floats:
    p = np.asarray(probabilities[0], float)
    return (rng.random(p.shape) < p).astype(float)


def years(law: str, count: int, seed: int, drift: Callable[[Floats], Floats] | None = None) -> Iterator[Year]:
    """Quiet years, or with `drift` some quiet days followed by days on drifted items."""
    for index in range(count):
        rng = np.random.default_rng([seed, index, len(law)])
        p = LAWS[law](rng)
        days = np.tile(p, (RUNS if drift is None else QUIET_DAYS + WATCHED_DAYS, 1))
        if drift is not None:
            days[QUIET_DAYS:] = drift(p)
        yield Year(p, flips(rng, np.tile(p, (CALIBRATION, 1))), flips(rng, days))


def first_alarm(detector: Any, runs: Floats) -> int:
    """Day of the first alarm; -1: none."""
    return next((day for day, scores in enumerate(runs) if detector.update(scores)), -1)


def false_alarms(law: str, count: int, seed: int, direction: Any) -> float:
    """Share of quiet years with an alarm; one fixed pass a day, the whole year through."""
    alarms = []
    for year in years(law, count, seed):
        alarms.append(first_alarm(PassFailDetector(year.calibration, direction=direction), year.runs) >= 0)
    return float(np.mean(alarms))


def adaptive_year(
    year: Year, rng: np.random.Generator, drift_day: int | None, drifted: Floats
) -> tuple[int, list[int]]:
    """(day of the first alarm or -1, calls of each day) with adaptive runs, which peek after every 25 calls."""
    detector, calls = PassFailDetector(year.calibration), []
    for day in range(len(year.runs)):
        p = year.p if drift_day is None or day < drift_day else drifted
        alarm, used = detector.run(lambda indices, p=p: flips(rng, p[indices]))
        calls.append(used)
        if alarm:
            return day, calls
    return -1, calls


def quiet(table: Table, scale: float, seed: int) -> None:
    """False alarms of the detectors and of the naive rules."""
    count = max(int(100 * scale), 3)
    for law in LAWS:
        worse = false_alarms(law, count, seed, "worse")
        better = false_alarms(law, max(count // 2, 3), seed + 1, "better")
        peers = naive_false_alarms(law, count, seed)
        table.add(
            f"false alarms a year, {law}",
            f"{worse:.1%} worse, {better:.1%} better",
            f"<= {LIMIT:.0%}",
            ", ".join(f"{name} {share:.0%}" for name, share in peers.items()),
        )
    for law in list(LAWS)[:5]:
        found, calls = [], []
        for index, year in enumerate(years(law, max(int(30 * scale), 2), seed + 2)):
            alarm, used = adaptive_year(year, np.random.default_rng([seed, index]), None, year.p)
            found.append(alarm >= 0)
            calls.extend(used)
        table.add(
            f"  with adaptive runs (peeking inside), {law}",
            f"{np.mean(found):.1%}, {np.mean(calls):.0f} calls/day",
            f"<= {LIMIT:.0%}",
            f"fixed pass: {ITEMS} calls/day",
        )
    graded_false_alarms(table, max(int(100 * scale), 5), seed)


def graded_false_alarms(table: Table, count: int, seed: int) -> None:
    """Evidence B on run means; it takes them for normal, so heavy tails are beyond its promise."""
    for name, draw in (
        ("normal run means", lambda rng, size: rng.normal(0.8, 0.01, size)),
        ("run means of 150 skewed scores", lambda rng, size: rng.beta(4, 1, (size, ITEMS)).mean(axis=1)),
        ("heavy-tailed run means (t, 5 degrees)", lambda rng, size: 0.8 + 0.01 * rng.standard_t(5, size)),
    ):
        alarms = []
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            alarms.append(first_alarm(GradedDetector(draw(rng, CALIBRATION)), draw(rng, RUNS)) >= 0)
        limit = "none: not claimed" if "heavy" in name else f"<= {LIMIT:.0%}"
        table.add(f"false alarms a year, graded, {name}", f"{np.mean(alarms):.1%}", limit)


Rule = Callable[[Year], NDArray[np.bool_]]


def fixed_threshold(year: Year) -> NDArray[np.bool_]:
    """Alarm when a run passes fewer than 84 % (4.2 of 5)."""
    return year.runs.mean(axis=1) < 0.84


def under_baseline(year: Year) -> NDArray[np.bool_]:
    """Alarm when a run is 3 points under the baseline's mean."""
    return year.runs.mean(axis=1) < year.calibration.mean() - 0.03


def two_of_three(year: Year) -> NDArray[np.bool_]:
    """Alarm when two of the last three runs are 3 points under the baseline's mean."""
    low = under_baseline(year).astype(int)
    return np.convolve(low, [1, 1, 1])[: len(low)] >= 2


def mcnemar(year: Year) -> NDArray[np.bool_]:
    """Alarm when the exact McNemar test against the last calibration run has p < 0.05 (one-sided), daily."""
    reference = year.calibration[-1]
    worse = ((year.runs < reference).sum(axis=1)).astype(int)
    pairs = (year.runs != reference).sum(axis=1).astype(int)
    return binom.sf(worse - 1, pairs, 0.5) < 0.05


def split_z_test(year: Year) -> NDArray[np.bool_]:
    """Alarm when a z test against all calibration runs has p < 0.05 / 365: what remains when the year is paid for."""
    p = year.calibration.mean(axis=0)
    noise = np.sqrt((p * (1 - p)).sum() * (1 + 1 / CALIBRATION)) / ITEMS
    return (year.runs.mean(axis=1) - p.mean()) / max(noise, 1e-9) < norm.ppf(LIMIT / RUNS)


RULES: dict[str, Rule] = {
    "score < .84": fixed_threshold,
    "3 points under": under_baseline,
    "2 of 3": two_of_three,
    "McNemar": mcnemar,
    "z at alpha/365": split_z_test,
}


def naive_false_alarms(law: str, count: int, seed: int) -> dict[str, float]:
    """Share of the same quiet years with an alarm of each naive rule."""
    found = {name: [bool(rule(year).any()) for year in years(law, count, seed)] for name, rule in RULES.items()}
    return {name: float(np.mean(alarms)) for name, alarms in found.items()}


def lorden_calls(law: str, loss: Callable[[Floats], Floats], seed: int) -> float:
    """Calls that any detector needs on average (Lorden): ln A / information per call, given the calibration.

    "Calibrated": information is taken between the predictive pass probabilities before and after, each item's being
    its posterior mean under the true law of the items after 20 runs; nobody knows the items better than that.
    """
    rng = np.random.default_rng(seed)
    population = np.concatenate([LAWS[law](rng) for _ in range(400)])
    population = np.clip(population, 1e-6, 1 - 1e-6)
    passes = np.arange(CALIBRATION + 1)[:, None]
    weight = np.exp(passes * np.log(population) + (CALIBRATION - passes) * np.log1p(-population))
    share = binom.pmf(passes, CALIBRATION, population).mean(axis=1)
    before = (weight * population).sum(axis=1) / weight.sum(axis=1)
    after = (weight * loss(population)).sum(axis=1) / weight.sum(axis=1)
    information = after * np.log(after / before) + (1 - after) * np.log((1 - after) / (1 - before))
    return float(np.log(alarm_threshold(RUNS, LIMIT)) / (share * information).sum())


@dataclass(frozen=True)
class Found:
    """Of the drifts that were found: runs to the alarm, exactness of the date, size of its 95 % set."""

    delays: Floats
    missed: float
    early: float
    exact: float
    covered: float
    set_size: float


def delays(law: str, drift: Callable[[Floats], Floats], count: int, seed: int) -> Found:
    """One fixed pass a day; the drift comes on day 10."""
    waited, exact, covered, sizes, early = [], [], [], [], 0
    for year in years(law, count, seed, drift):
        detector = PassFailDetector(year.calibration)
        day = first_alarm(detector, year.runs)
        if 0 <= day < QUIET_DAYS:
            early += 1
        elif day >= 0:
            run, size = detector.change_point()
            waited.append(day - QUIET_DAYS + 1)
            exact.append(run == QUIET_DAYS)
            covered.append(abs(run - QUIET_DAYS) < size)
            sizes.append(size)
    missed = 1 - (len(waited) + early) / count
    return Found(np.array(waited, float), missed, early / count, *(float(np.mean(x)) for x in (exact, covered, sizes)))


def adaptive_calls(law: str, drift: Callable[[Floats], Floats], count: int, seed: int) -> tuple[float, float]:
    """(mean runs, mean calls) from the drift to the alarm with adaptive runs."""
    runs, calls = [], []
    for index, year in enumerate(years(law, count, seed, drift)):
        day, used = adaptive_year(year, np.random.default_rng([seed, index]), QUIET_DAYS, drift(year.p))
        if day >= QUIET_DAYS:
            runs.append(day - QUIET_DAYS + 1)
            calls.append(sum(used[QUIET_DAYS:]))
    return float(np.mean(runs)), float(np.mean(calls))


def naive_delays(law: str, drift: Callable[[Floats], Floats], count: int, seed: int) -> dict[str, float]:
    """Mean days from the drift to each naive rule's next alarm (earlier false ones are forgiven)."""
    found: dict[str, list[int]] = {name: [] for name in RULES}
    for year in years(law, count, seed, drift):
        for name, rule in RULES.items():
            alarms = rule(year)[QUIET_DAYS:]
            found[name].append(int(alarms.argmax()) + 1 if alarms.any() else WATCHED_DAYS)
    return {name: float(np.mean(waited)) for name, waited in found.items()}


def drifts(seed: int) -> Sequence[tuple[str, str, Callable[[Floats], Floats], Callable[[Floats], Floats]]]:
    """(law, what happens, to the items, to the law's population on average)."""
    chosen = np.random.default_rng(seed).random(ITEMS) < 0.08
    loss = AFTER / BEFORE
    return [
        (law, name, items, population)
        for law in ("Beta .89, ICC .5", "Beta .89, ICC .2")
        for name, items, population in (
            (".89 -> .83", lambda p: p * loss, lambda p: p * loss),
            ("8 % of items flip", lambda p: np.where(chosen, 1 - p, p), lambda p: 0.92 * p + 0.08 * (1 - p)),
        )
    ]


def drifting(table: Table, scale: float, seed: int) -> None:
    """Delay, calls and date of a drift, beside the naive rules and Lorden's bound."""
    count = max(int(200 * scale), 10)
    for law, name, items, population in drifts(seed):
        found = delays(law, items, count, seed + 3)
        label = f"{name}, {law}"
        peers = naive_delays(law, items, count, seed + 3)
        table.add(
            f"days to find {label}",
            f"{found.delays.mean():.2f} (p95 {np.percentile(found.delays, 95):.0f}), {found.missed:.0%} missed",
            "",
            ", ".join(f"{rule} {days:.1f}" for rule, days in peers.items()),
        )
        runs, calls = adaptive_calls(law, items, max(count // 2, 10), seed + 4)
        floor = lorden_calls(law, population, seed)
        bound = f"Lorden {floor:.0f}: {calls / floor:.2f} x" if name.startswith(".89") else ""
        table.add(
            f"  calls, adaptive runs, {label}", f"{calls:.0f} in {runs:.2f} runs", bound, f"fixed pass: {ITEMS}/day"
        )
        table.add(
            f"  change point, {label}",
            f"exact {found.exact:.0%}, set {found.set_size:.1f} runs",
            "",
            f"{found.early:.1%} alarmed before the drift",
        )


def detectable(table: Table) -> None:
    """The minimum detectable effect of the formula, for the reader's own set."""
    sigma = np.sqrt(BEFORE * (1 - BEFORE) * 0.5)
    for n in (50, 150, 500):
        effect = minimum_detectable_effect(sigma, n, 1, 7, alarm_threshold(RUNS, LIMIT))
        table.add(f"detectable in 7 days with {n} cases (.89, ICC .5)", f"{100 * effect:.1f} points")


def speed(table: Table, seed: int) -> None:
    """CPU time of one update."""
    for n in (150, 10_000):
        rng = np.random.default_rng(seed)
        p = rng.beta(3.56, 0.44, n)
        detector = PassFailDetector(flips(rng, np.tile(p, (CALIBRATION, 1))))
        runs = flips(rng, np.tile(p, (10, 1)))
        begun = time.process_time()
        for scores in runs:
            detector.update(scores)
        table.add(f"CPU of one update, {n} items", f"{100 * (time.process_time() - begun):.1f} ms", "< 1 s")


def main() -> int:
    """Run all figures; `--quick` is a tenth of the simulations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulated years")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    scale = 0.1 if arguments.quick else 1.0
    begun, table = time.monotonic(), Table()
    table.add("figure", "measured", "limit", "peer")
    speed(table, arguments.seed)
    detectable(table)
    drifting(table, scale, arguments.seed)
    quiet(table, scale, arguments.seed)
    print(
        f"{time.monotonic() - begun:.0f} s ({time.process_time():.0f} of CPU), seed {arguments.seed}, scale {scale:g}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
