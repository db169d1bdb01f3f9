"""Every fault of a vendor ends as its typed failure, none as an answer; all through real LiteLLM and real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.vendor import Vendor, check_call
from tasks.vendor_endpoint import price_of
from touchstone.bundle import Endpoint, Price
from touchstone.cost import Budget
from touchstone.errors import (
    AnswerRefused,
    BadInput,
    CaseFailure,
    InvalidAnswer,
    OverBudget,
    VendorTimeout,
    VendorUnavailable,
)
from touchstone.prompts import GenerationParameters

PARAMETERS = GenerationParameters(temperature=0.0, max_tokens=200)
DOCUMENT = (
    '<document id="refunds" title="Refunds">\nYou can return an unused weather station within 30 days of delivery, '
    "and we refund the full price to the card you paid with, usually after five working days.\n</document>\n"
)
QUESTION = [{"role": "user", "content": f"{DOCUMENT}Question: Within how many days can I return a weather station?"}]


def endpoint(vendor, provider: str = "openai") -> Endpoint:
    model, base = {
        "openai": ("openai/gpt-4o-2024-11-20", vendor.api_base),
        "anthropic": ("anthropic/claude-sonnet-4-20250514", vendor.url),
        "gemini": ("gemini/gemini-2.0-flash-001", vendor.url),
    }[provider]
    return Endpoint(model=model, api_base=base, price=Price(input_per_million=1, output_per_million=2))


async def ask(vendor, provider: str = "openai", **settings) -> str:
    adapter = Vendor(**{"attempts": 1, "deadline_s": 5.0, **settings})
    found = endpoint(vendor, provider)
    text, call = await adapter.complete(found, QUESTION, PARAMETERS, role="generation")
    return check_call(text, call, found, PARAMETERS)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
async def test_each_vendor_answers_and_its_call_is_recorded(vendor, provider: str) -> None:
    adapter = Vendor()
    found = endpoint(vendor, provider)
    text, call = await adapter.complete(found, QUESTION, PARAMETERS, role="generation", prompt_version="1.0.0")
    assert "30 days" in check_call(text, call, found, PARAMETERS)
    assert call.served_model
    assert found.model.endswith(call.served_model)
    assert call.input_tokens > 0
    assert call.output_tokens > 0
    assert call.cost_usd == pytest.approx((call.input_tokens + 2 * call.output_tokens) / 1e6)
    assert call.latency_ms > 0
    assert call.prompt_version == "1.0.0"


FAULTS = [
    ({"kind": "rate_limit", "retry_after_s": 0.1}, VendorUnavailable, "429"),
    ({"kind": "server_error", "status": 500}, VendorUnavailable, "InternalServerError"),
    ({"kind": "server_error", "status": 503}, VendorUnavailable, "ServiceUnavailable"),
    ({"kind": "timeout"}, VendorTimeout, "within"),
    ({"kind": "drip", "interval_s": 0.2, "chunk_bytes": 4}, VendorTimeout, "within"),
    ({"kind": "disconnect"}, VendorUnavailable, "onnect"),
    ({"kind": "malformed_json"}, InvalidAnswer, "JSON"),
    ({"kind": "empty_choices"}, InvalidAnswer, "no choices"),
    ({"kind": "null_content"}, InvalidAnswer, "empty"),
    ({"kind": "cut"}, InvalidAnswer, "cut"),
    ({"kind": "length"}, InvalidAnswer, "max_tokens"),
    ({"kind": "content_filter"}, AnswerRefused, "filter"),
    ({"kind": "wrong_model", "model": "gpt-4o-mini-2024-07-18"}, InvalidAnswer, "the pin does not hold"),
    ({"kind": "deprecated"}, VendorUnavailable, "404"),
]


@pytest.mark.parametrize(
    ("fault", "failure", "reason"), FAULTS, ids=[f"{f[0]['kind']}-{i}" for i, f in enumerate(FAULTS)]
)
async def test_a_fault_ends_as_its_typed_failure(vendor, fault: dict, failure: type[CaseFailure], reason: str) -> None:
    vendor.put("faults", [fault])
    with pytest.raises(failure, match=reason):
        await ask(vendor, deadline_s=1.0)


@pytest.mark.parametrize("provider", ["anthropic", "gemini"])
@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        ("rate_limit", VendorUnavailable),
        ("server_error", VendorUnavailable),
        ("malformed_json", CaseFailure),
        ("empty_choices", CaseFailure),
        ("null_content", CaseFailure),
        ("cut", InvalidAnswer),
        ("length", InvalidAnswer),
        ("content_filter", AnswerRefused),
        ("deprecated", VendorUnavailable),
    ],
)
async def test_a_fault_is_a_failure_at_the_other_vendors_too(vendor, provider: str, kind: str, failure: type) -> None:
    vendor.fault(kind)
    with pytest.raises(failure):
        await ask(vendor, provider, deadline_s=2.0)


@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "malformed_json", "empty_choices", "disconnect"])
async def test_a_passing_fault_is_retried_and_counted(vendor, kind: str) -> None:
    extra = {"retry_after_s": 0.05} if kind == "rate_limit" else {}
    vendor.fault(kind, times=1, **extra)
    _, call = await Vendor(attempts=3).complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    assert call.attempts == 2


async def test_retry_after_is_honoured_and_too_long_a_wait_is_a_failure(vendor) -> None:
    vendor.fault("rate_limit", times=1, retry_after_s=1.2)
    started = time.monotonic()
    await ask(vendor, attempts=2)
    assert time.monotonic() - started >= 1.2
    vendor.put("faults", [{"kind": "rate_limit", "retry_after_s": 600}])
    with pytest.raises(VendorUnavailable, match="429"):
        await ask(vendor, attempts=2)


async def test_a_dripping_vendor_is_cut_off_at_the_deadline(vendor) -> None:
    vendor.put("faults", [{"kind": "drip", "interval_s": 0.5, "chunk_bytes": 2}])
    started = time.monotonic()
    with pytest.raises(VendorTimeout):
        await ask(vendor, deadline_s=0.7)
    assert time.monotonic() - started < 2.0


async def test_a_changed_fingerprint_is_recorded_not_refused(vendor) -> None:
    _, before = await Vendor().complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    vendor.fault("fingerprint", value="fp_other")
    _, after = await Vendor().complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    assert before.fingerprint != after.fingerprint == "fp_other"


async def test_an_open_circuit_stops_calls_to_a_vendor_that_is_down(vendor) -> None:
    vendor.fault("server_error")
    adapter = Vendor(attempts=1)
    for _ in range(20):
        with pytest.raises(VendorUnavailable):
            await adapter.complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    assert vendor.counters()["calls"] == 8


async def test_nothing_is_sent_that_could_pass_the_spend_cap(vendor) -> None:
    adapter = Vendor(budget=Budget(cap_usd=0.000_001))
    with pytest.raises(OverBudget, match="cap"):
        await adapter.complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    assert vendor.counters()["calls"] == 0


async def test_calls_wait_for_those_in_flight_before_the_cap_refuses_them(vendor) -> None:
    found = endpoint(vendor)
    one = await Vendor().complete(found, QUESTION, PARAMETERS, role="generation")
    worst = sum(len(message["content"].encode()) + 8 for message in QUESTION) / 1e6 + 200 * 2 / 1e6
    adapter = Vendor(budget=Budget(cap_usd=1.5 * worst + 4 * (one[1].cost_usd or 0)))
    calls = [adapter.complete(found, QUESTION, PARAMETERS, role="generation") for _ in range(5)]
    answers = await asyncio.gather(*calls)
    assert len(answers) == 5
    assert adapter.budget.spent_usd <= adapter.budget.cap_usd


async def test_every_attempt_that_may_be_billed_counts_against_the_cap(vendor) -> None:
    vendor.fault("malformed_json")
    adapter = Vendor(attempts=3, budget=Budget(cap_usd=1.0))
    with pytest.raises(InvalidAnswer):
        await adapter.complete(endpoint(vendor), QUESTION, PARAMETERS, role="generation")
    worst = sum(len(message["content"].encode()) + 8 for message in QUESTION) / 1e6 + 200 * 2 / 1e6
    assert adapter.budget.spent_usd == pytest.approx(3 * worst)


async def test_what_was_turned_away_or_never_arrived_costs_nothing(vendor) -> None:
    vendor.put("faults", [{"kind": "rate_limit", "retry_after_s": 0.01}])
    adapter = Vendor(attempts=2, budget=Budget(cap_usd=1.0))
    nowhere = endpoint(vendor).model_copy(update={"api_base": "http://127.0.0.1:1/v1"})
    for target in (endpoint(vendor), nowhere):
        with pytest.raises(VendorUnavailable):
            await adapter.complete(target, QUESTION, PARAMETERS, role="generation")
    assert adapter.budget.spent_usd == 0.0


async def test_a_short_outage_under_many_calls_in_flight_is_survived(vendor) -> None:
    vendor.fault("server_error", times=1)
    adapter = Vendor(concurrency=32, attempts=4)
    asked = [[{"role": "user", "content": f"Context: Shop {n} opens at 9.\nQuestion: When?"}] for n in range(32)]
    calls = [adapter.complete(endpoint(vendor), one, PARAMETERS, role="generation") for one in asked]
    assert {call.attempts for _, call in await asyncio.gather(*calls)} == {2}


class HalfACharacter(BaseHTTPRequestHandler):
    """A vendor whose answer ends in one half of an emoji, as a cut at a byte limit leaves it."""

    def do_POST(self) -> None:
        message = {"role": "assistant", "content": "Sure \ud83d"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-11-20"}
        body = json.dumps(reply | {"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


async def test_half_a_character_is_an_invalid_answer() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HalfACharacter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    price = Price(input_per_million=1, output_per_million=2)
    base = f"http://127.0.0.1:{server.server_port}/v1"
    found = Endpoint(model="openai/gpt-4o-2024-11-20", api_base=base, price=price)
    try:
        with pytest.raises(InvalidAnswer, match="half a character"):
            await Vendor(attempts=1).complete(found, QUESTION, PARAMETERS, role="generation")
    finally:
        server.shutdown()
        server.server_close()


async def test_a_secret_in_an_error_text_is_redacted(vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-verysecret1234567890")
    vendor.fault("server_error")
    keyed = endpoint(vendor).model_copy(update={"api_key_env": "MY_KEY"})
    with pytest.raises(VendorUnavailable) as caught:
        await Vendor(attempts=1).complete(keyed, QUESTION, PARAMETERS, role="generation")
    assert "verysecret" not in str(caught.value)


async def test_a_named_key_that_is_not_set_is_bad_input(vendor) -> None:
    keyed = endpoint(vendor).model_copy(update={"api_key_env": "TOUCHSTONE_TEST_NO_SUCH_KEY"})
    with pytest.raises(BadInput, match="TOUCHSTONE_TEST_NO_SUCH_KEY is not set"):
        await Vendor().complete(keyed, QUESTION, PARAMETERS, role="generation")


def test_an_unknown_price_is_none_not_free() -> None:
    unknown = Endpoint(model="openai/nobody-2026-01-01", api_base="http://127.0.0.1:1/v1")
    assert price_of(unknown) is None
    assert price_of(Endpoint(model="openai/gpt-4o-2024-11-20")) is not None
