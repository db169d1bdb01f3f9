"""Human labels: what people said of an answer. One line of labels.jsonl in a golden set's folder each.

A label belongs to a subject (a trace or a case), a metric and a person: the same person's later word replaces the
earlier one, and two people may disagree: both are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from touchstone.label_policy import Question
from touchstone.pii import find_pii, scrub

Value = Literal["pass", "fail"] | int
_PASS, _FAIL = {"pass", "yes", "true"}, {"fail", "no", "false"}


def labels_subject(dataset: str) -> str:
    """What the ledger's events of a golden set's labels belong to."""
    return f"labels:{dataset}"


class Label(BaseModel):
    """One person's word on one metric of one answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=250, description="Trace id, or case id")
    source: Literal["trace", "case"]
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    contexts: tuple[str, ...] = ()
    metric: str = Field(min_length=1)
    value: Literal["pass", "fail"] | int = Field(description="pass, fail, or 1 to 5")
    by: str = Field(min_length=1, max_length=250, description="Who; an e-mail address becomes a pseudonym")
    at: datetime
    note: str = ""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="1 / chance to be sampled")
    judge_score: float | None = Field(default=None, ge=0, le=1, description="As recorded, mapped to 0..1")
    judge: str = Field(default="", description="Model that gave judge_score")

    @field_validator("value", mode="before")
    @classmethod
    def is_a_word_or_a_grade(cls, value: object) -> object:
        if value in ("pass", "fail") or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 5):
            return value
        raise ValueError("is pass, fail, or a whole number from 1 to 5")

    @field_validator("at")
    @classmethod
    def has_a_time_zone(cls, at: datetime) -> datetime:
        if at.tzinfo is None:
            raise ValueError("has no time zone; write it as 2026-11-23T09:30:00+00:00")
        return at

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a later word of the same person replaces."""
        return self.source, self.id, self.metric, self.by

    def says_the_same_as(self, other: Label) -> bool:
        """In everything but the time: an import of what is there already changes nothing."""
        return self.model_copy(update={"at": other.at}) == other

    def passes(self, pass_at: float) -> bool:
        """A grade passes from `pass_at` of the scale on: 0.75 is 4 of 1 to 5."""
        return self.value == "pass" if isinstance(self.value, str) else (self.value - 1) / 4 >= pass_at

    def scrubbed(self) -> Label:
        """Without personal data and secrets that have a shape."""
        texts = {name: scrub(getattr(self, name)) for name in ("question", "answer", "note")}
        contexts = tuple(scrub(text) for text in self.contexts)
        return self.model_copy(update={**texts, "contexts": contexts, "by": person(self.by)})


def person(name: str) -> str:
    """The name as it is kept: one that is an address or a number becomes a pseudonym, always the same."""
    name = name.strip().lower()  # as MLflow compares people
    return f"person-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if find_pii(name) else name


def read_value(raw: object, question: Question) -> Value:
    """What a person wrote, on the question's scale. Raises ValueError that says what is allowed."""
    text = str(raw).strip().lower()
    if question.scale == "pass_fail":
        if text in _PASS or text in _FAIL:
            return "pass" if text in _PASS else "fail"
        raise ValueError(f"{raw!r} is neither pass nor fail, which {question.metric} asks for")
    if text.removesuffix(".0") in {"1", "2", "3", "4", "5"}:
        return int(text[0])
    raise ValueError(f"{raw!r} is no whole number from 1 to 5, which {question.metric} asks for")


@dataclass(frozen=True)
class Merged:
    """What an import made of the labels that were there."""

    labels: tuple[Label, ...]
    added: int
    replaced: int
    unchanged: int

    @property
    def changed(self) -> bool:
        return bool(self.added or self.replaced)


def merge(known: Sequence[Label], new: Iterable[Label]) -> Merged:
    """Known labels in their order, with what is new. What repeats a known label keeps the known time.

    A weight or a recorded judge score that only one of the two has is kept.
    """
    found = {label.key: label for label in known}
    added, replaced, unchanged = 0, 0, 0
    for label in new:
        before = found.get(label.key)
        if before is not None:
            label = _completed(label, before)
        if before is None:
            added += 1
        elif label.says_the_same_as(before):
            unchanged += 1
            continue
        else:
            replaced += 1
        found[label.key] = label
    return Merged(tuple(found.values()), added, replaced, unchanged)


def _completed(label: Label, before: Label) -> Label:
    kept: dict[str, object] = {}
    if label.weight is None:
        kept["weight"] = before.weight
    if label.judge_score is None and label.answer == before.answer:
        kept |= {"judge_score": before.judge_score, "judge": before.judge}
    if not label.contexts and label.answer == before.answer:
        kept["contexts"] = before.contexts
    return label.model_copy(update=kept)


def encode(labels: Iterable[Label]) -> bytes:
    """The content of labels.jsonl."""
    return "".join(f"{label.model_dump_json(exclude_defaults=True)}\n" for label in labels).encode()
