"""The gateway's metrics for Prometheus, in a registry of their own; no label can be made up by who sends."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from gateway.inbox import Inbox
from touchstone.errors import Unmeasurable
from touchstone.inbox import HookStatus

UNKNOWN = "unknown"  # the label of every source that is not in touchstone.yaml
_LOOK_EVERY_S = 1.0  # how old the counts of the inbox may be: who scrapes must not be able to wear it out


class GatewayMetrics:
    """What came in by source and outcome, how long answers took, what waits in the inbox, and the process itself."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox, self._looked_at = inbox, 0.0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._webhooks = Counter(
            "touchstone_webhooks",
            "Webhooks by source; outcome is accepted, ignored, duplicate or refused, and reason says why refused",
            ("source", "outcome", "reason"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "touchstone_webhook_seconds",
            "From a webhook's headers to its answer",
            ("outcome",),
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self._registry,
        )
        self._waiting = Gauge(
            "touchstone_inbox", "Webhooks in the inbox by status", ("status",), registry=self._registry
        )
        self._readable = Gauge("touchstone_inbox_readable", "1 while the inbox can be read", registry=self._registry)

    def count(self, source: str, outcome: str, seconds: float, reason: str = "") -> None:
        self._webhooks.labels(source, outcome, reason).inc()
        self._seconds.labels(outcome).observe(seconds)

    async def text(self) -> bytes:
        """In Prometheus' text format."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            await self._look()
        return generate_latest(self._registry)

    async def _look(self) -> None:
        try:
            counts = await self._inbox.counts()
        except Unmeasurable:
            self._readable.set(0)
            self._waiting.clear()  # old counts would pass for those of now
            return
        self._readable.set(1)
        for status in HookStatus:
            self._waiting.labels(status.value).set(counts.get(status, 0))
