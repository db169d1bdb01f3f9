"""Webhooks per second that the gateway takes and keeps, and whether it lives under huge bodies and slow sockets.

python -m benchmarks.gateway_load [--seconds 60] [--rate 500] [--connections 32]

The gateway is `touchstone gateway serve` as users run it, with its SQLite inbox on disk; Prefect is away, so that all
that it takes waits there. The client paces itself: the latency of a webhook counts from the moment at which
it was due, so that a stall is paid by all who were due in it. Every webhook is one of GitHub's of 8 KB, signed, new,
and wanted by a rule. Beside it in the same run: the fastest that the gateway goes, and the fastest that a bare FastAPI
route goes which verifies and reads the JSON, and keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
SECRET = "a-secret-of-benchmarks"
SOURCES = {
    "github": {"kind": "github", "secret_env": "BENCHMARK_SECRET"},
    "mlflow": {"kind": "mlflow", "secret_env": "BENCHMARK_SECRET"},
    "ci": {"kind": "hmac", "secret_env": "BENCHMARK_SECRET", "timestamp_header": "X-Time"},
}
RULES = [
    {
        "source": "github",
        "event": "push",
        "where": {"ref": "refs/heads/main"},
        "paths": ["prompts/*"],
        "run": "gate/support",
        "parameters": {"event": {"paths": "${paths}", "commit": "${payload.after}"}},
    },
    {"source": "mlflow", "run": "gate/support"},
    {"source": "ci", "run": "gate/support"},
]
BODY_BYTES = 8192


def serve_bare() -> None:
    """The peer: what one writes at first, served by plain uvicorn."""
    import uvicorn
    from fastapi import FastAPI, Header, Request, Response

    app = FastAPI()

    async def take(request: Request, x_hub_signature_256: str = Header()) -> Response:
        body = await request.body()
        proof = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(proof, x_hub_signature_256):
            return Response(status_code=401)
        json.loads(body)
        return Response(status_code=202)

    take.__annotations__ = {"request": Request, "x_hub_signature_256": str, "return": Response}
    app.post("/hooks/github", response_model=None)(take)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, loop="asyncio", http="h11", log_level="error", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    host: str
    port: int
    pid: int

    def memory_mb(self, which: str = "VmRSS") -> float:
        """VmRSS: now; VmHWM: at most so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{which}:")[2].split()[0]) / 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@contextmanager
def served(what: Literal["gateway", "bare"], folder: Path) -> Iterator[Served]:
    """In a process of its own; of the gateway, with its project in `folder`."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOUCHSTONE_", "PREFECT_"))
    }
    environment |= {"PYTHONPATH": str(ROOT), "BENCHMARK_SECRET": SECRET}
    (folder / "touchstone.yaml").write_text(json.dumps({"webhooks": {"sources": SOURCES, "rules": RULES}}))
    module = ["cli.main", "gateway", "serve", "--port", "0"] if what == "gateway" else [__spec__.name, "--serve-bare"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", *module], stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment
        ) as process,
    ):
        try:
            assert process.stdout
            address = re.search(r"http://([\w.]+):(\d+)", process.stdout.readline())
            if address is None:
                raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            yield Served(address[1], int(address[2]), process.pid)
        finally:
            process.terminate()


def push(number: int, size: int = BODY_BYTES) -> bytes:
    """A push of GitHub's shape, never the same twice."""
    commit = {
        "id": hashlib.sha1(str(number).encode()).hexdigest(),
        "message": "Say it more kindly",
        "author": {"name": "Ann", "email": "ann@example.org"},
        "added": [],
        "removed": [],
        "modified": ["prompts/support/1.1.0.yaml", "README.md"],
    }
    body = {"ref": "refs/heads/main", "after": commit["id"], "commits": [commit] * 16, "number": number, "pad": ""}
    body["pad"] = "x" * max(0, size - len(json.dumps(body)))
    return json.dumps(body).encode()


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    proof = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={proof}", "X-GitHub-Event": "push", "X-GitHub-Delivery": proof[:36]}


class Caller:
    """One kept-alive connection, with as little Python as can be."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, source: str, body: bytes, headers: dict[str, str], method: str = "POST") -> int:
        """The status; 0 when the connection broke before an answer."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"{method} {source if source.startswith('/') else f'/hooks/{source}'} HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        )
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._server.host, self._server.port)
            reader, writer = self._streams
            writer.write(head.encode("latin-1") + body)
            status, closes = await _answer(reader)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            status, closes = 0, True
        if closes:
            self.close()
        return status

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), b"connection: close" in head


@dataclass
class Load:
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def per_second(self) -> float:
        return self.statuses[202] / self.wall_s

    def __str__(self) -> str:
        hundredths, worst = statistics.quantiles(self.latencies_ms, n=100), max(self.latencies_ms)
        p50, p99 = hundredths[49], hundredths[98]
        return (
            f"{self.per_second:.0f} webhooks/s for {self.wall_s:.0f} s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
            f"worst {worst:.0f} ms, answers {dict(self.statuses)}"
        )


