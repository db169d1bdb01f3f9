"""`kill -9` at random moments of an eval, then --resume: nothing is paid twice, the result equals an undisturbed one.

The vendor counts what it completed. A call that was in flight at a kill may have been completed without its answer
having arrived; such calls are counted apart and may number at most the concurrency.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.arena import ROOT, answerable_cases, counters, emulated_vendor, project, write_golden_set

CONCURRENCY = 8
POLICY = {
    "scorers": [{"name": "answer_ok", "kind": "expect"}, {"name": "judge", "kind": "rubric"}],
    "minimum_cases": 10,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    kill_and_resume(options.kills, random.Random(options.seed))


def kill_and_resume(kills: int, chance: random.Random, cases: int = 120) -> None:
    """Run once undisturbed, then again with kills until there were enough; compare results and payments."""
    with emulated_vendor("--latency-ms", "150") as vendor, project(vendor) as root:
        dataset = write_golden_set(root, answerable_cases(cases), POLICY)
        with (root / "bundles" / "support-fast.yaml").open("a") as bundle:
            bundle.write("parameters: {temperature: 0, max_tokens: 200}\n")  # or equal results would be luck
        expected = _report(_run(dataset, None, home="undisturbed"))
        needed = counters(vendor)["completed"]
        print(f"undisturbed: {needed} calls paid, answer_ok {expected['metrics']['answer_ok']['mean']:.4f}", flush=True)
        done, runs = 0, 0
        while done < kills:
            runs += 1
            before = counters(vendor)["completed"]
            report, killed = _disturbed(root, f"killed-{runs}", dataset, kills - done, chance)
            done += killed
            lost = counters(vendor)["completed"] - before - needed
            same = report["metrics"] == expected["metrics"] and report["failures"] == expected["failures"]
            print(
                f"run {runs}: killed {killed} times, {needed} calls needed, {lost} completed while in flight at a kill "
                f"(limit {CONCURRENCY} per kill), result equal: {same}",
                flush=True,
            )
            if not same or not 0 <= lost <= CONCURRENCY * killed:
                raise SystemExit("FAILED: a finished call was paid twice, or the result differs")
        print(f"{done} kills in {runs} runs: no finished call was paid twice, every result equals the undisturbed one")


def _disturbed(root: Path, home: str, dataset: str, kills: int, chance: random.Random) -> tuple[dict, int]:
    """One run, killed at random moments of its evaluation and resumed until it ends: (its report, kills)."""
    killed, run_key = 0, None
    while True:
        started_at = _spooled(root / home)
        process = _run(dataset, run_key, home)
        while process.poll() is None and (_spooled(root / home) == started_at or killed == kills):
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(chance.uniform(0.0, 0.6))
        if process.poll() is not None:
            return _report(process), killed
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed += 1
        run_key = next((root / home / "runs").iterdir()).name


def _spooled(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob("runs/*/calls.jsonl"))


def _run(dataset: str, run_key: str | None, home: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli.main", "eval", "run", "--bundle", "support-fast", "--dataset", dataset]
    command += ["--concurrency", str(CONCURRENCY), "--json", *(["--resume", run_key] if run_key else [])]
    environment = os.environ | {"TOUCHSTONE_HOME": home, "PYTHONPATH": str(ROOT)}
    environment["TOUCHSTONE_MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"  # what is published is not the question here
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _report(process: subprocess.Popen[str]) -> dict:
    output, _ = process.communicate(timeout=600)
    return json.loads(output)


if __name__ == "__main__":
    main()
