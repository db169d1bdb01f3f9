"""One vendor call through LiteLLM: deadline, bounded retry, circuit breaker, budget, strict contract.

LiteLLM's own time-out, retry, budget and fall-back stay off: its time-out is no deadline against a vendor that
drips bytes, its budget lets calls through, and its fall-backs swap the model under test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from tasks.vendor_chat import Messages, chat_request, most_chat_cost, read_chat
from tasks.vendor_endpoint import api_key
from tasks.vendor_errors import LONGEST_WAIT_S, read_failure
from tasks.vendor_library import litellm_module
from tasks.vendor_vectors import Floats, most_vector_cost, read_vectors, vector_request
from touchstone.bundle import Endpoint
from touchstone.contract import check_answer
from touchstone.cost import Budget
from touchstone.errors import VendorUnavailable
from touchstone.prompts import GenerationParameters
from touchstone.results import Call

Read = TypeVar("Read")


@dataclass
class CircuitBreaker:
    """Opens after `threshold` failures in a row; then one probe call per `cool_down_s` is let through.

    Calls that were in flight together count as one failure: they say no more than that the vendor was away then.
    """

    threshold: int = 8
    cool_down_s: float = 20.0
    _failed_in_a_row: int = 0
    _failed_at: float = 0.0
    _next_probe_at: float = 0.0

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """`probing`: open for so long that the next call is let through, to see."""
        if self._failed_in_a_row < self.threshold:
            return "closed"
        return "open" if time.monotonic() < self._next_probe_at else "probing"

    def check(self, vendor: str) -> None:
        """Raise VendorUnavailable while the circuit is open."""
        if self._failed_in_a_row < self.threshold:
            return
        now = time.monotonic()
        if now < self._next_probe_at:
            raise VendorUnavailable(f"circuit open: {vendor} failed {self._failed_in_a_row} times in a row")
        self._next_probe_at = now + self.cool_down_s

    def record(self, *, ok: bool, started: float) -> None:
        """The outcome of a call that began at `started` (monotonic seconds)."""
        if ok:
            self._failed_in_a_row = 0
        elif started >= self._failed_at:
            self._failed_in_a_row += 1
            self._failed_at = time.monotonic()
            self._next_probe_at = self._failed_at + self.cool_down_s


@dataclass
class Vendor:
    """Makes vendor calls for one run; all share its limit of calls in flight, its budget and its breakers.

    It belongs to one event loop; `tasks.vendor_embedding` serves callers on threads.
    """

    concurrency: int = 32
    deadline_s: float = 60.0
    attempts: int = 4
    budget: Budget = field(default_factory=Budget)
    new_breaker: Callable[[], CircuitBreaker] = CircuitBreaker
    _limit: asyncio.Semaphore = field(init=False, repr=False)
    _settled: asyncio.Condition = field(init=False, repr=False)
    _breakers: dict[str, CircuitBreaker] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._limit = asyncio.Semaphore(self.concurrency)
        self._settled = asyncio.Condition()

    async def complete(
        self,
        endpoint: Endpoint,
        messages: Messages,
        parameters: GenerationParameters,
        *,
        role: str,
        prompt_version: str | None = None,
        response_format: Mapping[str, str] | None = None,
    ) -> tuple[str | None, Call]:
        """The answer's text and the call's record, the contract not yet checked (`check_call` does).

        Raises a CaseFailure when there is no answer; OverBudget before anything is sent.
        """
        request, dropped = chat_request(endpoint, messages, parameters, response_format)
        about = Call(
            role=role, requested_model=endpoint.model, prompt_version=prompt_version, dropped_parameters=dropped
        )
        return await self._attempt(
            endpoint,
            most_chat_cost(endpoint, messages, parameters),
            lambda: litellm_module().acompletion(**request),
            lambda response, told: read_chat(response, endpoint, about.model_copy(update=told)),
        )

    async def embed(self, endpoint: Endpoint, texts: Sequence[str], *, role: str = "embedding") -> tuple[Floats, Call]:
        """One unit row per text, in their order, and the call's record: the same rules as for `complete`.

        The contract is part of it: vectors that break it are asked for again, then InvalidAnswer.
        """
        request = vector_request(endpoint, texts)
        about = Call(role=role, requested_model=endpoint.model)
        return await self._attempt(
            endpoint,
            most_vector_cost(endpoint, texts),
            lambda: litellm_module().aembedding(**request),
            lambda response, told: read_vectors(response, endpoint, len(texts), about.model_copy(update=told)),
        )

    def breaker(self, endpoint: Endpoint) -> CircuitBreaker:
        """One per model and address."""
        return self._breakers.setdefault(vendor_name(endpoint), self.new_breaker())

    async def _attempt(
        self,
        endpoint: Endpoint,
        worst: float | None,
        send: Callable[[], Awaitable[Any]],
        read: Callable[[Any, Mapping[str, Any]], tuple[Read, Call]],
    ) -> tuple[Read, Call]:
        """What `read` makes of an answer and of {latency_ms, attempts}, after as many attempts as it takes."""
        vendor, breaker = vendor_name(endpoint), self.breaker(endpoint)
        for attempt in range(1, self.attempts + 1):
            async with self._limit:
                breaker.check(vendor)
                async with self._paid(worst) as settle:
                    started = time.monotonic()
                    try:
                        async with asyncio.timeout(self.deadline_s):
                            response = await send()
                        latency_ms = (time.monotonic() - started) * 1000
                        found, call = read(response, {"latency_ms": latency_ms, "attempts": attempt})
                    except Exception as error:
                        failed = read_failure(error, attempt, self.deadline_s, api_key(endpoint) or "")
                        breaker.record(ok=failed.alive, started=started)
                        if not failed.billed:
                            settle(0.0)
                    else:
                        breaker.record(ok=True, started=started)
                        settle(call.cost_usd)
                        return found, call
            if failed.wait_s is None or attempt == self.attempts or failed.wait_s > LONGEST_WAIT_S:
                raise failed.failure from None
            await asyncio.sleep(failed.wait_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    @asynccontextmanager
    async def _paid(self, worst: float | None) -> AsyncIterator[Callable[[float | None], None]]:
        """Reserve an attempt's worst case, waiting for calls in flight to be settled; yields how to settle it."""
        actual: float | None = None

        def settle(cost: float | None) -> None:
            nonlocal actual
            actual = cost

        async with self._settled:
            while not self.budget.reserve(worst):
                await self._settled.wait()
        try:
            yield settle
        finally:
            self.budget.settle(worst, actual)
            async with self._settled:
                self._settled.notify_all()


def vendor_name(endpoint: Endpoint) -> str:
    """What a breaker, and a count, is kept for."""
    return f"{endpoint.model} at {endpoint.api_base}" if endpoint.api_base else endpoint.model


def check_call(text: str | None, call: Call, endpoint: Endpoint, parameters: GenerationParameters) -> str:
    """The text of a call that keeps the contract. Raises AnswerRefused or InvalidAnswer."""
    return check_answer(
        text,
        requested_model=endpoint.model,
        served_model=call.served_model,
        finish_reason=call.finish_reason,
        output_tokens=call.visible_tokens,
        allow_unpinned=endpoint.allow_unpinned,
        max_tokens=parameters.max_tokens,
    )
