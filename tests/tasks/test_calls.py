"""Calls paid once: a real vendor adapter over HTTP, whose emulator counts what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.calls import CaseCalls, ResponseCache
from tasks.spool import Spool
from tasks.vendor import Vendor
from tests.conftest import VendorControl
from touchstone.bundle import Endpoint, Price
from touchstone.errors import JudgeBroken, VendorUnavailable
from touchstone.prompts import GenerationParameters

PARAMETERS = GenerationParameters(temperature=0.0, max_tokens=50)
QUESTION = [{"role": "user", "content": "When does Larkvane open?"}]
OTHER = [{"role": "user", "content": "When does Larkvane close?"}]
ANSWERS = ("answer 1", "answer 2", "answer 3", "answer 4")  # they take turns


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[VendorControl]:
    """A vendor that answers the same question in another way each time, so that a call made again shows."""
    lines = [
        {"model": "turns-2026-01-15", "prompt": messages[0]["content"], "answer": answer}
        for messages in (QUESTION, OTHER)
        for answer in ANSWERS
    ]
    recording = tmp_path / "turns.jsonl"
    recording.write_text("\n".join(json.dumps(line) for line in lines))
    with running(EmulatorOptions(recordings=(recording,))) as url:
        yield VendorControl(url)


@pytest.fixture
def endpoint(vendor: VendorControl) -> Endpoint:
    price = Price(input_per_million=1, output_per_million=2)
    return Endpoint(model="openai/turns-2026-01-15", api_base=vendor.api_base, price=price)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResponseCache]:
    cache = ResponseCache(tmp_path / "state" / "response_cache.db")
    yield cache
    cache.close()


class Run:
    """A run's calls; `resumed` is the same run in the next process."""

    def __init__(self, folder: Path, endpoint: Endpoint, cache: ResponseCache | None, retry: bool = False) -> None:
        self.spool = Spool(folder)
        self._endpoint, self._cache = endpoint, cache
        self._finished = {key: done for key, done in self.spool.calls().items() if not (retry and done.bad)}

    def case(self, key: str = "case-1/0") -> CaseCalls:
        return CaseCalls(key, Vendor(attempts=1), self.spool, self._finished, self._cache)

    async def ask(self, calls: CaseCalls, messages: Any = QUESTION, **more: Any) -> Any:
        endpoint, parameters = more.pop("endpoint", self._endpoint), more.pop("parameters", PARAMETERS)
        return await calls.complete(endpoint, messages, parameters, **{"role": "judge", **more})


@pytest.fixture
def run(tmp_path: Path, endpoint: Endpoint, cache: ResponseCache) -> Callable[..., Run]:
    def open_run(name: str = "run", retry: bool = False) -> Run:
        return Run(tmp_path / name, endpoint, cache, retry)

    return open_run


def refuse(*texts: str) -> Callable[[str], str]:
    """Accepts every text but these."""

    def accept(text: str) -> str:
        if text in texts:
            raise JudgeBroken(f"{text} is no good")
        return text.upper()

    return accept


async def test_a_call_of_a_case_is_paid_once_however_often_the_run_is_resumed(run, vendor) -> None:
    first = run()
    calls = first.case()
    assert await first.ask(calls) == "answer 1"
    for _ in range(2):
        resumed = run()
        again = resumed.case()
        assert await resumed.ask(again) == "answer 1"
        assert again.calls == calls.calls
    assert vendor.counters()["calls"] == 1


