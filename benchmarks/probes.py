"""Probes between evals: false alarms in simulated quiet hours, hours to find a swap, calls and cost a day.

    python benchmarks/probes.py [--years 4] [--swaps 40] [--seed 1]

Three vendors that never change, or change once, answer 32 probes: one as good as deterministic, one that now and then
says something else, and one for which every probe is a border input (two or three tokens about as likely). Every hour
is one `decide_probe`, as the flow takes it. Then the real thing: the flow's own look at the emulated vendor, over HTTP,
with another snapshot put behind the pinned name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from emulator.server import EmulatorOptions, running
from tasks.environment import apply_defaults
from touchstone.bundle import Endpoint
from touchstone.probe_records import ProbeLevel, ProbeRun, ProbeState, VendorFacts
from touchstone.probes import CALIBRATION_RUNS, Probed, decide_probe, probe_policy
from touchstone.settings import Settings

ROOT = Path(__file__).parents[1]
MODEL = "extractive-2026-01-15"
PROBES, TOKENS = 32, ("a", "b", "c")
ABOUT = Probed("bench", Endpoint(model=f"openai/{MODEL}"), "bench", "bench")
FACTS = VendorFacts(served_models=(MODEL,))


def vendor(kind: str, random: np.random.Generator) -> np.ndarray:
    """Probabilities of each token, one row for each probe."""
    usual = {"steady": np.full(PROBES, 0.999), "loose": random.uniform(0.85, 1.0, PROBES)}.get(kind)
    if usual is None:
        return random.dirichlet((4, 4, 1), PROBES)
    return np.stack([usual, (1 - usual) * 0.8, (1 - usual) * 0.2], axis=1)


def moved(kind: str, before: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """The vendor after a swap: a share of the probes has other preferences."""
    after, which = before.copy(), random.random(PROBES) < share
    after[which] = vendor(kind, random)[which][:, [1, 0, 2]]
    return after


def run_of(table: np.ndarray, hour: int, random: np.random.Generator) -> ProbeRun:
    drawn = (random.random((PROBES, 1)) > table.cumsum(axis=1)).sum(axis=1).clip(max=2)
    tokens = {f"p{row}": TOKENS[token] for row, token in enumerate(drawn)}
    return ProbeRun(run_key=f"h{hour}", at="2026-01-01T00:00:00+00:00", tokens=tokens, facts=FACTS)


def quiet(kind: str, hours: int, random: np.random.Generator) -> tuple[int, int]:
    """(flagged, detected) of a vendor that never changes."""
    table, state, flags, alarms = vendor(kind, random), None, 0, 0
    for hour in range(hours + CALIBRATION_RUNS):
        report, state = decide_probe(ABOUT, run_of(table, hour, random), state, probe_policy())
        flags, alarms = flags + (report.transition == "flagged"), alarms + (report.transition == "detected")
    return flags, alarms


def hours_to_find(kind: str, share: float, random: np.random.Generator, most: int = 240) -> float:
    """Hourly looks from a swap to `detected`; infinite when not found in `most`."""
    table = vendor(kind, random)
    state: ProbeState | None = None
    for hour in range(CALIBRATION_RUNS + 72):
        _, state = decide_probe(ABOUT, run_of(table, hour, random), state, probe_policy())
    after = moved(kind, table, share, random)
    for hour in range(1, most + 1):
        report, state = decide_probe(ABOUT, run_of(after, 1000 + hour, random), state, probe_policy())
        if report.level is ProbeLevel.DETECTED:
            return hour
    return float("inf")


def emulated() -> None:
    """The flow's look at the emulated vendor, before and after a silent swap."""
    from flows.probe import conduct

    folder = Path(tempfile.mkdtemp())
    try:
        with running(EmulatorOptions()) as url:
            (folder / "bundles").mkdir()
            (folder / "datasets").symlink_to(ROOT / "datasets")
            text = (ROOT / "bundles" / "support.yaml").read_text().replace("http://127.0.0.1:4010", url)
            (folder / "bundles" / "support.yaml").write_text(text)
            settings = Settings(root=folder)
            settings.state.mkdir()
            report = conduct(settings, "support", "support")  # imports and tables
            started, cpu = time.monotonic(), time.process_time()
            for _ in range(CALIBRATION_RUNS + 5):
                report = conduct(settings, "support", "support")
            looks = CALIBRATION_RUNS + 5
            assert report.level is ProbeLevel.STABLE, report.reason
            wall, cpu = (time.monotonic() - started) / looks, (time.process_time() - cpu) / looks
            body = json.dumps({MODEL: f"{MODEL}-lite"}).encode()
            request = urllib.request.Request(f"{url}/control/aliases", data=body, method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
            hours = 0
            while report.level is not ProbeLevel.DETECTED and hours < 48:
                report, hours = conduct(settings, "support", "support"), hours + 1
    finally:
        shutil.rmtree(folder)
    cost = (report.cost_usd or 0.0) * 24
    print(f"emulated swap behind the same name: {report.level} at look {hours} ({report.reason})")
    print(
        f"a look: {report.calls} calls, {wall:.2f} s, {cpu:.2f} CPU-s; a day: {report.calls * 24} calls, {cost:.4f} USD"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=float, default=4, help="quiet years for each vendor, in pieces of a year")
    parser.add_argument("--swaps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    apply_defaults()
    emulated()
    for kind in ("steady", "loose", "border"):
        random = np.random.default_rng(options.seed)
        pieces, started = max(1, round(options.years)), time.process_time()
        hours = round(8760 * options.years / pieces)
        found = [quiet(kind, hours, random) for _ in range(pieces)]
        flags, alarms = sum(one[0] for one in found), sum(one[1] for one in found)
        spent = time.process_time() - started
        print(
            f"{kind}: {pieces * hours} quiet hours: {flags} flagged, {alarms} detected ({spent:.0f} CPU-s)", flush=True
        )
        for share in (0.1, 0.25, 0.5):
            took = [hours_to_find(kind, share, random) for _ in range(options.swaps)]
            missed, late = int(np.isinf(took).sum()), np.quantile(took, 0.9, method="higher")
            print(
                f"  swap that changes {share:.0%} of the probes: median {np.median(took):.0f} h, "
                f"90 % within {late:.0f} h, not found in 10 days: {missed} of {len(took)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
