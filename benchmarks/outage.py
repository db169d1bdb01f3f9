"""A vendor outage of 4 h on a compressed clock: the app answers on, an eval loses nothing and pays nothing twice.

    python benchmarks/outage.py [--outage-s 24] [--rate 5]

Everything is a process of its own and talks HTTP: emulated vendors, gateway, support app, eval. The app's first vendor
is down for `outage-s` (24 s stand for 4 h: one second for ten minutes; the app's circuit keeps its real times). The
same outage strikes a golden eval on a second emulator, whose counters then say whether any answer was paid twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from examples.support_app.traffic import TrafficReport, send  # noqa: E402 - the project is no installed package here
from tasks.ledger import Ledger  # noqa: E402
from tasks.plan import load_definition  # noqa: E402
from tasks.releases import append_release, read_release  # noqa: E402
from touchstone import release_steps as steps  # noqa: E402
from touchstone.ledger import EventKind, gate_subject  # noqa: E402
from touchstone.release import Deployment  # noqa: E402
from touchstone.release_policy import ApprovalPolicy, ReleasePolicy  # noqa: E402
from touchstone.settings import Settings  # noqa: E402

FALLBACKS = ("support-app-anthropic", "support-app-gemini")
FIRST = "extractive-2026-01-15"
BEFORE_S, AFTER_S = 4.0, 14.0
TOUCHSTONE = (sys.executable, "-m", "cli.main")


def measure(outage_s: float, rate: float) -> dict[str, Any]:
    """Run it and return the figures."""
    with tempfile.TemporaryDirectory(prefix="outage-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        vendor = stack.enter_context(_process(root, *TOUCHSTONE, "emulator", "serve", "--port", "0"))
        slow = ("--latency-ms", "200")  # the eval must still be at it when the outage begins
        other = stack.enter_context(_process(root, *TOUCHSTONE, "emulator", "serve", "--port", "0", *slow))
        _make_project(root, vendor, other)
        _release(Settings(root=root))
        gateway = stack.enter_context(_process(root, *TOUCHSTONE, "gateway", "serve", "--port", "0"))
        command = (sys.executable, "-m", "examples.support_app", "--port", "0", "--gateway", gateway)
        app = stack.enter_context(_process(root, *command))
        running = stack.enter_context(_evaluation(root, "--bundle", "eval", "--dataset", "support"))
        _wait(lambda: _counters(other)["completed"] >= 20)
        outage = asyncio.run(_through(app, vendor, other, outage_s, rate))
        first, _ = running.communicate()
        interrupted = json.loads(first)
        resume = ("--resume", interrupted["run_key"], "--retry-failures")
        with _evaluation(root, *resume) as again:
            finished = json.loads(again.communicate()[0])
        health = _get(f"{app}/health")
        return outage | {"eval": _eval_figures(interrupted, finished, _counters(other)), "traces": health["traces"]}


async def _through(app: str, vendor: str, other: str, outage_s: float, rate: float) -> dict[str, Any]:
    """Traffic before, during and after; what it got, and when the first vendor's circuit moved."""
    whole = BEFORE_S + outage_s + AFTER_S
    traffic = asyncio.create_task(send(app, rate=rate, seconds=whole, seed=4, multi_part=0.3))
    watch = asyncio.create_task(_watch(app, whole))
    await asyncio.sleep(BEFORE_S)
    fault = [{"kind": "server_error", "status": 503, "models": [FIRST]}]
    await asyncio.gather(*(asyncio.to_thread(_put, f"{url}/control/faults", fault) for url in (vendor, other)))
    await asyncio.sleep(outage_s)
    await asyncio.gather(*(asyncio.to_thread(_put, f"{url}/control/faults", []) for url in (vendor, other)))
    report, moves = await traffic, await watch
    return {"outage_s": outage_s, "app": _app_figures(report), "circuit": moves, "vendors": _get(f"{app}/providers")}


async def _watch(app: str, seconds: float) -> list[tuple[float, str]]:
    """(seconds since the outage began, state) at each move of the first vendor's circuit."""
    started, moves = time.monotonic(), []
    while (at := time.monotonic() - started) < seconds + 1:
        rows = await asyncio.to_thread(_get, f"{app}/providers")
        state = rows[0]["breaker"] if rows else "closed"
        if state != "probing" and (not moves or moves[-1][1] != state):
            moves.append((round(at - BEFORE_S, 1), state))
        await asyncio.sleep(0.2)
    return moves


def _app_figures(report: TrafficReport) -> dict[str, Any]:
    return report.as_json() | {"failed_answers": report.asked - report.answered}


