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
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from arena import ROOT, answerable_cases, counters, emulated_vendor, project, write_golden_set

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


def kill_and_resume(kills: int, chance: random.Random, cases: int = 60) -> None:
    """Run once undisturbed, then once with kills; compare results and payments."""
    with emulated_vendor("--latency-ms", "150") as vendor, project(vendor) as root:
        dataset = write_golden_set(root, answerable_cases(cases), POLICY)
        expected = _report(_run(dataset, None, home="undisturbed"))
        paid = counters(vendor)["completed"]
        print(f"undisturbed: {paid} calls paid, answer_ok {expected['metrics']['answer_ok']['mean']:.4f}", flush=True)
        done, in_flight, run_key = 0, 0, None
        while done < kills:
            process = _run(dataset, run_key, home="killed")
            folder = root / "killed" / "runs"
            _wait_for(lambda: run_key is not None or any(folder.glob("*/calls.jsonl")), process)
            time.sleep(chance.uniform(0.0, 1.2))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
            else:
                process.communicate()
            run_key = next(folder.iterdir()).name
            journaled = sum(1 for line in (folder / run_key / "calls.jsonl").open() if '"call"' in line)
            in_flight = counters(vendor)["completed"] - paid - journaled
            print(f"kill {done}: {journaled} calls on disk, {in_flight} completed but lost in flight so far", flush=True)
            if journaled >= paid and done < kills:  # the run is complete: start a fresh one for the remaining kills
                _report(_run(dataset, run_key, home="killed"))
                break
        report = _report(_run(dataset, run_key, home="killed"))
        total = counters(vendor)["completed"] - paid
        same = all(report["metrics"][name] == summary for name, summary in expected["metrics"].items())
        print(f"{done} kills: {total} calls completed for {paid} needed ({total - paid} were in flight at a kill, "
              f"limit {CONCURRENCY} per kill); result equal: {same}")
        if not same or total - paid > CONCURRENCY * max(done, 1):
            raise SystemExit("FAILED: a finished call was paid twice, or the result differs")


def _run(dataset: str, run_key: str | None, home: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cli.main", "eval", "run", "--bundle", "support-fast", "--dataset", dataset]
    command += ["--concurrency", str(CONCURRENCY), "--json", *(["--resume", run_key] if run_key else [])]
    environment = os.environ | {"TOUCHSTONE_HOME": home, "PYTHONPATH": str(ROOT)}
    environment["TOUCHSTONE_MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"  # what is published is not the question here
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _report(process: subprocess.Popen[str]) -> dict:
    output, _ = process.communicate(timeout=600)
    return json.loads(output)


def _wait_for(condition, process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
