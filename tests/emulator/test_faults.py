"""Each fault reaches a real LiteLLM caller as the trouble it stands for, and is counted."""

import asyncio
import base64
import math
import struct
import time
from typing import Any

import litellm
import pytest

QUESTION = "How long do I have to return an item?"
ERRORS = {
    "rate_limit": litellm.exceptions.RateLimitError,
    "server_error": litellm.exceptions.InternalServerError,
    "deprecated": litellm.exceptions.NotFoundError,
}
# What LiteLLM makes of a broken transmission differs by vendor; Gemini's cut JSON even looks like our own mistake.
BROKEN = (
    litellm.exceptions.APIError,
    litellm.exceptions.InternalServerError,
    litellm.exceptions.APIConnectionError,
    litellm.exceptions.BadRequestError,
)
VENDORS = ["openai", "anthropic", "gemini"]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", list(ERRORS))
async def test_a_refusal_raises_the_vendors_error(emulator: Any, kb: Any, kind: str, vendor: str) -> None:
    emulator.fail({"kind": kind})
    with pytest.raises(ERRORS[kind]):
        await emulator.ask(kb.prompt(QUESTION), vendor=vendor)
    assert emulator.counters["faults"] == {kind: 1}
    assert emulator.counters["completed"] == 0


async def test_a_rate_limit_says_when_to_come_back(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "rate_limit", "retry_after_s": 7})
    with pytest.raises(litellm.exceptions.RateLimitError) as caught:
        await emulator.ask(kb.prompt(QUESTION))
    assert caught.value.litellm_response_headers["retry-after"] == "7"


async def test_a_server_error_has_the_status_that_was_ordered(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "server_error", "status": 503})
    with pytest.raises(litellm.exceptions.ServiceUnavailableError):
        await emulator.ask(kb.prompt(QUESTION))


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", ["malformed_json", "disconnect"])
async def test_a_broken_transmission_raises(emulator: Any, kb: Any, kind: str, vendor: str) -> None:
    emulator.fail({"kind": kind})
    with pytest.raises(BROKEN):
        await emulator.ask(kb.prompt(QUESTION), vendor=vendor)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_timeout_never_answers_and_ends_when_the_client_leaves(emulator: Any, kb: Any, vendor: str) -> None:
    emulator.fail({"kind": "timeout"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await emulator.ask(kb.prompt(QUESTION), vendor=vendor)
    assert emulator.counters["completed"] == 0


async def test_a_drip_outlasts_litellms_own_timeout(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "drip", "interval_s": 0.02, "chunk_bytes": 16})
    start = time.monotonic()
    assert "30 days" in await emulator.text(kb.prompt(QUESTION), timeout=0.3)
    assert time.monotonic() - start > 0.4


async def test_latency_waits_around_its_median(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "latency", "median_ms": 150, "sigma": 0})
    start = time.monotonic()
    await emulator.ask(kb.prompt(QUESTION))
    assert 0.14 < time.monotonic() - start < 1


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_cut_answer_pretends_to_be_complete(emulator: Any, kb: Any, vendor: str) -> None:
    whole = await emulator.text(kb.prompt(QUESTION), vendor=vendor)
    emulator.fail({"kind": "cut"})
    response = await emulator.ask(kb.prompt(QUESTION), vendor=vendor)
    assert response.choices[0].finish_reason == "stop"
    assert response.choices[0].message.content == whole[: len(whole) // 2]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", ["length", "content_filter"])
async def test_a_finish_reason_tells_what_happened(emulator: Any, kb: Any, kind: str, vendor: str) -> None:
    emulator.fail({"kind": kind})
    assert (await emulator.ask(kb.prompt(QUESTION), vendor=vendor)).choices[0].finish_reason == kind


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", ["empty_choices", "null_content"])
async def test_an_empty_answer_arrives_as_ok_without_text(emulator: Any, kb: Any, kind: str, vendor: str) -> None:
    emulator.fail({"kind": kind})
    response = await emulator.ask(kb.prompt(QUESTION), vendor=vendor)
    assert not response.choices or response.choices[0].message.content is None


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_wrong_model_is_named_in_the_answer(emulator: Any, kb: Any, vendor: str) -> None:
    emulator.fail({"kind": "wrong_model", "model": "another-model-2026-01-01"})
    assert (await emulator.ask(kb.prompt(QUESTION), vendor=vendor)).model == "another-model-2026-01-01"


async def test_a_changed_fingerprint_is_shown(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "fingerprint", "value": "fp_next"})
    assert (await emulator.ask(kb.prompt(QUESTION))).system_fingerprint == "fp_next"


