"""How often a release that is worse by the margin passes, and how often an equal one does, beside other bounds.

    python -m benchmarks.noninferiority [--quick] [--seed 1]

Simulated paired differences of golden cases: mostly 0, with rare large drops. Every column is a rule: the one that
decides here, other bounds that hold for any law, and the two rules that people write first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from touchstone.noninferiority import e_values, fewest_cases

Floats = NDArray[np.float64]
Law = Callable[[np.random.Generator, tuple[int, int]], Floats]
Rule = Callable[[Floats, float], NDArray[np.bool_]]

ALPHA = 0.05
CASES, MARGINS = (50, 100, 150, 300), (0.05, 0.02)


def three(drops: float, drop: float, gains: float, gain: float) -> Law:
    """A share of the cases drops by `drop`, another gains `gain`, the rest has no difference."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        u = rng.random(shape)
        return np.where(u < drops, -drop, np.where(u > 1 - gains, gain, 0.0))

    return draw


def dense(mean: float, sd: float) -> Law:
    """Every case differs a little."""
    return lambda rng, shape: np.clip(rng.normal(mean, sd, shape), -1, 1)


def worse_by(margin: float) -> Mapping[str, Law]:
    """Laws whose mean is -margin: whatever passes here is an error."""
    return {
        "a few cases break": three(margin, 1, 0, 0),
        "a few break, half as many get right": three(2 * margin, 1, margin, 1),
        "drops by .5": three(2 * margin, 0.5, 0, 0),
        "drops by .37, 5 % gain as much": three(0.05 + margin / 0.37, 0.37, 0.05, 0.37),
        "every case a little": dense(-margin, 0.1),
    }


EQUAL: Mapping[str, Law] = {
    "no difference": three(0, 1, 0, 1),
    "1 % break, 1 % get right": three(0.01, 1, 0.01, 1),
    "3 % drop, 3 % gain .5": three(0.03, 0.5, 0.03, 0.5),
    "5 % drop, 5 % gain .4": three(0.05, 0.4, 0.05, 0.4),
    "10 % drop, 10 % gain .37": three(0.10, 0.37, 0.10, 0.37),
    "better: 5 % drop, 10 % gain .4": three(0.05, 0.4, 0.10, 0.4),
}


def here(differences: Floats, margin: float) -> NDArray[np.bool_]:
    return e_values(differences, [-margin], ALPHA)[:, 0] >= 1 / ALPHA


def portfolio(differences: Floats, margin: float) -> NDArray[np.bool_]:
    """Constant stakes, averaged with Beta(1/2, 1/2) (Orabona & Jun 2024): may be looked at after every case."""
    stakes = np.sin((np.arange(64) + 0.5) / 64 * np.pi / 2) ** 2
    growth = [np.log1p(stake * (differences + margin) / (1 - margin)).sum(axis=1) for stake in stakes]
    return np.exp(growth).mean(axis=0) >= 1 / ALPHA


def plug_in(differences: Floats, margin: float) -> NDArray[np.bool_]:
    """Predictable plug-in stakes for n rounds (Waudby-Smith & Ramdas 2024), averaged over ten orders."""
    rng, n = np.random.default_rng(0), differences.shape[1]
    wealth = np.zeros(len(differences))
    for _ in range(10):
        x = (differences[:, rng.permutation(n)] + 1) / 2
        seen = np.arange(1, n + 1)
        means = (0.5 + np.cumsum(x, axis=1)) / (seen + 1)
        variances = (0.25 + np.cumsum((x - means) ** 2, axis=1)) / (seen + 1)
        before = np.column_stack([np.full(len(x), 0.25), variances[:, :-1]])
        null = (1 - margin) / 2
        stakes = np.minimum(np.sqrt(2 * np.log(1 / ALPHA) / (n * before)), 0.75 / null)
        wealth += np.exp(np.log1p(stakes * (x - null)).sum(axis=1)) / 10
    return wealth >= 1 / ALPHA


def bernstein(differences: Floats, margin: float) -> NDArray[np.bool_]:
    """Empirical Bernstein bound (Maurer & Pontil 2009, theorem 4), range 2."""
    n, log = differences.shape[1], np.log(2 / ALPHA)
    half = np.sqrt(2 * differences.var(axis=1, ddof=1) * log / n) + 14 * log / (3 * (n - 1))
    return differences.mean(axis=1) - half > -margin


def t_interval(differences: Floats, margin: float) -> NDArray[np.bool_]:
    n = differences.shape[1]
    error = differences.std(axis=1, ddof=1) / np.sqrt(n)
    return differences.mean(axis=1) - student.ppf(1 - ALPHA, n - 1) * error > -margin


def not_lower(differences: Floats, margin: float) -> NDArray[np.bool_]:
    return differences.mean(axis=1) >= 0


RULES: Mapping[str, Rule] = {
    "here": here,
    "portfolio": portfolio,
    "plug-in": plug_in,
    "Bernstein": bernstein,
    "t interval": t_interval,
    "mean not lower": not_lower,
}


def main() -> None:
    """Print one table per margin, first the errors, then the power."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulations")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    count = 200 if arguments.quick else 2000
    begun, rng = time.process_time(), np.random.default_rng(arguments.seed)
    for margin in MARGINS:
        print(f"\nmargin {margin:g}: without any difference no honest bound passes below n = {fewest_cases(margin)}")
        table(f"truly worse by {margin:g} (limit {ALPHA:.0%})", worse_by(margin), margin, count, rng)
        table("truly equal (power)", EQUAL, margin, count, rng)
    print(f"\n{count} simulations each, seed {arguments.seed}, {time.process_time() - begun:.0f} s of CPU")


def table(title: str, laws: Mapping[str, Law], margin: float, count: int, rng: np.random.Generator) -> None:
    """Share of simulations that pass, per law, n and rule."""
    print(f"{title:<40}{'n':>4}" + "".join(f"{name:>16}" for name in RULES))
    for name, law in laws.items():
        for n in CASES:
            differences = law(rng, (count, n))
            shares = [np.mean(rule(differences, margin)) for rule in RULES.values()]
            print(f"{name:<40}{n:>4}" + "".join(f"{share:>16.1%}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
