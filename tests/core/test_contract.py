"""What counts as a whole answer of the pinned model."""

from __future__ import annotations

import gzip
import json

import pytest

from touchstone.contract import check_answer, plausible_tokens
from touchstone.errors import AnswerRefused, InvalidAnswer

WHOLE = "You can return an unused station within 30 days of delivery, and we refund the full price."


def check(text: str | None = WHOLE, **changed) -> str:
    given = {
        "requested_model": "openai/gpt-4o-2024-11-20",
        "served_model": "gpt-4o-2024-11-20",
        "finish_reason": "stop",
        "output_tokens": 21,
        "allow_unpinned": False,
        "max_tokens": 200,
    }
    return check_answer(text, **(given | changed))


def test_a_whole_answer_of_the_pinned_model_passes() -> None:
    assert check() == WHOLE


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"served_model": "gpt-4o-2024-08-06"}, "answered by gpt-4o-2024-08-06"),
        ({"served_model": None}, "does not say which model"),
        ({"finish_reason": "length"}, "max_tokens = 200"),
        ({"finish_reason": "tool_calls"}, "tool_calls"),
        ({"finish_reason": None}, "None"),
        ({"text": "  "}, "empty"),
        ({"text": None}, "empty"),
        ({"output_tokens": None}, "without usage"),
        ({"text": WHOLE[: len(WHOLE) // 2]}, "the answer was cut"),
    ],
)
def test_a_broken_contract_says_what_broke(changed: dict, complaint: str) -> None:
    with pytest.raises(InvalidAnswer, match=complaint):
        check(**changed)


def test_a_content_filter_is_a_refusal() -> None:
    with pytest.raises(AnswerRefused):
        check(finish_reason="content_filter")


def test_an_unpinned_alias_may_be_served_by_a_dated_snapshot() -> None:
    assert check(requested_model="openai/gpt-4o", allow_unpinned=True) == WHOLE


def test_real_answers_are_whole_and_their_halves_are_cut(shared_data) -> None:
    with gzip.open(shared_data / "gpt-snapshots" / "recording.jsonl.gz", "rt") as lines:
        recorded = [json.loads(line) for line in lines]
    long = [item for item in recorded if item["completion_tokens"] >= 8]
    for item in recorded:
        check(item["answer"], output_tokens=item["completion_tokens"])
    undetected = 0
    for item in long:
        try:
            check(item["answer"][: len(item["answer"]) // 2], output_tokens=item["completion_tokens"])
            undetected += 1
        except InvalidAnswer:
            pass
    assert undetected / len(long) < 0.01


@pytest.mark.parametrize("text", ["", "機械学習は楽しい", "17077 = 11 * 1552 + 5", "naïve café"])
def test_any_script_has_a_plausible_size(text: str) -> None:
    assert 0 <= plausible_tokens(text) <= 2 * len(text)