async def test_the_same_request_twice_in_one_case_is_two_calls(run, vendor) -> None:
    first = run()
    calls = first.case()
    assert [await first.ask(calls) for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    resumed = run()
    again = resumed.case()
    assert [await resumed.ask(again) for _ in range(4)] == list(ANSWERS)
    assert vendor.counters()["calls"] == 4


async def test_each_case_and_trial_pays_for_its_own_call(run, vendor) -> None:
    opened = run()
    keys = ("case-1/0", "case-1/1", "case-2/0")
    answers = [await opened.ask(opened.case(key)) for key in keys]
    assert answers == ["answer 1", "answer 2", "answer 3"]
    resumed = run()
    assert [await resumed.ask(resumed.case(key)) for key in reversed(keys)] == answers[::-1]
    assert vendor.counters()["calls"] == 3


async def test_another_message_parameter_endpoint_or_format_is_another_call(run, vendor, endpoint) -> None:
    await run().ask(run().case())
    resumed = run()
    calls = resumed.case()
    elsewhere = endpoint.model_copy(update={"api_base": vendor.api_base.replace("127.0.0.1", "localhost")})
    await resumed.ask(calls, OTHER)
    await resumed.ask(calls, parameters=PARAMETERS.model_copy(update={"max_tokens": 51}))
    await resumed.ask(calls, endpoint=elsewhere)
    await resumed.ask(calls, response_format={"type": "json_object"})
    assert vendor.counters()["calls"] == 5
    assert await resumed.ask(calls) == "answer 1"
    assert vendor.counters()["calls"] == 5


async def test_a_call_that_failed_is_not_finished(run, vendor) -> None:
    vendor.fault("server_error")
    opened = run()
    with pytest.raises(VendorUnavailable):
        await opened.ask(opened.case())
    vendor.heal()
    resumed = run()
    assert await resumed.ask(resumed.case()) == "answer 1"


async def test_calls_in_flight_at_once_are_each_remembered(run, vendor) -> None:
    opened = run()
    keys = [f"case-{number}/0" for number in range(20)]
    answers = await asyncio.gather(*(opened.ask(opened.case(key)) for key in keys))
    resumed = run()
    assert await asyncio.gather(*(resumed.ask(resumed.case(key)) for key in keys)) == answers
    assert vendor.counters()["calls"] == 20


async def test_a_refused_answer_is_marked_bad_replayed_on_resume_and_asked_anew_on_retry(run, vendor) -> None:
    opened = run()
    calls = opened.case()
    with pytest.raises(JudgeBroken, match="answer 1 is no good"):
        await opened.ask(calls, accept=refuse("answer 1"))
    assert len(calls.calls) == 1, "a refused answer was paid for all the same"
    assert [done.bad for done in opened.spool.calls().values()] == [True]

    resumed = run()
    with pytest.raises(JudgeBroken, match="answer 1 is no good"):
        await resumed.ask(resumed.case(), accept=refuse("answer 1"))
    assert vendor.counters()["calls"] == 1

    retried = run(retry=True)
    assert await retried.ask(retried.case(), accept=refuse("answer 1")) == "ANSWER 2"
    assert vendor.counters()["calls"] == 2
    assert [done.bad for done in retried.spool.calls().values()] == [False]

    later = run(retry=True)
    assert await later.ask(later.case(), accept=refuse("answer 1")) == "ANSWER 2"
    assert vendor.counters()["calls"] == 2


async def test_a_judge_call_of_an_earlier_run_is_not_paid_again(run, vendor) -> None:
    earlier, later = run("monday"), run("tuesday")
    paid, cached = earlier.case(), later.case("another-case/0")
    assert await earlier.ask(paid, cached=True) == "answer 1"
    assert await later.ask(cached, cached=True) == "answer 1"
    assert vendor.counters()["calls"] == 1
    assert (paid.calls[0].cached, cached.calls[0].cached) == (False, True)
    assert paid.calls[0].cost_usd > 0
    assert cached.calls[0].cost_usd == 0
    assert later.spool.spent_usd() == 0


async def test_the_second_of_two_equal_judge_calls_is_not_answered_by_the_first(run, vendor) -> None:
    for name in ("monday", "tuesday"):
        opened = run(name)
        calls = opened.case()
        assert [await opened.ask(calls, cached=True) for _ in range(2)] == ["answer 1", "answer 2"]
    assert vendor.counters()["calls"] == 2


async def test_a_call_under_drift_watch_never_comes_from_the_cache_nor_enters_it(run, vendor) -> None:
    names = ("monday", "tuesday", "wednesday")
    for name, answer in zip(names, ANSWERS, strict=False):
        opened = run(name)
        calls = opened.case()
        assert await opened.ask(calls, role="generation") == answer
        assert not calls.calls[0].cached
    opened = run("thursday")
    assert await opened.ask(opened.case(), cached=True) == "answer 4"
    assert vendor.counters()["calls"] == 4


async def test_another_endpoint_parameter_or_message_misses_the_cache(run, vendor, endpoint) -> None:
    earlier, later = run("monday"), run("tuesday")
    await earlier.ask(earlier.case(), cached=True)
    elsewhere = endpoint.model_copy(update={"api_base": vendor.api_base.replace("127.0.0.1", "localhost")})
    for change in (
        {"messages": OTHER},
        {"endpoint": elsewhere},
        {"parameters": PARAMETERS.model_copy(update={"temperature": 0.1})},
    ):
        calls = later.case()
        await later.ask(calls, cached=True, **change)
        assert not calls.calls[0].cached, change
    assert vendor.counters()["calls"] == 4


async def test_a_refused_answer_never_enters_the_cache(run, vendor) -> None:
    earlier, later = run("monday"), run("tuesday")
    with pytest.raises(JudgeBroken):
        await earlier.ask(earlier.case(), accept=refuse("answer 1"), cached=True)
    assert await later.ask(later.case(), accept=refuse("answer 1"), cached=True) == "ANSWER 2"


async def test_a_cached_answer_that_is_refused_now_is_forgotten(run, vendor) -> None:
    monday, tuesday, wednesday = run("monday"), run("tuesday"), run("wednesday")
    await monday.ask(monday.case(), cached=True)
    with pytest.raises(JudgeBroken):
        await tuesday.ask(tuesday.case(), accept=refuse("answer 1"), cached=True)
    assert await wednesday.ask(wednesday.case(), accept=refuse("answer 1"), cached=True) == "ANSWER 2"
    assert vendor.counters()["calls"] == 2


async def test_the_cache_outlives_its_process(run, vendor, cache, endpoint, tmp_path: Path) -> None:
    monday = run("monday")
    await monday.ask(monday.case(), cached=True)
    cache.close()
    reopened = ResponseCache(tmp_path / "state" / "response_cache.db")
    tuesday = Run(tmp_path / "tuesday", endpoint, reopened)
    assert await tuesday.ask(tuesday.case(), cached=True) == "answer 1"
    assert vendor.counters()["calls"] == 1
    reopened.close()
