"""Serving an ASGI app by uvicorn with the limits it lacks: slow or huge headers, large bodies, too many callers."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_DEADLINE_S = 5.0
_MOST_HEADER_BYTES = 16_384
_MOST_BODY_BYTES = 64 * 1024
_MOST_AT_ONCE = 512


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose request is not all there in time; uvicorn itself would wait for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()  # between requests uvicorn's keep-alive time-out counts, until a next one begins

    def _wait_for_request(self) -> None:
        """The clock starts with the first byte and stops with the last of the body, not with every byte."""
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            if self._deadline is None:
                self._deadline = self.loop.call_later(HEADER_DEADLINE_S, self.transport.abort)
        else:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BodyLimit:
    """413 for a body above the limit, whether its length is told or not."""

    def __init__(self, app: Any, limit: int = _MOST_BODY_BYTES) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
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
    _server(app, host, port, on_ready).run()


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
            http=DeadlineProtocol,
            ws="none",
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            limit_concurrency=_MOST_AT_ONCE,
            timeout_graceful_shutdown=3,
            server_header=False,
            log_level="warning",
            access_log=False,
        ),
        on_ready,
    )


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
