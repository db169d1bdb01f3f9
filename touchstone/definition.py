"""A bundle with everything it names, as it was: enough to run it again when its files have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from touchstone.bundle import Bundle, bundle_fingerprint, judge_fingerprint
from touchstone.index import IndexVersion
from touchstone.prompts import Prompt
from touchstone.retrieval_config import RetrievalConfig

if TYPE_CHECKING:  # apps import definitions by way of `routing`: they need pydantic alone
    from touchstone.release_policy import Factor


class Definition(BaseModel):
    """What decides an answer and its scores. `index` is the version that was searched; None without retrieval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Bundle
    prompt: Prompt | None = None
    retrieval: RetrievalConfig | None = None
    index: IndexVersion | None = None
    judge_prompt: Prompt | None = Field(default=None, description="Of the rubric judge")

    @property
    def fingerprint(self) -> str:
        return bundle_fingerprint(self.bundle, self.prompt, self.retrieval)

    @property
    def judge_fingerprint(self) -> str:
        return judge_fingerprint(self.bundle.judge, self.judge_prompt)

    @property
    def model(self) -> str:
        """The pinned model, or the address of the user's own app."""
        target = self.bundle.target
        return self.bundle.model or (target and (target.http or target.python)) or ""

    @property
    def prompt_version(self) -> str:
        """name@version; `inline` for one written into the bundle, empty without a prompt."""
        named = self.bundle.prompt
        return named if isinstance(named, str) else "inline" if named else ""

    @property
    def retrieval_version(self) -> str:
        return f"{self.retrieval.name}@{self.retrieval.version}" if self.retrieval else ""

    @property
    def index_version(self) -> str:
        return self.index.label if self.index else ""


def changed_factors(old: Definition, new: Definition) -> tuple[Factor, ...]:
    """Which of model, prompt and retrieval differ in content; the parameters belong to the prompt."""
    factors: dict[Factor, bool] = {
        "model": (old.model, old.bundle.api_base) != (new.model, new.bundle.api_base),
        "prompt": _prompt_content(old) != _prompt_content(new),
        "retrieval": _retrieval_content(old) != _retrieval_content(new),
    }
    return tuple(factor for factor, differs in factors.items() if differs)


def _prompt_content(definition: Definition) -> object:
    prompt = definition.prompt
    parameters = definition.bundle.parameters or (prompt.parameters if prompt else None)
    return (prompt.system, prompt.template, parameters) if prompt else None


def _retrieval_content(definition: Definition) -> str | None:
    return definition.retrieval.fingerprint if definition.retrieval else None