def _eval_figures(interrupted: dict[str, Any], finished: dict[str, Any], counters: dict[str, Any]) -> dict[str, Any]:
    return {
        "cases": finished["n_cases"],
        "failed_in_the_outage": interrupted["n_failed"],
        "scored_after_resume": finished["n_scored"],
        "lost": finished["n_cases"] - finished["n_scored"],
        "paid": counters["completed"],
        "paid_twice": counters["completed"] - counters["completed_distinct"],
    }


def _make_project(root: Path, vendor: str, other: str) -> None:
    """The shipped data; bundles at these emulators, on keyword search, which loads no model."""
    for name in ("datasets", "prompts", "retrieval_configs"):
        (root / name).symlink_to(ROOT / name)
    (root / "bundles").mkdir()
    own = ROOT / "examples" / "support_app" / "bundles"
    for path in own.glob("*.yaml"):
        text = path.read_text().replace("http://127.0.0.1:4010", vendor)
        text = text.replace("retrieval: support@1.0.0", "retrieval: support-fast@1.0.0")
        (root / "bundles" / path.name).write_text(text)
    text = (ROOT / "bundles" / "support-fast.yaml").read_text().replace("http://127.0.0.1:4010", other)
    (root / "bundles" / "eval.yaml").write_text(text.replace("name: support-fast", "name: eval"))


def _release(settings: Settings) -> None:
    """The app's bundle is champion and its fall-backs count as gated: what a gate decides is not measured here."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        definition = load_definition(settings, "support-app")
        policy = ReleasePolicy(approval=ApprovalPolicy(required=0))
        deployment = Deployment(
            definition=definition, fingerprint=definition.fingerprint, gate_key="-", dataset="support", policy=policy
        )
        for kind, step in (
            (EventKind.RELEASE_CANDIDATE, lambda now: steps.candidate(now, deployment, "benchmark", "outage")),
            (EventKind.RELEASE_PROMOTED, lambda now: steps.promote(now, "benchmark", "outage", now=datetime.now(UTC))),
        ):
            state = read_release(ledger)
            append_release(ledger, state, kind, step(state))
        for name in FALLBACKS:
            own = load_definition(settings, name)
            payload = {"gate_key": "-", "bundle": name, "verdict": "pass", "role": "fallback"}
            payload |= {"fingerprint": own.fingerprint, "against": definition.fingerprint}
            payload |= {"definition": own.model_dump(mode="json")}
            ledger.append(EventKind.GATE_DECIDED, gate_subject(name), payload)


@contextmanager
def _process(root: Path, *command: str) -> Iterator[str]:
    """A server; yields the address that it prints when it is ready."""
    with subprocess.Popen(command, cwd=root, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()


@contextmanager
def _evaluation(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    fixed = ("--concurrency", "2") if "--resume" not in arguments else ()
    command = [*TOUCHSTONE, "eval", "run", *arguments, *fixed, "--no-prefect", "--json"]
    with subprocess.Popen(
        command, cwd=root, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        yield process


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}


def _wait(holds: Any, seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise SystemExit("the eval did not begin")
        time.sleep(0.1)


def _counters(url: str) -> dict[str, Any]:
    return _get(f"{url}/control/state")["counters"]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def _put(url: str, body: Any) -> None:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=30):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage-s", type=float, default=24.0)
    parser.add_argument("--rate", type=float, default=5.0, help="questions a second")
    arguments = parser.parse_args()
    found = measure(arguments.outage_s, arguments.rate)
    print(json.dumps(found, indent=1))
    app, evaluation = found["app"], found["eval"]
    print(f"\noutage of {found['outage_s']:g} s, which stands for 4 h; circuit {found['circuit']}")
    print(
        f"app: {app['asked']} questions, {app['failed_answers']} failed (limit 0), {app['fallbacks']} by fall-back, "
        f"p50 {app['latency_ms']['p50']} ms, p95 {app['latency_ms']['p95']} ms"
    )
    print(
        f"eval: {evaluation['failed_in_the_outage']} of {evaluation['cases']} cases failed in it, "
        f"{evaluation['lost']} lost after --resume --retry-failures (limit 0), "
        f"{evaluation['paid_twice']} of {evaluation['paid']} answers paid twice (limit 0)"
    )
    states = [state for _, state in found["circuit"]]
    ok = not app["failed_answers"] and not evaluation["lost"] and not evaluation["paid_twice"]
    sys.exit(0 if ok and states[-1] == "closed" and "open" in states else 1)


if __name__ == "__main__":
    main()
