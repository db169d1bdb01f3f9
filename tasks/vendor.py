"""One vendor call through LiteLLM: deadline, bounded retry, circuit breaker, budget, strict contract.

LiteLLM's own time-out, retry, budget and fall-back stay off: its time-out is no deadline against a vendor that
drips bytes, its budget lets calls through, and its fall-backs swap the model under test.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from tasks.environment import apply_defaults
from touchstone.bundle import Endpoint, Price
from touchstone.contract import check_answer
from touchstone.cost import Budget, call_cost, most_tokens
from touchstone.errors import AnswerRefused, BadInput, CaseFailure, InvalidAnswer, VendorTimeout, VendorUnavailable
from touchstone.privacy import redact_secrets
from touchstone.prompts import GenerationParameters
from touchstone.results import Call

_LONGEST_WAIT_S = 30.0


@cache
def litellm_module() -> ModuleType:
    """LiteLLM, imported late (4 to 8 s) and made quiet."""
    apply_defaults()
    import litellm

    litellm.suppress_debug_info = True
    litellm.drop_params = False  # what a vendor would refuse is dropped by us, and recorded
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    return litellm


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
    """Makes vendor calls for one run; all share its limit of calls in flight, its budget and its breakers."""

    concurrency: int = 32
    deadline_s: float = 60.0
    attempts: int = 4
    budget: Budget = field(default_factory=Budget)
    _limit: asyncio.Semaphore = field(init=False, repr=False)
    _settled: asyncio.Condition = field(init=False, repr=False)
    _breakers: dict[str, CircuitBreaker] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._limit = asyncio.Semaphore(self.concurrency)
        self._settled = asyncio.Condition()

    async def complete(
        self,
        endpoint: Endpoint,
        messages: Sequence[Mapping[str, str]],
        parameters: GenerationParameters,
        *,
        role: str,
        prompt_version: str | None = None,
        response_format: Mapping[str, str] | None = None,
    ) -> tuple[str | None, Call]:
        """The answer's text and the call's record, the contract not yet checked (`check_call` does).

        Raises a CaseFailure when there is no answer; OverBudget before anything is sent.
        """
        request, dropped = _request(endpoint, messages, parameters, response_format)
        worst = _worst_cost(endpoint, messages, parameters)
        vendor = f"{endpoint.model} at {endpoint.api_base}" if endpoint.api_base else endpoint.model
        breaker = self._breakers.setdefault(vendor, CircuitBreaker())
        for attempt in range(1, self.attempts + 1):
            async with self._limit:
                breaker.check(vendor)
                async with self._paid(worst) as settle:
                    started = time.monotonic()
                    try:
                        async with asyncio.timeout(self.deadline_s):
                            response = await litellm_module().acompletion(**request)
                        latency_ms = (time.monotonic() - started) * 1000
                        text, call = _read(response, endpoint, role, latency_ms, attempt, prompt_version, dropped)
                    except Exception as error:
                        failure, wait_s = _translate(error, attempt, self.deadline_s, request)
                        breaker.record(ok=_is_alive(error, failure, wait_s), started=started)
                        if _is_unbilled(error):
                            settle(0.0)
                    else:
                        breaker.record(ok=True, started=started)
                        settle(call.cost_usd)
                        return text, call
            if wait_s is None or attempt == self.attempts or wait_s > _LONGEST_WAIT_S:
                raise failure from None
            await asyncio.sleep(wait_s)
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


def api_key(endpoint: Endpoint) -> str | None:
    """The endpoint's key; None leaves the choice to LiteLLM. Raises BadInput when a named variable is not set."""
    if endpoint.api_key_env:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise BadInput(f"{endpoint.api_key_env} is not set; {endpoint.model} needs it (export it, or use .env)")
        return key
    return "not-needed-on-loopback" if endpoint.is_local else None


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise BadInput, before any call, when the vendor is not known or its key is missing."""
    try:
        litellm_module().get_llm_provider(endpoint.model)
    except Exception:  # LiteLLM's BadRequestError, and plain ones
        raise BadInput(
            f"model {endpoint.model!r}: LiteLLM knows no such vendor; write vendor/model, as openai/..."
        ) from None
    if endpoint.api_base and not endpoint.is_local and not endpoint.api_key_env:
        raise BadInput(
            f"{endpoint.api_base} is not this machine: name the variable that holds its key in `api_key_env`, or "
            "LiteLLM would send it the key of another vendor"
        )
    if api_key(endpoint) is None:
        missing = litellm_module().validate_environment(model=endpoint.model)["missing_keys"]
        if missing:
            raise BadInput(
                f"{' or '.join(missing)} is not set; {endpoint.model} needs it. "
                "Offline, use a bundle whose api_base is `touchstone emulator serve`"
            )


def price_of(endpoint: Endpoint) -> Price | None:
    """The endpoint's own price, else LiteLLM's; None is unknown, not free."""
    if endpoint.price is None:
        return _listed_price(endpoint.model)
    if endpoint.model not in _listed_models():
        _register(endpoint.model, endpoint.price.input_per_million, endpoint.price.output_per_million)
    return endpoint.price


@cache
def _listed_price(model: str) -> Price | None:
    try:
        info = litellm_module().get_model_info(model)
    except Exception:  # LiteLLM raises a plain Exception for a model that it does not know
        return None
    into, out = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if info.get("key") not in _listed_models() or not (into or out):
        return None
    return Price(input_per_million=(into or 0) * 1e6, output_per_million=(out or 0) * 1e6)


@cache
def _listed_models() -> frozenset[str]:
    """LiteLLM's own price list, as it was before we registered anything."""
    return frozenset(litellm_module().model_cost)


