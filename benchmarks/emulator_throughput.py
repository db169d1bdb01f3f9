"""How many chat calls a second the offline vendor answers on one core, over real HTTP.

The figure is calls per CPU second of the server process: what one core gives once the client is not in its way.
Client and server are two processes; the client writes ready-made HTTP over plain sockets, so it stays cheap.
Every call has a body of its own, so that no answer comes out of a cache of whole requests.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

LIMIT = 1_000
_SERVER = (
    "import sys; from pathlib import Path; from emulator.server import EmulatorOptions, serve; "
    "serve(EmulatorOptions(recordings=(Path(sys.argv[1]),)), lambda url: print(url, flush=True))"
)
_TOPICS = ("refund", "delivery", "battery", "password", "invoice", "warranty", "export", "seat", "backup", "webhook")


def extractive_body(number: int) -> dict[str, object]:
    """A RAG prompt of four chunks out of a corpus of 200, with its own question."""
    chunks = "\n".join(_document((number * 7 + offset * 31) % 200) for offset in range(4))
    question = f"How long does the {_TOPICS[number % 10]} request number {number} take?"
    system = 'Answer from the documents in at most two sentences. Otherwise reply exactly: "Not in our help center."'
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"{chunks}\n\nQuestion: {question}"}]
    return {"model": "model-2025-01-01", "temperature": 0, "messages": messages}


def _document(number: int) -> str:
    topic = _TOPICS[number % 10]
    body = " ".join(
        f"A {topic} request of class {number}-{line} takes {line + 2} business days and is confirmed by e-mail."
        for line in range(10)
    )
    return f'<document id="doc-{number}" title="About the {topic}">\n## Times\n\n{body}\n</document>'


def replay_body(number: int) -> dict[str, object]:
    """A question that was recorded."""
    prompt = f"Is {number % 4000} a prime number? Think step by step."
    return {"model": "recorded-0314", "user": str(number), "messages": [{"role": "user", "content": prompt}]}


def write_recording(path: Path) -> None:
    """4,000 recorded answers of some 500 characters."""
    with path.open("w") as file:
        for number in range(4000):
            prompt, answer = f"Is {number} a prime number? Think step by step.", f"Step {number}. " * 50
            file.write(json.dumps({"model": "recorded-0314", "prompt": prompt, "answer": answer}) + "\n")


async def drive(port: int, bodies: list[bytes], connections: int) -> float:
    """Send every body once over keep-alive connections; returns the wall time."""
    queue = iter(bodies)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in queue:
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise RuntimeError(head.decode())
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return time.perf_counter() - start


def http(body: dict[str, object]) -> bytes:
    """A chat request as bytes on the wire."""
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    )
    return head.encode() + b"\r\n\r\n" + raw


def counters(url: str) -> dict[str, float]:
    """The server's own totals, its CPU seconds among them."""
    with urllib.request.urlopen(f"{url}/control/state", timeout=10) as response:
        return json.load(response)["counters"]


def measure(url: str, name: str, make: Callable[[int], dict[str, object]], calls: int, connections: int) -> float:
    """Calls per CPU second of one kind; prints its line."""
    port = int(url.rsplit(":", 1)[1])
    asyncio.run(drive(port, [http(make(-number - 1)) for number in range(200)], connections))
    bodies = [http(make(number)) for number in range(calls)]
    before = counters(url)
    wall = asyncio.run(drive(port, bodies, connections))
    after = counters(url)
    cpu = after["cpu_s"] - before["cpu_s"]
    done = int(after["completed"] - before["completed"])
    print(f"{name:<11} {done / cpu:>7,.0f} calls per server CPU second ({1000 * cpu / done:.3f} ms each); "
          f"{done / wall:,.0f} calls/s on the wall; {done} calls, {connections} connections")  # fmt: skip
    return done / cpu


def main() -> int:
    """Measure, print, and fail below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "recording.jsonl")
        write_recording(recording)
        command = [sys.executable, "-c", _SERVER, str(recording)]
        root = Path(__file__).resolve().parents[1]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            rates = [
                measure(url, "extractive", extractive_body, options.calls, options.connections),
                measure(url, "replay", replay_body, options.calls, options.connections),
            ]
            server.send_signal(signal.SIGTERM)
    print(f"limit: {LIMIT:,} calls per CPU second; worst: {min(rates):,.0f}")
    return 0 if min(rates) >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
