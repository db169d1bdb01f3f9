"""10,000 cases x 1 call, 64 in flight: peak memory (limit 1 GB), and wall against the ideal or the client's CPU.

Ideal = calls x latency / concurrency. The CPU limit is what LiteLLM alone needs of one core for as many calls,
measured in the same run on 1,000 of them. Limit: 1.3 x the larger of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time

from benchmarks.arena import emulated_vendor, project, write_golden_set

LATENCY_S, CONCURRENCY = 0.2, 64
POLICY = {"scorers": [{"name": "ok", "kind": "expect"}], "minimum_cases": 10}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=int, default=10_000)
    options = arguments.parse_args()
    from tasks.environment import apply_defaults

    apply_defaults()
    with emulated_vendor("--latency-ms", str(LATENCY_S * 1000)) as vendor, project(vendor) as root:
        cases = [
            {"id": f"case-{number:05}", "question": f"When does shop {number} open?", "expect": {"contains": "9"}}
            for number in range(options.cases)
        ]
        dataset = write_golden_set(root, cases, POLICY)
        bundle = root / "bundles" / "shops.yaml"
        bundle.write_text(
            f"name: shops\nmodel: openai/extractive-2026-01-15\napi_base: {vendor}/v1\n"
            "price: {input_per_million: 1, output_per_million: 1}\n"
            'prompt: {user: "Context: Every shop opens at 9 and closes at 17.\\nQuestion: {question}"}\n'
        )
        asyncio.run(_measure(dataset, str(bundle), vendor))


async def _measure(dataset: str, bundle: str, vendor: str) -> None:
    from flows.golden_eval import conduct, plan_run
    from tasks.loading import load_settings
    from tasks.plan import EvalRequest

    alone = await _litellm_alone(vendor)
    request = EvalRequest(bundle=bundle, dataset=dataset, concurrency=CONCURRENCY)
    plan = await asyncio.to_thread(plan_run, load_settings(), request)
    started, cpu = time.perf_counter(), time.process_time()
    report = await conduct(plan)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    ideal = report.calls * LATENCY_S / CONCURRENCY
    cpu_limit = report.calls * alone
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    larger = max(ideal, cpu_limit)
    print(
        f"{report.calls} calls, {report.n_failed} failed: wall {wall:.1f} s "
        f"({wall - report.wall_s:.1f} s of it the decision); ideal {ideal:.1f} s, "
        f"LiteLLM alone needs {cpu_limit:.1f} CPU-s ({1000 * alone:.2f} ms/call); "
        f"ratio to the {'CPU limit' if cpu_limit > ideal else 'ideal'} {wall / larger:.3f} (limit 1.3); "
        f"{1000 * cpu / report.calls:.2f} CPU-ms/call; peak memory {peak_mb:.0f} MB (limit 1024)"
    )


async def _litellm_alone(vendor: str, calls: int = 1000) -> float:
    """CPU seconds per call of plain litellm.acompletion, warm."""
    from tasks.vendor import litellm_module

    litellm, limit = litellm_module(), asyncio.Semaphore(CONCURRENCY)

    async def ask(number: int) -> None:
        async with limit:
            await litellm.acompletion(
                model="openai/gpt-4o-2024-11-20",
                messages=[{"role": "user", "content": f"Context: It opens at 9.\nQuestion: When does {number} open?"}],
                api_base=f"{vendor}/v1",
                api_key="none",
                max_retries=0,
            )

    await asyncio.gather(*(ask(number) for number in range(200)))
    cpu = time.process_time()
    await asyncio.gather(*(ask(number) for number in range(1000, 1000 + calls)))
    return (time.process_time() - cpu) / calls


if __name__ == "__main__":
    main()
