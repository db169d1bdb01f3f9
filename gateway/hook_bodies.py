"""Reading a webhook's body: never more than a source may send, nor all of them together than the gateway may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from gateway.signatures import Refused

MOST_BYTES_HELD = 16 * 1024 * 1024  # of bodies of all webhooks that are being read or kept

_MOST_DISCARDED = 4 * 1024 * 1024  # who is cut off while he sends does not read why


class Budget:
    """Bytes of bodies in memory, in one event loop."""

    def __init__(self, most: int = MOST_BYTES_HELD) -> None:
        self._most, self._held = most, 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """What is taken is given back on leaving."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self._held -= lease.taken

    def take(self, count: int) -> bool:
        """False, and nothing taken, when it would be too much."""
        fits = self._held + count <= self._most
        self._held += count if fits else 0
        return fits


class Lease:
    """What one webhook holds of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.taken = budget, 0

    def take(self, count: int) -> bool:
        fits = self._budget.take(count)
        self.taken += count if fits else 0
        return fits


async def read_body(request: Request, most: int, lease: Lease) -> bytes:
    """Raises Refused: 413, 429 while others hold too much, 408 when the sender went away before the end."""
    told = int(request.headers.get("content-length", "0"))  # h11 has checked that it is a number
    if told > most:
        raise _too_large(most, closes=told > _MOST_DISCARDED)
    chunks, seen = [], 0
    try:
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > most:
                raise _too_large(most, closes=True)
            if not lease.take(len(chunk)):
                raise Refused(429, "busy", "too many webhooks are on their way at once; send it again", closes=True)
            chunks.append(chunk)
    except ClientDisconnect:
        raise Refused(408, "slow", "the body did not come in time", closes=True) from None
    return b"".join(chunks)


def _too_large(most: int, *, closes: bool) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {most} bytes (webhooks.max_body_kb)", closes=closes)
