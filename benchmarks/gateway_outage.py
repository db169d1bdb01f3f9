"""From a webhook's acknowledgement to its flow run: with Prefect up, and after an outage of it.

python -m benchmarks.gateway_outage [--seconds 60] [--outage 60] [--rate 5] [--database URL]

Prefect is real, on SQLite or PostgreSQL, with a deployment that no worker runs. The outage stands for ten minutes:
pauses between attempts have reached their longest, 10 s, in either. Limits: p95 1 s with Prefect up; after the outage
all are delivered, each once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.gateway_site import Sender, Site, wait_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of webhooks with Prefect up")
    parser.add_argument("--outage", type=float, default=60, help="seconds")
    parser.add_argument("--rate", type=float, default=5, help="webhooks a second")
    parser.add_argument("--database", default="", help="an empty PostgreSQL for Prefect, postgresql+asyncpg://...")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), given.database)
        try:
            site.start()
            _up(site, given.rate, given.seconds)
            _outage(site, given.rate, given.outage)
        finally:
            site.stop()


def _up(site: Site, rate: float, seconds: float) -> None:
    sender = Sender(site, rate)
    sender.start()
    time.sleep(seconds)
    sender.stop()
    wait_for(lambda: site.waiting() == 0, 120)
    runs = site.runs()
    waits = [_created(runs[number][0]) - at for number, at in sender.acknowledged.items()]
    p50, p95, most = np.quantile(waits, [0.5, 0.95, 1])
    print(
        f"acknowledged -> run created  p50 {p50:.3f} s, p95 {p95:.3f} s (limit 1 s), most {most:.3f} s, n {len(waits)}"
    )


def _outage(site: Site, rate: float, seconds: float) -> None:
    before = set(site.runs())
    sender = Sender(site, rate, first=10**6)
    site.prefect.stop()
    sender.start()
    time.sleep(seconds)
    sender.stop()
    site.prefect.start()
    settled = wait_for(lambda: site.waiting() == 0, 300)
    runs = {number: found for number, found in site.runs().items() if number not in before}
    lost = [number for number in sender.acknowledged if number not in runs]
    twice = [number for number, found in runs.items() if len(found) > 1]
    told = f"{len(sender.acknowledged)} acknowledged, {len(lost)} lost, {len(twice)} twice (limits 0)"
    print(f"in an outage of {seconds:.0f} s      {told}")
    print(f"all delivered                {settled:.1f} s after Prefect was back")


def _created(run: dict[str, str]) -> float:
    return datetime.fromisoformat(run["created"].replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    main()
