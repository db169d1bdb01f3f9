"""Versioned prompts: what is said to the model around the question."""

from __future__ import annotations

import re
from datetime import date
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, field_validator

SEMVER = re.compile(r"\d+\.\d+\.\d+")


def placeholders(template: str) -> set[str]:
    """The names in braces of a format string; doubled braces are literal."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _braced(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names))


class GenerationParameters(BaseModel):
    """Passed to the vendor as they are; part of the bundle's fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None


class Prompt(BaseModel):
    """prompts/<name>/<version>.yaml. `system` and `template` are format strings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    model_target: str = Field(default="", description="The model family that the prompt was written for")
    created: date | None = None
    author: str = ""
    changelog: str = ""
    eval_score_required: float | None = None
    system: str = ""
    template: str
    parameters: GenerationParameters = GenerationParameters()

    @field_validator("version")
    @classmethod
    def version_is_semver(cls, version: str) -> str:
        if not SEMVER.fullmatch(version):
            raise ValueError(f"{version!r} is not a semantic version such as 1.0.0")
        return version

    @field_validator("system", "template")
    @classmethod
    def is_a_format_string(cls, text: str) -> str:
        try:
            placeholders(text)
        except ValueError as error:
            raise ValueError(f"{error}; write a literal brace twice: {{{{ or }}}}") from None
        return text

    def check_placeholders(self, required: set[str], optional: set[str]) -> None:
        """Raise ValueError when the prompt asks for a value that nobody gives, or leaves out a required one."""
        used, given = placeholders(self.system) | placeholders(self.template), required | optional
        if used - given:
            raise ValueError(f"unknown placeholder {_braced(used - given)}; known here: {_braced(given)}")
        if required - used:
            raise ValueError(f"{_braced(required - used)} is missing: the model would never see it")

    def messages(self, **values: str) -> list[dict[str, str]]:
        """Chat messages with the placeholders filled."""
        user = {"role": "user", "content": self.template.format(**values)}
        if not self.system:
            return [user]
        return [{"role": "system", "content": self.system.format(**values)}, user]