async def load(server: Served, seconds: float, connections: int, numbers: Iterator[int], rate: float | None) -> Load:
    """At a given rate, or as fast as it goes."""
    found, started = Load(), time.perf_counter()
    turns = itertools.count()

    async def call() -> None:
        caller = Caller(server)
        while (now := time.perf_counter() - started) < seconds:
            body = push(next(numbers))
            headers = signed(body)
            if rate is not None:
                due = next(turns) / rate
                if due >= seconds:
                    break
                await asyncio.sleep(max(0.0, due - (time.perf_counter() - started)))
            else:
                due = now
            found.statuses[await caller.post("github", body, headers)] += 1
            found.latencies_ms.append(1000 * (time.perf_counter() - started - due))
        caller.close()

    await asyncio.gather(*(call() for _ in range(connections)))
    found.wall_s = time.perf_counter() - started
    return found


async def _huge_body(server: Served, megabytes: int, told: bool) -> str:
    """Pushes on until it is cut off; what came back."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    size = megabytes * 1024 * 1024
    kind = f"Content-Length: {size}" if told else "Transfer-Encoding: chunked"
    writer.write(f"POST /hooks/github HTTP/1.1\r\nHost: x\r\n{kind}\r\n\r\n".encode())
    piece = b"x" * 65536
    with contextlib.suppress(OSError):
        for _ in range(size // len(piece)):
            writer.write(piece if told else b"10000\r\n" + piece + b"\r\n")
            await writer.drain()
    answer = b""
    with contextlib.suppress(OSError):
        answer = await asyncio.wait_for(reader.read(200), 10)
    writer.close()
    return answer.split(b"\r\n")[0].decode() or "closed"


@asynccontextmanager
async def _slow_sockets(server: Served, n: int) -> AsyncIterator[None]:
    """A third each: silent, dripping headers, stopped within a body; each comes again when it was cut off."""
    begins = (b"", b"POST /hooks/github HTTP/1.1\r\n", b"POST /hooks/github HTTP/1.1\r\nHost: x\r\n"
              b"Content-Length: 8000\r\n\r\n{")  # fmt: skip

    is_over = asyncio.Event()

    async def be_slow(begin: bytes) -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(server.host, server.port)
                writer.write(begin)
                while not (reader.at_eof() or is_over.is_set()):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(100), 1)
                    writer.write(b"X-Drip: 1\r\n" if begin == begins[1] else b"")
                writer.close()
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(be_slow(begins[number % 3])) for number in range(n)]
    await asyncio.sleep(2)
    try:
        yield
    finally:
        is_over.set()
        await asyncio.gather(*tasks)


async def under_attack(server: Served, numbers: Iterator[int], slow: int, seconds: float) -> None:
    async with _slow_sockets(server, slow):
        calm = await load(server, seconds, 8, numbers, rate=100)
        print(f"with {slow:,} slow sockets: {calm}", flush=True)
        huge = [asyncio.create_task(_huge_body(server, 256, bool(number % 2))) for number in range(8)]
        busy = await load(server, seconds, 8, numbers, rate=100)
        answers = Counter(await asyncio.gather(*huge))
        print(f"and 8 bodies of 256 MB besides: {busy}; those were answered {dict(answers)}", flush=True)
    print(f"RSS {server.memory_mb():.0f} MB, at most {server.memory_mb('VmHWM'):.0f} MB", flush=True)


async def _measure(options: argparse.Namespace, folder: Path) -> None:
    numbers = itertools.count()
    with served("gateway", folder) as server:
        print(f"gateway started: RSS {server.memory_mb():.0f} MB", flush=True)
        await load(server, 2, options.connections, numbers, None)
        before = server.cpu_s()
        paced = await load(server, options.seconds, options.connections, numbers, options.rate)
        spent = (server.cpu_s() - before) / sum(paced.statuses.values())
        print(f"gateway at {options.rate}/s: {paced}; {1000 * spent:.2f} CPU-ms each", flush=True)
        print(f"RSS {server.memory_mb():.0f} MB, at most {server.memory_mb('VmHWM'):.0f} MB", flush=True)
        fastest = await load(server, options.seconds / 4, options.connections, numbers, None)
        print(f"gateway as fast as it goes: {fastest}", flush=True)
        await under_attack(server, numbers, options.slow, min(options.seconds, 10))
    with served("bare", folder) as server:
        await load(server, 2, options.connections, numbers, None)
        fastest = await load(server, options.seconds / 4, options.connections, numbers, None)
        print(f"bare FastAPI, which keeps nothing, as fast as it goes: {fastest}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve_bare:
        serve_bare()
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_measure(options, Path(folder)))


if __name__ == "__main__":
    main()
