"""How often a quiet year of daily windows is called drift, and how soon new topics are found.

    python benchmarks/query_drift.py [--quick] [--seed 1]

MiniLM embeddings of real questions; each simulated day draws its queries from them, popular ones more often. Beside
the real decision, on the same streams, stands the rule that people write first: the raw cosine of the two centroids
and the raw PSI against the same limits, with the same persistence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: two threads on matrices this small only wait

import numpy as np
from numpy.typing import NDArray

from tasks.embedding import load_embedder
from tasks.query_windows import MOST_QUERIES
from touchstone.drift import Verdict
from touchstone.query_drift import QueryDriftState, Transition, decide_query_drift, windows_until
from touchstone.query_shift import BINS, measure_shift
from touchstone.retrieval_config import QueryDriftPolicy

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", ROOT.parent / "shared" / "data"))
POLICY = QueryDriftPolicy()
WATCHED = 7  # days from the shift on
REFERENCE = int(POLICY.reference_days)
POPULARITY = 0.7  # exponent of Zipf's law: how much more often the popular questions are asked
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)

Floats = NDArray[np.floating]
Rows = NDArray[np.int64]
Topics = Mapping[str, Rows]


@dataclass(frozen=True)
class Day:
    """What was found on one day: by the decision, and by the naive rule (0 quiet, 1 flag, 2 act)."""

    verdict: Verdict
    window: int
    transition: Transition | None
    naive: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sixth of the days, half of the shifts")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no real questions at {DATA}; set TOUCHSTONE_SHARED_DATA to their folder")
        return 0
    begun = time.monotonic()
    vectors, topics = embedded_questions()
    print(
        f"{len(vectors)} questions in {len(topics)} topics embedded in {time.monotonic() - begun:.0f} s\n", flush=True
    )
    bias(vectors, arguments.seed)
    quiet(vectors, topics, arguments.seed, days=60 if arguments.quick else 365)
    shifted(vectors, topics, arguments.seed, streams=4 if arguments.quick else 8)
    incident(vectors, topics, arguments.seed, streams=2 if arguments.quick else 4)
    print(f"\n{time.monotonic() - begun:.0f} s ({time.process_time():.0f} of CPU), seed {arguments.seed}")
    return 0


def bias(vectors: Floats, seed: int, pairs: int = 20) -> None:
    """Two samples of the same questions: what the figures are, and what they are without sampling bias."""
    print(f"nothing changed, mean of {pairs} pairs   as computed: cosine, largest PSI   corrected   components expect")
    for reference, newest in ((100, 100), (1_000, 100), (1_000, 300), (1_000, 1_000)):
        rng = np.random.default_rng([seed, reference, newest])
        samples = (rng.choice(vectors, reference + newest) for _ in range(pairs))
        shifts = [measure_shift(rows[:reference], rows[reference:], POLICY) for rows in samples]
        raw = np.mean([(shift.centroid_cosine_raw, max(line.psi for line in shift.projections)) for shift in shifts], 0)
        own = np.mean([(shift.centroid_cosine or np.nan, shift.psi) for shift in shifts], 0)
        expected = np.mean([[line.expected for line in shift.projections[1:-1]] for shift in shifts])
        formula = (BINS - 1) * (1 / reference + 1 / newest)
        print(
            f"{reference:>6} and {newest:>5} queries {raw[0]:>20.3f} {raw[1]:>15.3f} {own[0]:>9.3f} {own[1]:>6.3f}"
            f"   PSI {expected:.3f}, by (bins - 1)(1/m + 1/n) {formula:.3f}",
            flush=True,
        )
    print()


def quiet(vectors: Floats, topics: Topics, seed: int, days: int) -> None:
    """Streams in which nothing changes: whatever is raised is false."""
    print(f"{days} quiet days                     the decision                       raw figures, same limits")
    print("traffic      queries/day   windows: flag  act   announced: flag  drift   windows: flag  act   drift")
    for name, chosen in (("support", support(topics)), ("all topics", topics)):
        shares = {topic: len(rows) for topic, rows in chosen.items()}
        for volume in (100, 300, 1_000):
            found = list(stream(vectors, chosen, [shares] * days, volume, [seed, volume, len(chosen)]))
            windows = [sum(day.window >= level for day in found) for level in (1, 2)]
            announced = [sum(day.transition == kind for day in found) for kind in ("flagged", "drifted")]
            naive = [sum(day.naive >= level for day in found) for level in (1, 2)]
            alarms = announcements([day.naive for day in found])
            print(
                f"{name:<12} {volume:>11}   {windows[0]:>13} {windows[1]:>4}   {announced[0]:>15} {announced[1]:>6}"
                f"   {naive[0]:>13} {naive[1]:>4} {alarms:>7}",
                flush=True,
            )


def shifted(vectors: Floats, topics: Topics, seed: int, streams: int) -> None:
    """A topic that nobody asked about before takes a share of the queries from one day on."""
    print(f"\nnew topic, {streams} streams each; found within {WATCHED} days (mean day; the first is 1)")
    print(
        "traffic      queries/day   share   flagged on day 1   flagged          drifted          raw: flag       3 acts"
    )
    for name, share in (("support", 0.2), ("support", 0.4), ("support", 1.0), ("all topics", 0.2)):
        for volume in (100, 300, 1_000):
            runs = [new_topic(vectors, topics, name, share, volume, seed, number) for number in range(streams)]
            flags = [first(run, lambda day: day.verdict in (Verdict.FLAGGED, Verdict.DRIFTED)) for run in runs]
            drifts = [first(run, lambda day: day.verdict is Verdict.DRIFTED) for run in runs]
            raw = [first(run, lambda day: day.naive > 0) for run in runs]
            acts = [announced_on([day.naive for day in run]) for run in runs]
            print(
                f"{name:<12} {volume:>11}   {share:>4.0%} {sum(day == 1 for day in flags):>14} of {streams}"
                f"   {summary(flags):<16} {summary(drifts):<16} {summary(raw):<16} {summary(acts)}",
                flush=True,
            )


def incident(vectors: Floats, topics: Topics, seed: int, streams: int) -> None:
    """For three days everything is asked about one new topic; then all is as before."""
    print(f"\nthree days of a new topic only, then 25 days as before; mean of {streams} streams")
    print("traffic      queries/day   drifted on day   recovered on day   later windows flag or act: decision, raw")
    for volume in (300, 1_000):
        runs = []
        for number in range(streams):
            before, after = with_new(support(topics), number, 1.0)
            days = [after] * 3 + [before] * 25
            found = list(stream(vectors, support(topics), days, volume, [seed, volume, number, 3], before))
            told = {day.transition: on for on, day in enumerate(found, start=1) if day.transition}
            later = found[3:]
            spoilt = (sum(day.window > 0 for day in later), sum(day.naive > 0 for day in later))
            runs.append((told.get(Transition.DRIFTED, np.nan), told.get(Transition.RECOVERED, np.nan), *spoilt))
        drifted, recovered, ours, raw = np.mean(runs, axis=0)
        print(
            f"support      {volume:>11}   {drifted:>14.1f}   {recovered:>16.1f}   {ours:>25.1f} {raw:>12.1f}",
            flush=True,
        )


def with_new(known: Topics, number: int, share: float) -> tuple[dict[str, float], dict[str, float]]:
    """(weights of the topics before, and after one that was not asked about takes `share`)."""
    new = sorted(known)[number % len(known)]
    before = {topic: float(len(rows)) for topic, rows in known.items() if topic != new}
    total = sum(before.values())
    return before, {topic: weight * (1 - share) for topic, weight in before.items()} | {new: total * share}


def new_topic(
    vectors: Floats, topics: Topics, traffic: str, share: float, volume: int, seed: int, number: int
) -> list[Day]:
    """The days from the shift on. In `support` the topic comes from the same product; else it is another domain."""
    known = support(topics) if traffic == "support" else topics
    before, after = with_new(known, number, share)
    days = stream(vectors, known, [after] * WATCHED, volume, [seed, volume, number, round(100 * share)], before)
    return list(days)


def stream(
    vectors: Floats,
    topics: Topics,
    days: Sequence[Mapping[str, float]],
    volume: int,
    seed: Sequence[int],
    before: Mapping[str, float] | None = None,
) -> Iterator[Day]:
    """Daily windows against the fourteen days before each; `days` and `before` give the weights of the topics."""
    rng = np.random.default_rng(list(seed))
    popularity = {name: zipf(rng, len(rows)) for name, rows in topics.items()}

    def ask(weights: Mapping[str, float]) -> Rows:
        share = np.concatenate([weights.get(name, 0) * popularity[name] for name in topics])
        rows = np.concatenate([topics[name] for name in topics])
        return rng.choice(rows, volume, p=share / share.sum())

    asked = [ask(before or days[0]) for _ in range(REFERENCE)]  # one for each day; the windows are cut from it
    state: QueryDriftState | None = None
    for number, weights in enumerate(days, start=REFERENCE):
        asked.append(ask(weights))
        windows = windows_until(FIRST_DAY + timedelta(days=number + 1), POLICY, state)
        first_day, last_day = ((at - FIRST_DAY).days for at in (windows.reference_start, windows.reference_end))
        newest = vectors[asked[-1]]
        shift = measure_shift(vectors[sample(rng, asked[first_day:last_day])], newest, POLICY)
        decision, state = decide_query_drift(windows, shift, state, POLICY)
        window = {Verdict.STABLE: 0, Verdict.FLAGGED: 1, Verdict.DRIFTED: 2}[decision.window_verdict]
        naive = naive_level(vectors[sample(rng, asked[-1 - REFERENCE : -1])], newest)
        yield Day(decision.verdict, window, decision.transition, naive)


def sample(rng: np.random.Generator, days: Sequence[Rows]) -> Rows:
    """As many queries of these days as a check reads."""
    asked = np.concatenate(days)
    return rng.choice(asked, min(len(asked), MOST_QUERIES), replace=False)


def naive_level(reference: Floats, newest: Floats) -> int:
    """Raw cosine of the centroids, and the largest raw PSI of the similarity to the centroid and five components."""
    ours, theirs = reference.mean(axis=0), newest.mean(axis=0)
    cosine = float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
    axes = np.linalg.eigh(np.cov(reference.T))[1][:, ::-1][:, :5]
    lines = np.column_stack([ours, axes])
    psi = max(naive_psi(reference @ line, newest @ line) for line in lines.T)
    limits = ((POLICY.centroid_flag, POLICY.psi_flag), (POLICY.centroid_act, POLICY.psi_act))
    return sum(cosine < low or psi > high for low, high in limits)


def naive_psi(reference: Floats, newest: Floats) -> float:
    """Ten bins between the quantiles of the reference; a tiny share instead of an empty bin."""
    edges = np.unique(np.quantile(reference, np.arange(1, 10) / 10))
    shares = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) / len(x) for x in (reference, newest)]
    p, q = (np.maximum(share, 1e-4) for share in shares)
    return float(((q - p) * np.log(q / p)).sum())


def announced_on(levels: Sequence[int]) -> int | None:
    """The first day, from 1, that ends `POLICY.windows` days of act in a row."""
    run = 0
    for number, level in enumerate(levels, start=1):
        run = run + 1 if level == 2 else 0
        if run == POLICY.windows:
            return number
    return None


def announcements(levels: Sequence[int]) -> int:
    """How often that begins anew."""
    runs = "".join(str(level) for level in levels).replace("0", "1").split("1")
    return sum(len(run) >= POLICY.windows for run in runs)


def first(days: Sequence[Day], wanted: Any) -> int | None:
    return next((number for number, day in enumerate(days, start=1) if wanted(day)), None)


def summary(found: Sequence[int | None]) -> str:
    days = [day for day in found if day is not None]
    return f"{len(days)} of {len(found)}" + (f" ({np.mean(days):.1f})" if days else "")


def zipf(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    weights = np.linspace(1, count, count) ** -POPULARITY
    return (weights / weights.sum())[rng.permutation(count)]


def support(topics: Topics) -> Topics:
    return {name: rows for name, rows in topics.items() if name not in ("claude-docs", "scifact")}


def embedded_questions() -> tuple[Floats, Topics]:
    """(unit rows, rows by topic): the shipped golden set by segment, and two other domains."""
    cases = lines(ROOT / "datasets" / "support" / "cases.jsonl")
    asked = [(case["segment"], case["question"]) for case in cases]
    asked += [("claude-docs", case["question"]) for case in lines(DATA / "claude-docs" / "cases.jsonl")]
    asked += [("scifact", query["text"]) for query in lines(DATA / "scifact" / "queries.jsonl")]
    vectors = load_embedder("minilm").embed([question for _, question in asked])
    names = np.array([topic for topic, _ in asked])
    return vectors, {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
