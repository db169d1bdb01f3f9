"""Golden cases: a question, what is known of its right answer, and the checks an answer must pass."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class NumericCheck(BaseModel):
    """Some number in the answer must equal `value` within `tolerance`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(allow_inf_nan=False)
    tolerance: float = Field(default=1e-9, ge=0, allow_inf_nan=False)


class Expect(BaseModel):
    """Deterministic checks; all of them must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    contains: tuple[str, ...] = ()
    not_contains: tuple[str, ...] = ()
    regex: str | None = None
    refuses: bool | None = None
    numeric: NumericCheck | None = None

    @field_validator("contains", "not_contains", mode="before")
    @classmethod
    def one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("numeric", mode="before")
    @classmethod
    def bare_number(cls, value: object) -> object:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("regex")
    @classmethod
    def regex_compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def checks_something(self) -> Expect:
        if not (self.contains or self.not_contains or self.regex or self.numeric) and self.refuses is None:
            raise ValueError("`expect` is empty: give contains, not_contains, regex, refuses or numeric")
        return self


class GoldenCase(BaseModel):
    """One line of cases.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    reference: str | None = None
    relevant_ids: tuple[str, ...] = ()
    segment: str = "all"
    tags: tuple[str, ...] = ()
    expect: Expect | None = None

    @property
    def digest(self) -> str:
        """A changed case is another case: digest of all that can move its score."""
        content = self.model_dump_json(exclude={"id", "tags", "segment"})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def dataset_digest(cases: Iterable[GoldenCase]) -> str:
    """SHA-256 over the cases in order of id, so that reordering lines changes nothing."""
    lines = sorted(f"{case.id} {case.segment} {case.digest}" for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
