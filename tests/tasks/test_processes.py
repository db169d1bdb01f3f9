"""Processes that belong together start in order, are watched, and leave nothing behind, however they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.health import answers
from tasks.process_marks import MARK, end_parts, marked
from tasks.processes import Part, PartFailed, Supervisor
from tasks.stack_file import read_stack
from tasks.stack_run import run_stack, stop_stack

SERVER = """
import http.server, sys
print("listening")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
# Starts a grandchild in a session of its own, as Prefect's worker does with flow runs; both outlast SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                  "print('grandchild', flush=True); time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""
POLITE = STUBBORN.replace("SIG_IGN", "SIG_DFL")
# `up` as a process of its own, with cheap parts: argv is the state folder.
UP = """
import asyncio, os, sys
from pathlib import Path
from tasks.processes import Part
from tasks.stack_run import run_stack
state = Path(sys.argv[1])
async def ready():
    return (state / "logs" / "stubborn.log").read_text().startswith("grandchild")
async def always():
    return True
parts = [
    Part("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"), dict(os.environ), always),
    Part("stubborn", (sys.executable, "-c", sys.argv[2]), dict(os.environ), ready, grace_s=0.5),
]
asyncio.run(run_stack(parts, state, lambda name, line: None, lambda: print("ready", flush=True)))
print("ended", flush=True)
"""


def python(name: str, code: str, *arguments: str, **fields: object) -> Part:
    return Part(name, (sys.executable, "-uc", code, *arguments), dict(os.environ), **fields)  # type: ignore[arg-type]


def server(name: str, port: int, **fields: object) -> Part:
    return python(name, SERVER, str(port), ready=lambda: answers(f"http://127.0.0.1:{port}/"), **fields)


async def at_once() -> bool:
    return True


def until(check: Callable[[], object], seconds: float = 15) -> None:
    ends = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


async def failure_of(parts: list[Part], tmp_path: Path, **options: float) -> tuple[str, Supervisor]:
    supervisor = Supervisor(parts, tmp_path / "logs", lambda name, line: None, **options)
    try:
        await supervisor.start()
        await supervisor.watch()
    except PartFailed as failed:
        return str(failed), supervisor
    finally:
        await supervisor.stop()
    raise AssertionError("nothing failed")


async def test_a_part_starts_when_what_it_needs_is_ready_or_done(tmp_path: Path, free_port: int) -> None:
    said: list[tuple[str, str]] = []
    parts = [
        server("store", free_port),
        python("deploy", "print('deployed')", after=("store",)),
        python("worker", "import time; print('works'); time.sleep(600)", after=("deploy",), ready=at_once),
    ]
    supervisor = Supervisor(parts, tmp_path / "logs", lambda name, line: said.append((name, line)))
    try:
        await supervisor.start()
        assert all(one.is_ready for one in supervisor.running.values())
        await asyncio.sleep(0.3)
        output = [one for one in said if one[1] in ("listening", "deployed", "works")]
        assert output == [("store", "listening"), ("deploy", "deployed"), ("worker", "works")]
        assert (tmp_path / "logs" / "deploy.log").read_text() == "deployed\n"
    finally:
        await supervisor.stop()
    assert marked(supervisor.stack) == []


async def test_a_part_that_dies_ends_the_others_and_shows_its_last_lines(tmp_path: Path, free_port: int) -> None:
    dying = python("gateway", "import sys, time; time.sleep(.5); print('no ledger'); sys.exit(7)", ready=at_once)
    message, supervisor = await failure_of([server("store", free_port), dying], tmp_path)
    assert message == "gateway ended with exit code 7; its last lines:\n  no ledger"
    assert marked(supervisor.stack) == []


async def test_a_step_that_fails_is_named_and_what_waits_for_it_is_not_started(tmp_path: Path) -> None:
    step = python("deploy", "print('cron: 61 is not a minute'); raise SystemExit(2)")
    message, supervisor = await failure_of([step, python("worker", "pass", after=("deploy",), ready=at_once)], tmp_path)
    assert message.startswith("deploy ended with exit code 2")
    assert "cron: 61" in message
    assert "worker" not in supervisor.running


