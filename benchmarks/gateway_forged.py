"""100,000 webhooks that must not be taken: forged, cut, replayed under fresh ids, late, malformed, too large.

python -m benchmarks.gateway_forged [--requests 100000] [--connections 32] [--seed 1]

Against `touchstone gateway serve` in a process of its own. The attacker has seen real webhooks on the wire and sends
them again, changed in every way but one: he has no secret. Counted are answers by attack, and what is in the inbox
afterwards beside the genuine ones.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import random
import sqlite3
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway_load import SECRET, Caller, Served, push, served, signed

SEEN = 50  # genuine webhooks per kind that the attacker has seen


@dataclass(frozen=True)
class Sent:
    """A webhook as it is on the wire."""

    source: str
    body: bytes
    headers: dict[str, str]


def genuine(source: str, number: int, at: float) -> Sent:
    body = push(number, 1500)
    stamp, delivery = str(int(at)), f"delivery-{number}"
    if source == "github":
        return Sent(source, body, signed(body))
    if source == "mlflow":
        body = b'{"entity": "prompt_version", "action": "created", "data": {"version": "%d"}}' % number
        digest = hmac.new(SECRET.encode(), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
        proof = f"v1,{base64.b64encode(digest).decode()}"
        names = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
        return Sent(source, body, dict(zip(names, (delivery, stamp, proof), strict=True)))
    proof = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return Sent(source, body, {"X-Signature": proof, "X-Time": stamp})


def _forged(sent: Sent, chance: random.Random) -> Sent:
    name = next(name for name in sent.headers if "Signature" in name)
    proof = hmac.new(chance.randbytes(16), sent.body, hashlib.sha256)
    shape = sent.headers[name]
    if shape.startswith("v1,"):
        made = f"v1,{base64.b64encode(proof.digest()).decode()}"
    else:
        made = shape[: -len(proof.hexdigest())] + proof.hexdigest()
    return Sent(sent.source, sent.body, sent.headers | {name: made})


def _changed(sent: Sent, chance: random.Random) -> Sent:
    place = chance.randrange(len(sent.body))
    return Sent(sent.source, sent.body[:place] + bytes([sent.body[place] ^ 1]) + sent.body[place + 1 :], sent.headers)


def _cut(sent: Sent, chance: random.Random) -> Sent:
    return Sent(sent.source, sent.body[: chance.randrange(len(sent.body))], sent.headers)


def _replayed(sent: Sent, chance: random.Random) -> Sent:
    """As it was, or under a fresh id, which GitHub does not sign and MLflow does."""
    fresh = {name: f"fresh-{chance.getrandbits(64)}" for name in sent.headers if "Delivery" in name}
    return Sent(sent.source, sent.body, sent.headers | (fresh if chance.random() < 0.8 else {}))


def _at_another_time(sent: Sent, chance: random.Random) -> Sent:
    moved = {name: str(int(time.time()) - chance.randrange(1, 200)) for name in sent.headers if "Time" in name}
    return Sent(sent.source, sent.body, sent.headers | (moved or {"X-Hub-Signature-256": "sha256="}))


def _malformed(sent: Sent, chance: random.Random) -> Sent:
    """Header values and bodies that break parsers."""
    odd = ["", " ", ",", "v1", "v1,", "v1,=", "v1,\xff\xfe", "9" * 500, "-1", "1e9", "NaN", "%00", "sha256=\xe9" * 9]
    headers = {name: chance.choice(odd) for name in sent.headers}
    bodies = (b"", b"[" * 20_000, b"\xff\xfe\x00", b"9" * 6000, b'{"a":NaN}', chance.randbytes(200))
    return Sent(sent.source, chance.choice(bodies), headers)


def _oversized(sent: Sent, chance: random.Random) -> Sent:
    return Sent(sent.source, b" " * (256 * 1024 + 1), sent.headers)


def _unknown(sent: Sent, chance: random.Random) -> Sent:
    return Sent(chance.choice(("nobody", "..", "%2e%2e", "github%00", "a" * 500)), sent.body, sent.headers)


ATTACKS: dict[str, tuple[Callable[[Sent, random.Random], Sent], int]] = {  # with its share
    "forged": (_forged, 25),
    "changed": (_changed, 20),
    "cut": (_cut, 15),
    "replayed": (_replayed, 15),
    "at another time": (_at_another_time, 10),
    "malformed": (_malformed, 11),
    "to nobody": (_unknown, 3),
    "oversized": (_oversized, 1),
}


async def attack(
    server: Served, seen: Sequence[Sent], requests: int, connections: int, seed: int
) -> dict[str, Counter]:
    chance = random.Random(seed)
    names = chance.choices(list(ATTACKS), [share for _, share in ATTACKS.values()], k=requests)
    waiting: Iterator[str] = iter(names)
    answers: dict[str, Counter] = defaultdict(Counter)

    async def call() -> None:
        caller = Caller(server)
        for name in waiting:
            sent = ATTACKS[name][0](chance.choice(seen), chance)
            answers[name][await caller.post(sent.source, sent.body, sent.headers)] += 1
        caller.close()

    await asyncio.gather(*(call() for _ in range(connections)))
    return answers


async def _measure(options: argparse.Namespace, folder: Path) -> None:
    with served("gateway", folder) as server:
        seen = [genuine(source, number, time.time()) for source in ("github", "mlflow", "ci") for number in range(SEEN)]
        caller = Caller(server)
        kept = Counter([await caller.post(sent.source, sent.body, sent.headers) for sent in seen])
        late = [genuine("mlflow", SEEN + number, time.time() - 3600) for number in range(SEEN)]  # seen an hour ago
        started = time.perf_counter()
        answers = await attack(server, [*seen, *late], options.requests, options.connections, options.seed)
        wall_s = time.perf_counter() - started
        total = sum(answers.values(), Counter())
        print(f"genuine before: {dict(kept)}")
        for name in ATTACKS:
            print(f"{name:16} {dict(sorted(answers[name].items()))}")
        n = sum(total.values())
        print(f"{n:,} in {wall_s:.0f} s, {n / wall_s:.0f}/s; RSS {server.memory_mb():.0f} MB")
        with closing(sqlite3.connect(folder / ".touchstone" / "inbox.db")) as inbox:
            rows = inbox.execute("SELECT count(*) FROM webhooks").fetchone()[0]
        errors = sum(count for status, count in total.items() if status >= 500)
        print(f"accepted {total[202]}, rows in the inbox beside the genuine {rows - len(seen)}, answered 5xx {errors}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(options, Path(folder)))


if __name__ == "__main__":
    main()
