"""Real LiteLLM reaches the emulator as OpenAI, as Anthropic and as Gemini."""

import base64
import struct
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running

VENDORS = ["openai", "anthropic", "gemini"]


@pytest.mark.parametrize("vendor", VENDORS)
async def test_each_vendor_answers_from_the_documents_with_usage(emulator: Any, kb: Any, vendor: str) -> None:
    response = await emulator.ask(kb.prompt("What does express shipping cost?"), kb.system, vendor=vendor)

    assert "$14.50" in response.choices[0].message.content
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.prompt_tokens > 100
    assert response.usage.completion_tokens > 5


@pytest.mark.parametrize("vendor", VENDORS)
async def test_the_answer_repeats_the_model_that_was_asked_for(emulator: Any, kb: Any, vendor: str) -> None:
    response = await emulator.ask(kb.prompt("Is a gift card refundable?"), vendor=vendor, model="some-model-2025-01-01")
    assert response.model == "some-model-2025-01-01"


async def test_a_base_url_with_v1_serves_anthropic_too(emulator: Any, kb: Any) -> None:
    emulator.url += "/v1"
    assert "30 days" in await emulator.text(kb.prompt("How long can I return an item?"), vendor="anthropic")


@pytest.mark.parametrize("vendor", VENDORS)
async def test_max_tokens_cuts_the_answer_and_says_so(emulator: Any, kb: Any, vendor: str) -> None:
    response = await emulator.ask(kb.prompt("Is a gift card refundable?"), vendor=vendor, max_tokens=4)
    assert response.choices[0].finish_reason == "length"
    assert response.usage.completion_tokens == 4


async def test_a_stream_carries_the_same_text(emulator: Any, kb: Any) -> None:
    question = kb.prompt("How long does the NW-500 battery last?")
    chunks = [chunk async for chunk in await emulator.ask(question, kb.system, stream=True)]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == await emulator.text(question, kb.system)


async def test_openai_log_probabilities_cover_the_text_and_repeat(emulator: Any, kb: Any) -> None:
    asked = {"logprobs": True, "top_logprobs": 3}
    first = await emulator.ask(kb.prompt("Is a gift card refundable?"), **asked)
    second = await emulator.ask(kb.prompt("Is a gift card refundable?"), **asked)

    rows = first.choices[0].logprobs.content
    assert "".join(row.token for row in rows) == first.choices[0].message.content
    assert all(row.logprob <= 0 and len(row.top_logprobs) == 3 for row in rows)
    assert all(row.top_logprobs[0].logprob >= row.top_logprobs[1].logprob for row in rows)
    assert [row.logprob for row in rows] == [row.logprob for row in second.choices[0].logprobs.content]


async def test_gemini_log_probabilities_arrive(emulator: Any, kb: Any) -> None:
    response = await emulator.ask(kb.prompt("Is a gift card refundable?"), vendor="gemini", logprobs=True)
    rows = response.choices[0].logprobs.content
    assert "".join(row.token for row in rows) == response.choices[0].message.content


async def test_embeddings_are_unit_vectors_of_the_wanted_size_near_for_shared_words(emulator: Any) -> None:
    import litellm

    texts = ["refund for a returned item", "refunds for returned items", "battery charging time"]
    response = await litellm.aembedding(
        model="openai/text-embedding-3-small",
        api_base=f"{emulator.url}/v1",
        api_key="sk-offline",
        input=texts,
        dimensions=96,
    )
    first, same, other = (row["embedding"] for row in response.data)

    assert len(first) == 96
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-5)
    assert dot(first, same) > 0.9 > 0.4 > dot(first, other)


async def test_gemini_embeds_a_batch_in_order(emulator: Any) -> None:
    import litellm

    texts = ["refund for a returned item", "battery charging time", "refunds for returned items"]
    response = await litellm.aembedding(
        model="gemini/gemini-embedding-001", api_base=emulator.url, api_key="sk-offline", input=texts, dimensions=96
    )
    first, other, same = (row["embedding"] for row in response.data)
    assert len(first) == 96
    assert dot(first, same) > 0.9 > 0.4 > dot(first, other)


def test_base64_holds_the_same_vector_as_numbers(emulator: Any) -> None:
    def ask(encoding: str) -> Any:
        body = {"model": "e", "input": "late parcel", "encoding_format": encoding}
        return emulator.send("POST", "/v1/embeddings", body)[1]["data"][0]["embedding"]

    numbers = ask("float")
    assert struct.unpack(f"<{len(numbers)}f", base64.b64decode(ask("base64"))) == pytest.approx(numbers)


def test_an_alias_moves_the_vectors_and_nothing_shows_it(emulator: Any) -> None:
    def ask() -> tuple[list[float], str]:
        _, answer = emulator.send("POST", "/v1/embeddings", {"model": "e", "input": "late parcel"})
        return answer["data"][0]["embedding"], answer["model"]

    before, shown = ask()
    emulator.send("PUT", "/control/aliases", {"e": "e-retrained"})
    after, shown_then = ask()
    assert abs(dot(before, after)) < 0.5
    assert shown == shown_then == "e"


def dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def test_embeddings_default_to_256_dimensions(emulator: Any) -> None:
    _, answer = emulator.send("POST", "/v1/embeddings", {"model": "e", "input": "one"})
    assert len(answer["data"][0]["embedding"]) == 256


def test_health_and_models_are_served() -> None:
    import json
    import urllib.request

    with running(EmulatorOptions(aliases={"gpt-4": "gpt-4-0613"})) as url:
        assert json.load(urllib.request.urlopen(f"{url}/health"))["status"] == "ok"
        listed = json.load(urllib.request.urlopen(f"{url}/v1/models"))
    assert [row["id"] for row in listed["data"]] == ["gpt-4"]


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 400, "model"),
        ("/v1/chat/completions", {"model": "m"}, 400, "messages"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "system", "content": "x"}]}, 400, "user message"),
        ("/v1/chat/completions", {"model": "m", "messages": ["x"]}, 400, "user message"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user"}], "temperature": 9}, 400, "temperature"),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user"}], "max_tokens": "x"}, 400, "max_tokens"),
        ("/v1/messages", {"model": "m", "messages": []}, 400, "messages"),
        ("/v1beta/models/m:generateContent", {"contents": [7]}, 400, "shape"),
        ("/v1/embeddings", {"model": "m", "input": []}, 400, "input"),
        ("/v1/embeddings", {"model": "m", "input": "x", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1beta/models/m:batchEmbedContents", {"requests": []}, 400, "shape"),
        ("/v1beta/models/m:batchEmbedContents", {"requests": [{"content": {"parts": [{"text": ""}]}}]}, 400, "input"),
        ("/v1/moderations", {}, 404, "no route"),
    ],
)
def test_a_bad_request_is_refused_by_name(emulator: Any, path: str, body: object, status: int, named: str) -> None:
    answered, error = emulator.send("POST", path, body)
    assert answered == status
    assert named in error["error"]["message"]


def test_a_body_that_is_not_json_is_refused(emulator: Any) -> None:
    status, error = emulator.send("POST", "/v1/chat/completions", raw=b'{"model": ')
    assert status == 400
    assert "JSON" in error["error"]["message"]