async def test_a_part_that_is_not_ready_in_time_is_named(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    slow = python("mlflow", "import time; print('migrating'); time.sleep(600)", ready=never)
    message, supervisor = await failure_of([slow], tmp_path, deadline_s=1)
    assert message == "mlflow was not ready within 1 s; its last lines:\n  migrating"
    assert marked(supervisor.stack) == []


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    message, _ = await failure_of([Part("mlflow", (str(tmp_path / "mlflow"),), {}, at_once)], tmp_path)
    assert message == f"mlflow cannot be started: {tmp_path / 'mlflow'}: No such file or directory"


async def test_runs_of_a_worker_end_before_it_so_that_it_can_tell(tmp_path: Path) -> None:
    told = tmp_path / "told"

    async def said_something() -> bool:
        return b"runs" in (tmp_path / "logs" / "worker.log").read_bytes()

    worker = python(
        "worker",
        "import subprocess, sys; run = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"print('runs'); code = run.wait(); open({str(told)!r}, 'w').write(str(code)); import time; time.sleep(600)",
        ready=said_something,
        children_first=True,
    )
    supervisor = Supervisor([worker], tmp_path / "logs", lambda name, line: None)
    await supervisor.start()
    await supervisor.stop()
    assert told.read_text() == "-15"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(params=[POLITE])
def up(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """`run_stack` with two cheap parts, and a grandchild in a session of its own."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    command = [sys.executable, "-uc", UP, str(tmp_path), request.param]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    if (stack := read_stack(tmp_path)) is not None:
        end_parts(stack.stack, stack.order, 0.5)


@pytest.mark.parametrize("up", [STUBBORN], indirect=True, ids=["stubborn"])
@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process(up: subprocess.Popen[str], tmp_path: Path, one: signal.Signals) -> None:
    stack = read_stack(tmp_path)
    assert stack is not None
    assert len(marked(stack.stack)) == 3
    up.send_signal(one)
    assert up.communicate(timeout=20)[0] == "ended\n"
    assert marked(stack.stack) == []
    assert read_stack(tmp_path) is None


def test_kill_9_of_up_leaves_no_process(up: subprocess.Popen[str], tmp_path: Path) -> None:
    stack = read_stack(tmp_path)
    assert stack is not None
    assert len(marked(stack.stack)) == 3
    up.kill()
    until(lambda: not marked(stack.stack), seconds=40)


async def test_down_ends_what_is_left_when_up_and_its_guard_were_killed(
    up: subprocess.Popen[str], tmp_path: Path
) -> None:
    import psutil

    stack = read_stack(tmp_path)
    assert stack is not None
    guard = next(one for one in psutil.Process(up.pid).children() if "tasks.process_guard" in one.cmdline())
    guard.kill()
    up.kill()
    up.wait()
    assert len(marked(stack.stack)) == 3
    assert await stop_stack(tmp_path)
    assert marked(stack.stack) == []
    assert not await stop_stack(tmp_path)


async def test_what_a_part_says_without_end_or_line_break_neither_blocks_nor_fills_memory(tmp_path: Path) -> None:
    said: list[str] = []
    loud = python("loud", "import sys; sys.stdout.write('x' * 300_000 + chr(10) + 'last'); sys.stdout.flush()")
    supervisor = Supervisor([loud], tmp_path / "logs", lambda name, line: said.append(line))
    await supervisor.start()
    await supervisor.stop()
    assert max(map(len, said)) <= 4_000
    assert "last" in said


async def test_a_failure_is_told_by_run_stack_after_it_has_ended_the_others(tmp_path: Path) -> None:
    parts = [
        python("store", "import time; time.sleep(600)", ready=at_once),
        python("deploy", "raise SystemExit(3)"),
    ]
    ready: list[str] = []
    with pytest.raises(PartFailed, match="deploy ended with exit code 3"):
        await run_stack(parts, tmp_path, lambda name, line: None, lambda: ready.append("up"))
    assert ready == []
    assert read_stack(tmp_path) is None
