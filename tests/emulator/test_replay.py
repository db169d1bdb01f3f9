"""Recordings come back word for word, behind names that can move in silence."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.replay import Recording
from emulator.server import EmulatorOptions, running

OLD, NEW = "gpt-4-0314", "gpt-4-0613"
SURE = [{"token": "Yes", "logprob": -0.5, "top_logprobs": []}]
LINES = [
    {"model": OLD, "prompt": "Is 7 prime?", "answer": "[Yes]", "completion_tokens": 42, "latency_s": 9, "cost_usd": 1},
    {"model": NEW, "prompt": "Is 7 prime?", "answer": "[No]", "completion_tokens": 3},
    {"model": NEW, "prompt": "Be brief.\n\nIs 9 prime?", "answer": "[No], briefly"},
    {"model": OLD, "prompt": "Pick one.", "answer": "first"},
    {"model": OLD, "prompt": "Pick one.", "answer": "second"},
    {"model": OLD, "prompt": "Sure?", "answer": "Yes", "logprobs": SURE},
]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, LINES)).encode()))
    return path


@pytest.fixture
def replaying(recording: Path, emulator: Any) -> Iterator[Any]:
    with running(EmulatorOptions(recordings=(recording,), aliases={"gpt-4": "gpt-4-0314"})) as url:
        emulator.url = url
        yield emulator


async def test_an_alias_moves_to_another_snapshot_and_nothing_else_shows_it(replaying: Any) -> None:
    before = await replaying.ask("Is 7 prime?", model="gpt-4")
    status, state = replaying.send("PUT", "/control/aliases", {"gpt-4": "gpt-4-0613"})
    after = await replaying.ask("Is 7 prime?", model="gpt-4")

    assert (status, state["aliases"]) == (200, {"gpt-4": "gpt-4-0613"})
    assert [r.choices[0].message.content for r in (before, after)] == ["[Yes]", "[No]"]
    assert before.model == after.model == "gpt-4"
    assert before.system_fingerprint == after.system_fingerprint
    assert before.usage.completion_tokens == 42


async def test_the_snapshot_is_named_when_that_is_wanted(recording: Path, emulator: Any) -> None:
    options = EmulatorOptions(recordings=(recording,), aliases={"gpt-4": "gpt-4-0613"}, reveal_snapshot=True)
    with running(options) as url:
        emulator.url = url
        assert (await emulator.ask("Is 7 prime?", model="gpt-4")).model == "gpt-4-0613"


async def test_samples_take_turns_and_a_reset_starts_over(replaying: Any) -> None:
    turns = [await replaying.text("Pick one.", model="gpt-4") for _ in range(3)]
    replaying.send("POST", "/control/reset")
    assert [*turns, await replaying.text("Pick one.", model="gpt-4")] == ["first", "second", "first", "first"]


async def test_a_prompt_recorded_with_its_system_message_is_found(replaying: Any) -> None:
    assert await replaying.text("Is 9 prime?", "Be brief.", model="gpt-4-0613") == "[No], briefly"


async def test_recorded_log_probabilities_are_returned(replaying: Any) -> None:
    response = await replaying.ask("Sure?", model="gpt-4", logprobs=True)
    assert response.choices[0].logprobs.content[0].logprob == -0.5


async def test_a_limit_below_the_recorded_tokens_cuts_the_answer(replaying: Any) -> None:
    response = await replaying.ask("Is 7 prime?", model="gpt-4", max_tokens=21)
    assert (response.choices[0].finish_reason, response.usage.completion_tokens) == ("length", 21)


async def test_an_unrecorded_prompt_of_a_recorded_model_is_not_found(replaying: Any) -> None:
    import litellm

    message = r"no answer of 'gpt-4-0314' to this prompt is recorded: 'Is 8 prime\?'"
    with pytest.raises(litellm.exceptions.NotFoundError, match=message):
        await replaying.ask("Is 8 prime?", model="gpt-4")


async def test_a_model_outside_the_recording_still_answers_from_documents(replaying: Any, kb: Any) -> None:
    assert "30 days" in await replaying.text(kb.prompt("How long can I return an item?"), model="other-model")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"model": "m", "prompt": "p"}', "field 'answer' is missing"),
        ('{"model": "m", "prompt": 3, "answer": "a"}', "field 'prompt' must be a string"),
        ('{"model": "", "prompt": "p", "answer": "a"}', "field 'model' is empty"),
        ('{"model": "m", "prompt": "p", "answer": "a", "completion_tokens": -1}', "field 'completion_tokens'"),
        ('{"model": "m", "prompt": "p", "answer": "a", "latency_s": "x"}', "field 'latency_s'"),
        ('{"model": "m", "prompt": "p", "answer": "a", "logprobs": [1]}', "field 'logprobs'"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_broken_line_is_named_with_file_line_and_field(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"model": "m", "prompt": "p", "answer": "a"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"broken\.jsonl:3: ") as caught:
        Recording.load([path])
    assert named in str(caught.value)
