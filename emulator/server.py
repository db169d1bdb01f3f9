"""Starting and stopping the emulator: in the foreground for a terminal, in a thread for a test."""

import asyncio
import errno
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from emulator.answering import Answerer
from emulator.replay import Recording
from emulator.service import Service

_MAX_BODY = 64 * 1024 * 1024
_SHUTDOWN_S = 0.2  # calls that hang on purpose must not delay the end


@dataclass(frozen=True)
class EmulatorOptions:
    """How one emulator runs; port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 0
    recordings: tuple[Path, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    latency_ms: float = 0
    seed: int = 0
    reveal_snapshot: bool = False

    def as_json(self) -> dict[str, object]:
        """The options as `GET /control/state` shows them."""
        return {
            "host": self.host,
            "port": self.port,
            "recordings": [str(path) for path in self.recordings],
            "latency_ms": self.latency_ms,
            "seed": self.seed,
            "reveal_snapshot": self.reveal_snapshot,
        }


def serve(options: EmulatorOptions, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the base URL once the port listens."""
    service = _service(options)

    async def until_signalled() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await _run(service, options, stop, on_ready or (lambda url: None))

    asyncio.run(until_signalled())


@contextmanager
def running(options: EmulatorOptions) -> Iterator[str]:
    """Serve from a thread with its own event loop; yields the base URL and stops on leaving."""
    service = _service(options)
    ready, started = threading.Event(), _Started()

    async def until_stopped() -> None:
        started.loop, started.stop = asyncio.get_running_loop(), asyncio.Event()
        await _run(service, options, started.stop, lambda url: (setattr(started, "url", url), ready.set()))

    def target() -> None:
        try:
            asyncio.run(until_stopped())
        except BaseException as error:
            started.error = error
        finally:
            ready.set()

    thread = threading.Thread(target=target, name="emulator", daemon=True)
    thread.start()
    ready.wait()
    if started.error is not None:
        raise started.error
    try:
        yield started.url
    finally:
        started.end()
        thread.join(timeout=10)


@dataclass
class _Started:
    """What the serving thread tells the one that started it."""

    url: str = ""
    error: BaseException | None = None
    loop: asyncio.AbstractEventLoop | None = None
    stop: asyncio.Event | None = None

    def end(self) -> None:
        """Ask the serving thread to stop, if it still runs."""
        if self.loop is not None and self.stop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.stop.set)


def _service(options: EmulatorOptions) -> Service:
    if options.latency_ms < 0:
        raise ValueError(f"latency_ms must not be negative, not {options.latency_ms}")
    recording = Recording.load(options.recordings)
    answerer = Answerer(recording, dict(options.aliases), options.seed, options.reveal_snapshot)
    return Service(answerer, options.as_json())


async def _run(
    service: Service, options: EmulatorOptions, stop: asyncio.Event, on_ready: Callable[[str], object]
) -> None:
    loop = asyncio.get_running_loop()

    def big_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY)

    # Cancelling a handler when its client hangs up is what ends the `timeout` fault.
    server = web.Server(
        service.handle, request_factory=big_request, handler_cancellation=True, access_log=None, keepalive_timeout=75
    )
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=1024)
        await _listen(site, options)
        host, port = runner.addresses[0][:2]
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()


async def _listen(site: web.TCPSite, options: EmulatorOptions) -> None:
    try:
        await site.start()
    except OSError as error:
        where = f"{options.host}:{options.port}"
        if error.errno == errno.EADDRINUSE:
            message = f"port {options.port} on {options.host} is taken; stop what listens there or choose another port"
            raise OSError(errno.EADDRINUSE, message) from None
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
