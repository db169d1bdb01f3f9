"""Answering for live traffic when a vendor is away: the routed bundle's own model first, then its fall-backs, in order.

Evals never use this: they measure one model, and a fall-back would swap it (an import contract sees to it).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tasks.vendor import CircuitBreaker, Vendor, check_call, vendor_name
from tasks.vendor_chat import Messages
from tasks.vendor_endpoint import provider
from touchstone.bundle import Endpoint
from touchstone.definition import Definition
from touchstone.errors import AnswerRefused, BadInput, CaseFailure, TouchstoneError, VendorTimeout
from touchstone.prompts import GenerationParameters
from touchstone.results import Call, Failure, FailureKind

BreakerState = Literal["closed", "open", "probing"]
_REMEMBERED = 1000  # latencies per vendor, for its percentiles


@dataclass(frozen=True)
class Candidate:
    """A bundle that may answer; `is_fallback`: in another one's place."""

    definition: Definition
    is_fallback: bool = False

    @property
    def endpoint(self) -> Endpoint:
        return self.definition.bundle.endpoint

    @property
    def parameters(self) -> GenerationParameters:
        prompt = self.definition.prompt
        own = prompt.parameters if prompt else GenerationParameters()
        return self.definition.bundle.parameters or own


class Attempt(BaseModel):
    """One vendor that was asked, or was not because its circuit is open."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    model: str
    provider: str
    outcome: str  # `ok`, `skipped` (circuit open, or no time left), or the kind of failure
    latency_ms: float
    breaker: BreakerState  # before the attempt
    reason: str = ""
    is_fallback: bool = False


@dataclass(frozen=True)
class Answered:
    """What came of one request: a text with who gave it, or the failure of the last one asked."""

    attempts: tuple[Attempt, ...]
    text: str | None = None
    candidate: Candidate | None = None
    calls: tuple[Call, ...] = ()
    failure: Failure | None = None


@dataclass
class _Count:
    """What one vendor did since the process started."""

    provider: str
    asked: int = 0
    answered: int = 0
    skipped: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


@dataclass
class Failover:
    """Asks one vendor after the other within a total deadline. It belongs to one event loop.

    A vendor is given `attempts` tries and `attempt_deadline_s` for each; after `threshold` failures in a row it is not
    asked at all but for one probe per `cool_down_s`.
    """

    total_deadline_s: float = 20.0
    attempt_deadline_s: float = 8.0
    attempts: int = 1
    threshold: int = 3
    cool_down_s: float = 10.0
    concurrency: int = 64
    _vendor: Vendor = field(init=False, repr=False)
    _counts: dict[str, _Count] = field(default_factory=dict, repr=False)
    _endpoints: dict[str, Endpoint] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._vendor = Vendor(
            concurrency=self.concurrency,
            deadline_s=self.attempt_deadline_s,
            attempts=self.attempts,
            new_breaker=lambda: CircuitBreaker(self.threshold, self.cool_down_s),
        )

    async def answer(
        self, candidates: Sequence[Candidate], build: Callable[[Candidate], Awaitable[Messages]]
    ) -> Answered:
        """The first answer that keeps the contract. `build` makes a candidate's messages, when its turn comes.

        A refusal by a vendor's content filter is its answer: nobody else is asked to get around it.
        """
        ends = time.monotonic() + self.total_deadline_s
        attempts: list[Attempt] = []
        failure = Failure(kind=FailureKind.VENDOR_ERROR, reason="no bundle may answer")
        for candidate in candidates:
            text, call, error, attempt = await self._ask(candidate, build, ends - time.monotonic())
            attempts.append(attempt)
            if text is not None and call is not None:
                return Answered(tuple(attempts), text, candidate, (call,))
            failure = Failure(kind=getattr(error, "kind", FailureKind.VENDOR_ERROR), reason=str(error))
            if isinstance(error, AnswerRefused):
                break
        return Answered(tuple(attempts), failure=failure)

    def report(self) -> list[dict[str, Any]]:
        """Per vendor, in the order they were first asked: its circuit, and what it was asked, answered and cost."""
        return [_row(name, count, self._vendor.breaker(self._endpoints[name])) for name, count in self._counts.items()]

    async def _ask(
        self, candidate: Candidate, build: Callable[[Candidate], Awaitable[Messages]], left_s: float
    ) -> tuple[str | None, Call | None, TouchstoneError | None, Attempt]:
        """One candidate's turn: errors become data here and nowhere else."""
        endpoint, count = candidate.endpoint, self._count(candidate.endpoint)
        state, started = self._vendor.breaker(endpoint).state, time.monotonic()
        text: str | None = None
        call: Call | None = None
        error: TouchstoneError | None = None
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                messages = await build(candidate)
                started = time.monotonic()  # what comes before it is not the vendor's time
                text, call = await self._complete(candidate, messages)
                count.cost_usd += call.cost_usd or 0.0
                text = check_call(text, call, endpoint, candidate.parameters)
        except TimeoutError:  # others took the time: nothing is held against this one's circuit
            error = VendorTimeout(f"no answer within the {self.total_deadline_s:g} s that all vendors have together")
        except (CaseFailure, BadInput) as failed:
            text, error = None, failed
        latency_ms = (time.monotonic() - started) * 1000
        outcome = "skipped" if error and (state == "open" or left_s <= 0) else _outcome(error)
        _count(count, outcome, latency_ms)
        attempt = Attempt(
            bundle=candidate.definition.bundle.name,
            model=endpoint.model,
            provider=count.provider,
            outcome=outcome,
            latency_ms=latency_ms,
            breaker=state,
            reason=str(error) if error else "",
            is_fallback=candidate.is_fallback,
        )
        return text, call, error, attempt

    async def _complete(self, candidate: Candidate, messages: Messages) -> tuple[str | None, Call]:
        return await self._vendor.complete(
            candidate.endpoint,
            messages,
            candidate.parameters,
            role="generation",
            prompt_version=candidate.definition.prompt.version if candidate.definition.prompt else None,
        )

    def _count(self, endpoint: Endpoint) -> _Count:
        name = vendor_name(endpoint)
        self._endpoints[name] = endpoint
        return self._counts.setdefault(name, _Count(provider(endpoint.model) or "unknown"))


def _outcome(error: TouchstoneError | None) -> str:
    """A missing key is nobody's failure but ours; it is told apart from a vendor's."""
    if error is None:
        return "ok"
    return error.kind.value if isinstance(error, CaseFailure) else "bad_input"


def _count(count: _Count, outcome: str, latency_ms: float) -> None:
    if outcome == "skipped":
        count.skipped += 1
        return
    count.asked += 1
    count.latencies_ms.append(latency_ms)
    if outcome == "ok":
        count.answered += 1
    else:
        count.failed[outcome] += 1


def _row(name: str, count: _Count, breaker: CircuitBreaker) -> dict[str, Any]:
    p50, p95 = np.percentile(count.latencies_ms, [50, 95]) if count.latencies_ms else (None, None)
    return {
        "vendor": name,
        "provider": count.provider,
        "breaker": breaker.state,
        "asked": count.asked,
        "answered": count.answered,
        "failed": dict(count.failed),
        "skipped": count.skipped,
        "success": count.answered / count.asked if count.asked else None,
        "cost_usd": round(count.cost_usd, 8),
        "latency_ms": {"p50": p50 and round(float(p50), 1), "p95": p95 and round(float(p95), 1)},
    }