async def test_a_retry_succeeds_when_a_fault_is_limited_to_first_attempts(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "rate_limit", "times": 1})
    with pytest.raises(litellm.exceptions.RateLimitError):
        await emulator.ask(kb.prompt(QUESTION))
    assert "30 days" in await emulator.text(kb.prompt(QUESTION))


async def test_a_fault_for_one_model_spares_the_others(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "server_error", "models": ["judge-2025-01-01"]})
    assert "30 days" in await emulator.text(kb.prompt(QUESTION), model="answerer-2025-01-01")
    with pytest.raises(litellm.exceptions.InternalServerError):
        await emulator.ask(kb.prompt(QUESTION), model="judge-2025-01-01")


async def test_a_share_strikes_the_same_calls_on_every_run(emulator: Any) -> None:
    def outcomes() -> list[int]:
        emulator.fail({"kind": "server_error", "share": 0.3})
        bodies = ({"model": "m", "messages": [{"role": "user", "content": f"Question: {n}"}]} for n in range(100))
        return [emulator.send("POST", "/v1/chat/completions", body)[0] for body in bodies]

    first = outcomes()
    assert first == outcomes()
    assert 15 <= first.count(500) <= 45


async def test_faults_of_different_stages_add_up(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "cut"}, {"kind": "wrong_model", "model": "x"}, {"kind": "fingerprint"}, {"kind": "length"})
    response = await emulator.ask(kb.prompt(QUESTION))
    assert (response.model, response.system_fingerprint) == ("x", "fp_changed")
    assert response.choices[0].finish_reason == "stop"
    assert emulator.counters["faults"] == {"cut": 1, "wrong_model": 1, "fingerprint": 1}


async def test_embeddings_fail_too(emulator: Any) -> None:
    emulator.fail({"kind": "rate_limit"})
    with pytest.raises(litellm.exceptions.RateLimitError):
        await litellm.aembedding(
            model="openai/e", api_base=f"{emulator.url}/v1", api_key="sk-offline", input=["x"], max_retries=0
        )


def embedded(emulator: Any, encoding: str = "float") -> list[Any]:
    """The rows of two texts."""
    body = {"model": "e", "input": ["late parcel", "broken parcel"], "encoding_format": encoding}
    return emulator.send("POST", "/v1/embeddings", body)[1]["data"]


def test_vectors_can_be_missing_shuffled_ragged_zero_or_not_numbers(emulator: Any) -> None:
    good = embedded(emulator)

    def under(kind: str) -> list[Any]:
        emulator.fail({"kind": kind})
        return embedded(emulator)

    assert under("missing_vector") == good[:1]
    assert under("shuffled_vectors") == good[::-1]
    assert [len(row["embedding"]) for row in under("ragged_vectors")] == [256, 255]
    assert not any(under("zero_vector")[1]["embedding"])
    assert math.isnan(under("nan_vector")[1]["embedding"][0])
    sent = base64.b64decode(embedded(emulator, "base64")[1]["embedding"])
    assert math.isnan(struct.unpack("<256f", sent)[0])
    assert emulator.counters["faults"]["nan_vector"] == 2


async def test_vector_faults_spare_chat_and_content_faults_spare_embeddings(emulator: Any, kb: Any) -> None:
    emulator.fail({"kind": "missing_vector"}, {"kind": "null_content"})
    assert len(embedded(emulator)) == 1
    assert (await emulator.ask(kb.prompt(QUESTION))).choices[0].message.content is None
    assert emulator.counters["faults"] == {"missing_vector": 1, "null_content": 1}
