"""Every fault of a vendor ends as its typed failure, none as an answer; all through real LiteLLM and real HTTP."""

from __future__ import annotations

import time

import pytest

from tasks.vendor import Vendor, check_call, price_of
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
