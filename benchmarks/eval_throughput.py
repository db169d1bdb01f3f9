"""200 cases x (1 generation + 3 judge calls) at 200 ms of vendor latency, 32 in flight: wall against the ideal.

Ideal = calls x latency / concurrency. Limit: 1.25 x end to end with the spool; MLflow publishing and Prefect at most
5 % of the wall on top. The vendor runs in a process of its own; imports are done before the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.arena import answerable_cases, emulated_vendor, project, write_golden_set

CASES, LATENCY_S, CONCURRENCY = 200, 0.2, 32
PREFECT_API = "http://127.0.0.1:4298/api"
FILLER = "Context: " + "Every shop of the town opens at 9 and closes at 17, but not on Sundays. " * 40
POLICY = {
    "scorers": [
        {"name": "answer_ok", "kind": "expect"},
        {"name": "faithfulness", "kind": "ragas", "metric": "faithfulness"},
        {"name": "judge", "kind": "rubric"},
    ]
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--without-prefect", action="store_true", help="skip the part that starts a Prefect server")
    options = arguments.parse_args()
    from tasks.environment import apply_defaults

    apply_defaults()
    if not options.without_prefect:
        os.environ["PREFECT_API_URL"] = PREFECT_API  # Prefect reads it when it is imported
    with emulated_vendor("--latency-ms", str(LATENCY_S * 1000)) as vendor, project(vendor) as root:
        dataset = write_golden_set(root, answerable_cases(CASES), POLICY)
        asyncio.run(_litellm_alone(vendor))
        asyncio.run(_evals(dataset, options.rounds))
        asyncio.run(_litellm_alone(vendor))
        if not options.without_prefect:
            with prefect_server(root):
                asyncio.run(_flows(dataset, options.rounds))


async def _litellm_alone(vendor: str) -> None:
    """The peer: as many calls by plain litellm.acompletion, with nothing recorded, checked or scored."""
    from tasks.vendor import litellm_module

    litellm, limit, calls = litellm_module(), asyncio.Semaphore(CONCURRENCY), 4 * CASES

    async def ask(number: int) -> None:
        async with limit:
            await litellm.acompletion(
                model="openai/gpt-4o-2024-11-20",
                messages=[{"role": "user", "content": f"{FILLER}\nQuestion: When does shop {number} open?"}],
                api_base=f"{vendor}/v1",
                api_key="none",
                max_retries=0,
            )

    await asyncio.gather(*(ask(number) for number in range(100)))
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(number) for number in range(1000, 1000 + calls)))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    ideal = calls * LATENCY_S / CONCURRENCY
    print(
        f"litellm alone: {calls} calls, ratio {wall / ideal:.3f}, client {1000 * cpu / calls:.2f} CPU-ms/call",
        flush=True,
    )


async def _evals(dataset: str, rounds: int) -> None:
    from flows.golden_eval import plan_run
    from tasks.evaluation import open_session
    from tasks.loading import load_settings
    from tasks.plan import EvalRequest

    request = EvalRequest(bundle="support-fast", dataset=dataset, concurrency=CONCURRENCY)
    for number in range(rounds + 1):
        plan = await asyncio.to_thread(plan_run, load_settings(), request)
        async with open_session(plan) as session:
            session.cache.put = lambda finished: None  # each round pays for its judge
            started, cpu = time.perf_counter(), time.process_time()
            results = await session.run_shard(plan.units)
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        calls = sum(len(result.calls) for result in results)
        failed = sum(bool(result.failures) for result in results)
        ideal = calls * LATENCY_S / CONCURRENCY
        label = "warm-up" if number == 0 else f"round {number}"
        print(
            f"{label}: {calls} calls, {failed} failed cases, wall {wall:.2f} s, ideal {ideal:.2f} s, "
            f"ratio {wall / ideal:.3f} (limit 1.25), client {1000 * cpu / calls:.2f} CPU-ms/call",
            flush=True,
        )


async def _flows(dataset: str, rounds: int) -> None:
    """The same plain and as a Prefect flow, in turn: what publishing and what Prefect add to the wall."""
    from flows import golden_eval as flow
    from tasks.loading import load_settings
    from tasks.plan import EvalRequest

    request = EvalRequest(bundle="support-fast", dataset=dataset, concurrency=CONCURRENCY)
    publishing = {name: _timed(flow, name) for name in ("publish", "publish_cases")}
    for number in range(rounds + 1):
        (Path.cwd() / ".touchstone" / "response_cache.db").unlink(missing_ok=True)
        started = time.perf_counter()
        plan = await asyncio.to_thread(flow.plan_run, load_settings(), request)
        report = await flow.conduct(plan)
        plain = time.perf_counter() - started
        await asyncio.to_thread(flow.publish, load_settings(), report, logging.getLogger("benchmark"))
        (Path.cwd() / ".touchstone" / "response_cache.db").unlink(missing_ok=True)
        started = time.perf_counter()
        before = {name: sum(seconds) for name, seconds in publishing.items()}
        await flow.run_as_flow(request, None, False)
        spent = {name: sum(seconds) - before[name] for name, seconds in publishing.items()}
        prefect = time.perf_counter() - started - sum(spent.values())
        label = "warm-up" if number == 0 else f"round {number}"
        print(
            f"{label}: plain {plain:.2f} s; as a Prefect flow {prefect:.2f} s ({100 * (prefect / plain - 1):+.1f} %, "
            f"limit 5 %); publishing the run {spent['publish']:.2f} s ({100 * spent['publish'] / plain:.1f} % of the "
            f"wall, limit 5 %), its {CASES} traces afterwards {spent['publish_cases']:.2f} s",
            flush=True,
        )


def _timed(module: Any, name: str) -> list[float]:
    """Replace a function of a module by itself with a stopwatch; returns the seconds of each call."""
    seconds: list[float] = []
    function = getattr(module, name)

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(module, name, timed)
    return seconds


@contextmanager
def prefect_server(root: Path) -> Iterator[None]:
    """A real Prefect server on SQLite, ended by its id."""
    port = str(urlsplit(PREFECT_API).port)
    environment = os.environ | {"PREFECT_HOME": str(root / "prefect")}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", port],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{PREFECT_API}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


if __name__ == "__main__":
    main()
