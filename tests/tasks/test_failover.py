"""Fail-over over real LiteLLM and HTTP: OpenAI, then Anthropic, then Gemini; each attempt recorded."""

from __future__ import annotations

import asyncio
import time

import pytest

from tasks.failover import Answered, Candidate, Failover
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.prompts import GenerationParameters, Prompt

MODELS = {
    "openai": ("openai/extractive-2026-01-15", "/v1"),
    "anthropic": ("anthropic/extractive-20260115", ""),
    "gemini": ("gemini/extractive-001", ""),
}
DOCUMENT = (
    '<document id="returns" title="Returns">\nYou can return an unused weather station within 30 days of '
    "delivery, and we refund the full price to the card you paid with, usually after five working days.\n</document>\n"
)
PROMPT = Prompt(
    version="1.0.0",
    template=DOCUMENT + "Question: {question}",
    parameters=GenerationParameters(temperature=0, max_tokens=200),
)


def candidates(vendor, *names: str, **fields: object) -> list[Candidate]:
    found = []
    for place, name in enumerate(names or MODELS):
        model, path = MODELS[name]
        bundle = {"name": name, "model": model, "api_base": vendor.url + path, "prompt": "support@1.0.0"}
        price = {"price": {"input_per_million": 1, "output_per_million": 2}}
        definition = Definition(bundle=Bundle.model_validate(bundle | price | fields), prompt=PROMPT)
        found.append(Candidate(definition, is_fallback=place > 0))
    return found


async def messages(candidate: Candidate) -> list[dict[str, str]]:
    return PROMPT.messages(question="Within how many days can I return a weather station?")


def down(vendor, *names: str, kind: str = "server_error", **parameters: object) -> None:
    models = [MODELS[name][0].rpartition("/")[2] for name in names]
    vendor.put("faults", [{"kind": kind, "models": models, **parameters}])


def outcomes(answered: Answered) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.outcome) for attempt in answered.attempts]


async def test_the_bundles_own_model_answers_while_it_can(vendor) -> None:
    failover = Failover()
    answered = await failover.answer(candidates(vendor), messages)
    assert answered.text
    assert "30 days" in answered.text
    assert outcomes(answered) == [("openai", "ok")]
    assert answered.candidate
    assert not answered.candidate.is_fallback


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        (["openai"], [("openai", "vendor_error"), ("anthropic", "ok")]),
        (["openai", "anthropic"], [("openai", "vendor_error"), ("anthropic", "vendor_error"), ("gemini", "ok")]),
    ],
)
async def test_the_next_vendor_answers_when_one_is_away(vendor, away: list[str], expected: list) -> None:
    down(vendor, *away)
    answered = await Failover().answer(candidates(vendor), messages)
    assert outcomes(answered) == expected
    assert answered.text
    assert answered.candidate
    assert answered.candidate.is_fallback
    assert answered.attempts[-1].is_fallback
    assert answered.calls[0].requested_model.startswith(expected[-1][0])


@pytest.mark.parametrize("kind", ["rate_limit", "deprecated", "malformed_json", "cut", "wrong_model", "timeout"])
async def test_whatever_breaks_the_contract_goes_to_the_next_vendor(vendor, kind: str) -> None:
    more = {"model": "other-2026-01-01"} if kind == "wrong_model" else {}
    down(vendor, "openai", kind=kind, **more)
    answered = await Failover(attempt_deadline_s=2.0).answer(candidates(vendor), messages)
    assert answered.attempts[0].outcome != "ok"
    assert answered.attempts[0].reason
    assert answered.attempts[1].outcome == "ok"


async def test_a_refusal_by_a_content_filter_is_not_taken_elsewhere(vendor) -> None:
    down(vendor, "openai", kind="content_filter")
    answered = await Failover().answer(candidates(vendor), messages)
    assert outcomes(answered) == [("openai", "refused")]
    assert answered.failure
    assert answered.failure.kind == "refused"


async def test_with_every_vendor_away_the_failure_is_data_and_all_were_asked(vendor) -> None:
    down(vendor, *MODELS)
    answered = await Failover().answer(candidates(vendor), messages)
    assert [outcome for _, outcome in outcomes(answered)] == ["vendor_error"] * 3
    assert answered.text is None
    assert answered.failure
    assert answered.failure.kind == "vendor_error"


async def test_an_open_circuit_skips_a_vendor_and_closes_once_it_is_back(vendor) -> None:
    down(vendor, "openai")
    failover = Failover(threshold=2, cool_down_s=0.4)
    for _ in range(5):
        answered = await failover.answer(candidates(vendor), messages)
        assert answered.text
    assert outcomes(answered) == [("openai", "skipped"), ("anthropic", "ok")]
    openai, anthropic = failover.report()
    assert (openai["breaker"], openai["asked"], openai["skipped"]) == ("open", 2, 3)
    assert (anthropic["breaker"], anthropic["answered"], anthropic["success"]) == ("closed", 5, 1.0)
    vendor.heal()
    await asyncio.sleep(0.5)
    answered = await failover.answer(candidates(vendor), messages)
    assert answered.attempts[0].breaker == "probing"
    assert outcomes(answered) == [("openai", "ok")]
    assert failover.report()[0]["breaker"] == "closed"


async def test_counters_tell_cost_latency_and_success_per_vendor(vendor) -> None:
    failover = Failover()
    for _ in range(3):
        await failover.answer(candidates(vendor), messages)
    down(vendor, "openai", times=1)
    await failover.answer(candidates(vendor), messages)
    openai, anthropic = failover.report()
    assert (openai["asked"], openai["answered"], openai["failed"]) == (4, 3, {"vendor_error": 1})
    assert openai["success"] == 0.75
    assert openai["cost_usd"] > 0
    assert openai["latency_ms"]["p50"] > 0
    assert anthropic["asked"] == 1


async def test_all_vendors_share_one_deadline(vendor) -> None:
    down(vendor, *MODELS, kind="timeout")
    started = time.monotonic()
    answered = await Failover(total_deadline_s=0.8, attempt_deadline_s=0.5).answer(candidates(vendor), messages)
    assert time.monotonic() - started < 3
    assert answered.failure
    assert answered.failure.kind == "timeout"
    assert [outcome for _, outcome in outcomes(answered)][:2] == ["timeout", "timeout"]
    assert answered.attempts[2].outcome in {"timeout", "skipped"}


async def test_a_key_that_is_not_set_is_passed_over_and_said(vendor) -> None:
    first = candidates(vendor, "openai", api_key_env="TOUCHSTONE_TEST_NO_SUCH_KEY")
    answered = await Failover().answer([*first, *candidates(vendor, "gemini")], messages)
    assert outcomes(answered) == [("openai", "bad_input"), ("gemini", "ok")]
    assert "TOUCHSTONE_TEST_NO_SUCH_KEY" in answered.attempts[0].reason


async def test_without_a_candidate_nothing_answers(vendor) -> None:
    answered = await Failover().answer([], messages)
    assert answered.failure
    assert answered.attempts == ()
