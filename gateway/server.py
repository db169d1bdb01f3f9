"""Serving an ASGI app by uvicorn with the limits it lacks: slow or huge headers, large bodies, too many callers."""

from __future__ import annotations

import asyncio
import errno
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_DEADLINE_S = 5.0
_MOST_HEADER_BYTES = 16_384
_MOST_BODY_BYTES = 64 * 1024
_BOUND_THEMSELVES = "/hooks/"  # paths whose bodies are read by who knows how large they may be
_MOST_CONNECTIONS = 1024
_FILES_FOR_OTHERS = 128  # databases, the log, what is being opened
_ARENA_MAX, _TRIM_THRESHOLD = -8, -1  # of malloc.h
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b'Connection: close\r\nContent-Length: 34\r\n\r\n{"error": "too many are connected"}'
)

Idle = dict["DeadlineProtocol", None]  # connections without a whole request, those that are so for longest first


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose request is not all there in time; uvicorn itself would wait for ever.

    When there are `most` connections, whoever has been without a whole request for longest gives way to a new one: so
    slow callers, however many, shut out nobody who sends a request at once.
    """

    def __init__(self, idle: Idle, most: int, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._idle, self._most = idle, most
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > self._most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()
        if self.conn.their_state is h11.SEND_BODY:  # of a request that was sent before this answer
            self._wait_for_request()
        else:  # uvicorn's keep-alive time-out counts, until a next one begins
            self._idle[self] = None

    def _wait_for_request(self) -> None:
        """The clock starts with the first byte and stops with the last of the body, not with every byte."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_DEADLINE_S, self.transport.abort)
            self._idle.pop(self, None)
            self._idle[self] = None

    def _stop_waiting(self) -> None:
        self._idle.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        longest = next(iter(self._idle))
        longest._stop_waiting()
        if longest is self:  # all others are being answered
            self.transport.write(_BUSY)
            self.transport.close()
        else:
            longest.transport.abort()


class BodyLimit:
    """413 for a body above the limit, whether its length is told or not; webhooks have their own."""

    def __init__(self, app: Any, limit: int = _MOST_BODY_BYTES) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_BOUND_THEMSELVES):
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._limit:
            await _refuse(send, self._limit)
            return
        seen, refused = 0, False

        async def limited() -> Any:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def unless_refused(message: Any) -> None:
            if not refused:
                await send(message)

        await self._app(scope, limited, unless_refused)
        if refused:
            await _refuse(send, self._limit)


async def _refuse(send: Any, limit: int) -> None:
    body = b'{"error": "the body is larger than %d bytes"}' % limit
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[str], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(app: Any, host: str, port: int, on_ready: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the address once the port listens. Raises OSError."""
    _check_free(host, port)
    _one_heap()

    def ready(url: str) -> None:
        _give_memory_back()
        on_ready(url)

    _server(app, host, port, ready).run()


@contextmanager
def running(app: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread with its own event loop; yields the address and stops on leaving."""
    ready, address = threading.Event(), []
    server = _server(app, host, port, lambda url: (address.append(url), ready.set()))

    def target() -> None:
        try:
            server.run()
        finally:
            ready.set()

    thread = threading.Thread(target=target, name="asgi", daemon=True)
    thread.start()
    ready.wait()
    if not address:
        raise OSError(f"cannot listen on {host}:{port}")
    try:
        yield address[0]
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def _server(app: Any, host: str, port: int, on_ready: Callable[[str], object]) -> _Server:
    return _Server(
        uvicorn.Config(
            BodyLimit(app),
            host=host,
            port=port,
            loop="asyncio",
            http=partial(DeadlineProtocol, {}, _most_connections()),  # type: ignore[arg-type]  # uvicorn only calls it
            ws="none",
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            timeout_graceful_shutdown=3,
            server_header=False,
            log_level="error",  # every malformed request is a warning, and strangers write those
            access_log=False,
        ),
        on_ready,
    )


def _most_connections() -> int:
    """As many as there are file descriptors for: without one, asyncio stops accepting for a second, for everybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _FILES_FOR_OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        _MOST_CONNECTIONS
        if soft == resource.RLIM_INFINITY
        else max(16, min(_MOST_CONNECTIONS, soft - _FILES_FOR_OTHERS))
    )


def _one_heap() -> None:
    """Before there are threads: glibc would give each a heap of its own, and give little of them back."""
    import ctypes

    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_TRIM_THRESHOLD, 128 * 1024)


def _give_memory_back() -> None:
    """What was needed to import and to build models."""
    import ctypes
    import gc

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _check_free(host: str, port: int) -> None:
    """uvicorn logs a port that is taken and exits by itself; we say it in our words."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} on {host} is taken; stop what listens there or choose another port"
                raise OSError(errno.EADDRINUSE, message) from None
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