@cache
def _register(model: str, input_per_million: float, output_per_million: float) -> None:
    """Tell LiteLLM the price, or it searches its whole price list for a model that is not in it at every call."""
    entry = {
        "input_cost_per_token": input_per_million / 1e6,
        "output_cost_per_token": output_per_million / 1e6,
        "litellm_provider": model.partition("/")[0],
        "mode": "chat",
    }
    litellm_module().register_model({model: entry})


def _request(
    endpoint: Endpoint,
    messages: Sequence[Mapping[str, str]],
    parameters: GenerationParameters,
    response_format: Mapping[str, str] | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """LiteLLM's arguments, and the parameters that this vendor would refuse."""
    wanted = parameters.model_dump(exclude_none=True)
    if response_format is not None:
        wanted["response_format"] = dict(response_format)
    supported = _supported(endpoint.model)
    dropped = tuple(sorted(name for name in wanted if name not in supported))
    if "anthropic" in endpoint.model and {"temperature", "top_p"} <= wanted.keys():
        dropped = (*dropped, "top_p")  # newer Claude models refuse the two together
    request: dict[str, Any] = {name: value for name, value in wanted.items() if name not in dropped}
    request |= {"model": endpoint.model, "messages": list(messages), "max_retries": 0, "num_retries": 0}
    if endpoint.api_base:
        request["api_base"] = endpoint.api_base
    if key := api_key(endpoint):
        request["api_key"] = key
    return request, dropped


@cache
def _supported(model: str) -> frozenset[str]:
    names = litellm_module().get_supported_openai_params(model=model)
    return frozenset(names or ("temperature", "max_tokens", "top_p", "seed", "response_format"))


def _worst_cost(
    endpoint: Endpoint, messages: Sequence[Mapping[str, str]], parameters: GenerationParameters
) -> float | None:
    prompt = sum(most_tokens(message["content"]) for message in messages)
    return call_cost(price_of(endpoint), prompt, parameters.max_tokens)


def _read(
    response: Any,
    endpoint: Endpoint,
    role: str,
    latency_ms: float,
    attempts: int,
    prompt_version: str | None,
    dropped: tuple[str, ...],
) -> tuple[str | None, Call]:
    if not response.choices:
        raise InvalidAnswer("the answer has no choices")
    choice = response.choices[0]
    text: str | None = choice.message.content
    if text is not None and not _is_unicode(text):
        raise InvalidAnswer("the answer ends in half a character (a lone surrogate)")
    usage = getattr(response, "usage", None)
    into, out = getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0
    call = Call(
        role=role,
        requested_model=endpoint.model,
        served_model=response.model or None,
        fingerprint=getattr(response, "system_fingerprint", None),
        finish_reason=choice.finish_reason,
        input_tokens=into,
        output_tokens=out,
        visible_tokens=_visible_tokens(usage),
        cost_usd=call_cost(price_of(endpoint), into, out) if into or out else None,
        latency_ms=latency_ms,
        attempts=attempts,
        prompt_version=prompt_version,
        dropped_parameters=dropped,
    )
    return text, call


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible_tokens(usage: Any) -> int | None:
    """Billed output tokens without hidden reasoning; None when the vendor told no usage."""
    billed = getattr(usage, "completion_tokens", None)
    if not billed:
        return None
    details = getattr(usage, "completion_tokens_details", None)
    return billed - (getattr(details, "reasoning_tokens", None) or 0)


def _translate(
    error: Exception, attempt: int, deadline_s: float, request: Mapping[str, Any]
) -> tuple[CaseFailure, float | None]:
    """(our failure, seconds to wait before the next attempt; None: another attempt is no use)."""
    litellm = litellm_module()
    backoff = min(_LONGEST_WAIT_S, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
    if isinstance(error, InvalidAnswer):
        return error, backoff
    if isinstance(error, TimeoutError | litellm.Timeout):
        return VendorTimeout(f"no complete answer within {deadline_s:g} s (attempt {attempt})"), backoff
    status = getattr(error, "status_code", None)
    reason = redact_secrets(str(error), (str(request.get("api_key", "")),))[:500]
    if isinstance(error, litellm.ContentPolicyViolationError):
        return AnswerRefused(reason), None
    if isinstance(error, litellm.NotFoundError):
        return VendorUnavailable(f"the model is gone or was never there (404): {reason}"), None
    if _is_unreadable(error):
        return InvalidAnswer(f"the answer is not the JSON it should be: {reason}"), backoff
    if isinstance(error, litellm.RateLimitError):
        return VendorUnavailable(f"rate limit (429): {reason}"), _retry_after(error) or backoff
    if status is not None and 400 <= int(status) < 500 and int(status) not in {408, 409, 425}:
        return VendorUnavailable(f"the vendor refused the request ({status}): {reason}"), None
    return VendorUnavailable(f"{type(error).__name__}: {reason}"), _retry_after(error) or backoff


def _is_alive(error: Exception, failure: CaseFailure, wait_s: float | None) -> bool:
    """A vendor that answers, however badly, is there: only silence and 5xx count against it."""
    answered = wait_s is None or isinstance(error, litellm_module().RateLimitError)
    return answered or not isinstance(failure, VendorUnavailable | VendorTimeout)


def _is_unbilled(error: Exception) -> bool:
    """The request never arrived, or was turned away: nobody bills that."""
    status = getattr(error, "status_code", None)
    turned_away = isinstance(status, int) and 400 <= status < 500 and status != 408 and not _is_unreadable(error)
    return turned_away or any(sign in str(error) for sign in ("Cannot connect to host", "Connection refused"))


def _is_unreadable(error: Exception) -> bool:
    return any(sign in str(error) for sign in ("JSONDecodeError", "Expecting value", "Unable to parse", "Unterminated"))


def _retry_after(error: Exception) -> float | None:
    """Seconds that the vendor asks us to wait; LiteLLM keeps the headers in one of three places."""
    response = getattr(error, "response", None)
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(error, "headers", None),
        getattr(response, "headers", None),
    ):
        try:
            return float(headers["retry-after"]) if headers else None
        except (KeyError, ValueError, TypeError):
            continue
    return None
