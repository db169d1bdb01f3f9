"""kill -9 of the gateway, again and again under load: is a webhook that was acknowledged ever lost, or run twice?

python -m benchmarks.gateway_kills [--kills 200] [--rate 15] [--database URL]

Prefect is real, on SQLite or PostgreSQL, with a deployment that no worker runs. Limits: 0 lost, 0 twice.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.gateway_site import Sender, Site, wait_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rate", type=float, default=15, help="webhooks a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", default="", help="an empty PostgreSQL for Prefect, postgresql+asyncpg://...")
    given = parser.parse_args()
    chance, began = random.Random(given.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), given.database)
        sender = Sender(site, given.rate)
        try:
            site.start()
            sender.start()
            kill(site, given.kills, chance)
            sender.stop()
            settled = wait_for(lambda: site.waiting() == 0, 300)
            runs = site.runs()
        finally:
            sender.stop()
            site.stop()
    lost = [number for number in sender.acknowledged if number not in runs]
    twice = [number for number, found in runs.items() if len(found) > 1]
    print(f"kills                        {given.kills} in {time.monotonic() - began:.0f} s")
    print(f"webhooks acknowledged        {len(sender.acknowledged)}  answers {dict(sender.answers)}")
    print(f"lost                         {len(lost)}   limit 0")
    print(f"run twice                    {len(twice)}   limit 0")
    print(f"all settled after the last   {settled:.1f} s")


def kill(site: Site, times: int, chance: random.Random) -> None:
    """The gateway, and start it again, after random pauses."""
    for _ in range(times):
        time.sleep(chance.uniform(0.1, 1.5))
        site.gateway.stop(signal.SIGKILL)
        site.gateway.start()


if __name__ == "__main__":
    main()
