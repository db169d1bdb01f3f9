"""Customers for the support app: golden questions as people put them, and two of different topics in one message.

    python -m examples.support_app.traffic --url http://127.0.0.1:8800 --rate 20 --seconds 60 --multi-part 0.6

A message with two questions is what the golden set does not have: what a gate cannot see and a canary can.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

CASES = Path(__file__).parents[2] / "datasets" / "support" / "cases.jsonl"
_PUT = ("{}", "{}", "Please tell me: {}", "I want to know: {}", "{} Please explain.")
_NOT_ASKED = {"adversarial", "out_of_scope"}


@dataclass(frozen=True)
class Asked:
    """One message of one user."""

    question: str
    key: str
    segment: str


@dataclass
class TrafficReport:
    """What became of the messages."""

    asked: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    served_by: Counter[str] = field(default_factory=Counter)
    fallbacks: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float | None:
        """Of the latency, in ms; None without an answer."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def as_json(self) -> dict[str, object]:
        return {
            "asked": self.asked,
            "answered": self.answered,
            "failed": dict(self.failed),
            "arms": dict(self.arms),
            "bundles": dict(self.bundles),
            "served_by": dict(self.served_by),
            "fallbacks": self.fallbacks,
            "latency_ms": {
                "mean": round(statistics.fmean(self.latencies_ms), 1) if self.latencies_ms else None,
                "p50": self.percentile(0.5),
                "p95": self.percentile(0.95),
            },
        }


def messages(seed: int, multi_part: float, users: int = 400, cases: Path = CASES) -> Iterator[Asked]:
    """Without end, the same for the same seed. `multi_part` of them ask two things at once."""
    rng = random.Random(seed)
    golden = _golden(cases)
    while True:
        first = rng.choice(golden)
        is_double = rng.random() < multi_part
        if is_double:  # of two topics, as no document of the golden set's questions holds both
            second = rng.choice([case for case in golden if case["segment"] != first["segment"]])
            question = _joined(first["question"], second["question"])
        else:
            question = rng.choice(_PUT).format(first["question"])
        segment = "two-questions" if is_double else first["segment"]
        yield Asked(question, f"user-{rng.randrange(users)}", segment)


def _golden(cases: Path) -> Sequence[dict[str, str]]:
    rows = [json.loads(line) for line in cases.read_text().splitlines() if line.strip()]
    return [row for row in rows if row.get("segment") not in _NOT_ASKED]


def _joined(first: str, second: str) -> str:
    follow_up = second if second.startswith(("I ", "I'")) else second[0].lower() + second[1:]
    return f"{first} Also, {follow_up}"


async def send(
    url: str,
    *,
    rate: float,
    requests: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    multi_part: float = 0.0,
) -> TrafficReport:
    """`rate` messages a second, whatever the app does; ends after so many, or so long."""
    report, stream, sent = TrafficReport(), messages(seed, multi_part), 0
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http, asyncio.TaskGroup() as group:
        while (requests is None or sent < requests) and (seconds is None or time.monotonic() - started < seconds):
            group.create_task(_ask(http, next(stream), report))
            sent += 1
            await asyncio.sleep(max(0.0, started + sent / rate - time.monotonic()))
    return report


async def _ask(http: httpx.AsyncClient, asked: Asked, report: TrafficReport) -> None:
    report.asked += 1
    began = time.monotonic()
    body = {"question": asked.question, "key": asked.key, "segment": asked.segment}
    try:
        answer = await http.post("/ask", json=body)
    except httpx.HTTPError as error:
        report.failed[type(error).__name__] += 1
        return
    if answer.status_code != 200:
        report.failed[str(answer.status_code)] += 1
        return
    found = answer.json()
    report.answered += 1
    report.latencies_ms.append(round((time.monotonic() - began) * 1000, 1))
    report.arms[found["arm"]] += 1
    report.bundles[found["bundle"]] += 1
    report.served_by[found["served_by"]] += 1
    report.fallbacks += found["fallback"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.support_app.traffic", description="Customers.")
    parser.add_argument("--url", default="http://127.0.0.1:8800", help="of the support app")
    parser.add_argument("--rate", type=float, default=10.0, help="messages a second")
    how_long = parser.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--seconds", type=float)
    how_long.add_argument("--requests", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--multi-part", type=float, default=0.0, metavar="SHARE", help="two questions in a message")
    arguments = parser.parse_args()
    report = asyncio.run(
        send(
            arguments.url,
            rate=arguments.rate,
            requests=arguments.requests,
            seconds=arguments.seconds,
            seed=arguments.seed,
            multi_part=arguments.multi_part,
        )
    )
    print(json.dumps(report.as_json(), indent=1))


if __name__ == "__main__":
    main()
