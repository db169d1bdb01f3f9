"""Labels as records: whose word stands, what an import changes, and that nothing personal is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from touchstone.label_policy import LabelPolicy, Question
from touchstone.labels import Label, encode, merge, person, read_value

AT = datetime(2026, 11, 23, 9, tzinfo=UTC)
GRADE = Question(metric="g", asks="?", scale="one_to_five")
PASS = Question(metric="p", asks="?")


def label(**fields: Any) -> Label:
    given = {"id": "tr-1", "source": "trace", "question": "q", "answer": "a", "metric": "m"}
    return Label.model_validate(given | {"value": "pass", "by": "ada", "at": AT} | fields)


def test_the_same_persons_later_word_replaces_and_two_people_may_disagree() -> None:
    merged = merge([label(), label(by="bob", value="fail")], [label(value="fail", at=AT + timedelta(days=1))])
    assert [(one.by, one.value) for one in merged.labels] == [("ada", "fail"), ("bob", "fail")]
    assert (merged.added, merged.replaced, merged.unchanged) == (0, 1, 0)


def test_an_import_of_what_is_there_changes_no_byte() -> None:
    known = [label(weight=2.5, judge_score=0.5, judge="j", contexts=("c",))]
    merged = merge(known, [label(at=AT + timedelta(days=1))])
    assert not merged.changed
    assert encode(merged.labels) == encode(known)


def test_a_recorded_score_is_not_kept_for_another_answer() -> None:
    merged = merge([label(judge_score=0.5, judge="j", weight=3)], [label(answer="another")])
    assert (merged.labels[0].judge_score, merged.labels[0].judge, merged.labels[0].weight) == (None, "", 3)


def test_a_line_reads_back_as_it_was_written() -> None:
    known = label(value=4, note="n", weight=1.5, judge_score=0.25, judge="j", contexts=("c", "d"))
    assert Label.model_validate_json(encode([known])) == known


def test_texts_are_scrubbed_and_a_person_named_by_an_address_gets_a_pseudonym() -> None:
    found = label(question="jo.doe@example.org?", note="call jo.doe@example.org", by="Jo.Doe@example.org").scrubbed()
    assert "jo.doe" not in found.model_dump_json().lower()
    assert found.by == person("jo.doe@EXAMPLE.org ")
    assert found.by != person("al.doe@example.org")
    assert person(" Ada ") == "ada"


@pytest.mark.parametrize(
    ("raw", "question", "value"),
    [("Pass", PASS, "pass"), (True, PASS, "pass"), ("no", PASS, "fail"), (4.0, GRADE, 4), ("5", GRADE, 5)],
)
def test_what_people_write_is_read_on_the_questions_scale(raw: object, question: Question, value: object) -> None:
    assert read_value(raw, question) == value


@pytest.mark.parametrize(("raw", "question"), [("4", PASS), ("maybe", PASS), (3.5, GRADE), (0, GRADE), ("pass", GRADE)])
def test_what_is_not_on_the_scale_is_refused(raw: object, question: Question) -> None:
    with pytest.raises(ValueError, match="asks for"):
        read_value(raw, question)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 6},
        {"value": True},
        {"value": 3.5},
        {"weight": 0},
        {"judge_score": 1.2},
        {"at": "2026-11-23T09:00:00"},
        {"unknown": 1},
    ],
)
def test_a_label_is_closed_and_in_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        label(**fields)


@pytest.mark.parametrize("grade", [1, 2, 3, 4, 5])
def test_a_grade_passes_from_4_on(grade: int) -> None:
    assert label(value=grade).passes(0.75) == (grade >= 4)


def test_two_questions_of_one_metric_and_mlflows_own_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two questions"):
        LabelPolicy(questions=(PASS, PASS))
    with pytest.raises(ValidationError, match="of its own"):
        Question(metric="Feedback", asks="?")
