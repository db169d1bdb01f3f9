"""A bundle: everything we control about an answer. Same bundle, worse answers: the vendor moved."""

from __future__ import annotations

import hashlib
import json
import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.prompts import GenerationParameters, Prompt
from touchstone.retrieval_config import EmbeddingEndpoint, RetrievalConfig

_DATED = re.compile(r"(\d{4}-?\d{2}-?\d{2}|-\d{4}|-\d{3})(-v\d+(:\d+)?)?(@\d+)?$|@\d{8}$|:ft-|^ft:")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _checked_address(url: str | None, instead: str = "") -> str | None:
    """An address is shown and stored in many places, so that it must hold no secret."""
    if url is not None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ValueError(f"keep secrets out of the address{instead}: no user, password or query in it")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is not an http(s) address")
    return url


class Price(_Closed):
    """USD per million tokens; wins over LiteLLM's price list, which knows no private models."""

    input_per_million: float = Field(ge=0, allow_inf_nan=False)
    output_per_million: float = Field(ge=0, allow_inf_nan=False)


class Endpoint(_Closed):
    """Which model is called, and where."""

    model: str = Field(min_length=1, description="LiteLLM id of a dated snapshot, e.g. openai/gpt-4o-2024-11-20")
    api_base: str | None = None
    api_key_env: str | None = Field(default=None, description="Name of the environment variable with the key")
    price: Price | None = None
    allow_unpinned: bool = False

    @field_validator("api_base")
    @classmethod
    def url_has_no_secret(cls, url: str | None) -> str | None:
        return _checked_address(url, "; name a variable in api_key_env instead")

    @model_validator(mode="after")
    def model_is_pinned(self) -> Endpoint:
        name = self.model.rsplit("/", 1)[-1]
        if not self.allow_unpinned and ("latest" in name or not _DATED.search(name)):
            raise ValueError(
                f"model {self.model!r} is a moving alias; pin a dated snapshot "
                "(such as openai/gpt-4o-2024-11-20) or set `allow_unpinned: true`"
            )
        return self

    @property
    def is_local(self) -> bool:
        """On this machine's loopback: needs no key."""
        return self.api_base is not None and urlsplit(self.api_base).hostname in _LOOPBACK


class Judge(Endpoint):
    """The model that scores; `prompt` is the rubric judge's, as name@version."""

    prompt: str = "judge@1.0.0"
    embedding_model: str = Field(default="minilm", description="For answer relevancy: `minilm`, `hashing` or LiteLLM")
    embedding: EmbeddingEndpoint = Field(default=EmbeddingEndpoint(), description="Where a vendor's is called")


class InlinePrompt(_Closed):
    """A prompt written into the bundle: `{user: "{question}"}`."""

    user: str = Field(min_length=1)
    system: str = ""
    parameters: GenerationParameters = GenerationParameters()

    def as_prompt(self) -> Prompt:
        return Prompt(version="0.0.0", system=self.system, template=self.user, parameters=self.parameters)


class AppTarget(_Closed):
    """The user's own app: exactly one of an HTTP address or a Python callable."""

    http: str | None = Field(
        default=None, description="POST {question, case_id} -> {answer, contexts?, model?, usage?}"
    )
    python: str | None = Field(default=None, description="`pkg.mod:function`, sync or async: question -> str or dict")
    timeout_s: float = Field(default=60, gt=0)

    @field_validator("http")
    @classmethod
    def url_has_no_secret(cls, url: str | None) -> str | None:
        return _checked_address(url)

    @model_validator(mode="after")
    def exactly_one(self) -> AppTarget:
        if (self.http is None) == (self.python is None):
            raise ValueError("give exactly one of `http` and `python`")
        if self.python is not None and not re.fullmatch(r"[\w.]+:\w+", self.python):
            raise ValueError(f"{self.python!r} is not of the form pkg.mod:function")
        return self


class Bundle(_Closed):
    """bundles/<name>.yaml: a model with a prompt (and retrieval), or the user's own app as `target`."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    model: str | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    price: Price | None = None
    allow_unpinned: bool = False
    prompt: str | InlinePrompt | None = None
    parameters: GenerationParameters | None = Field(default=None, description="Wins over the prompt's own")
    retrieval: str | None = Field(default=None, description="name or name@version of a retrieval config")
    judge: Judge | None = None
    target: AppTarget | None = None
    fallbacks: tuple[str, ...] = Field(
        default=(), description="Bundles that answer when this one's vendor is away, in order; in no fingerprint"
    )

    @field_validator("judge", mode="before")
    @classmethod
    def judge_by_model_name(cls, judge: object) -> object:
        return {"model": judge} if isinstance(judge, str) else judge

    @model_validator(mode="after")
    def is_complete(self) -> Bundle:
        if (self.model is None) == (self.target is None):
            raise ValueError("give either `model` (with `prompt`) or `target` (your own app)")
        if self.target is not None and (self.prompt is not None or self.retrieval is not None):
            raise ValueError("`prompt` and `retrieval` belong to a bundle with `model`; an app brings its own")
        if self.name in self.fallbacks or len(set(self.fallbacks)) < len(self.fallbacks):
            raise ValueError("`fallbacks` names other bundles, each once")
        if self.model is not None:
            if self.prompt is None:
                raise ValueError('`prompt` is missing: name@version, or inline {user: "{question}"}')
            self.endpoint  # noqa: B018 - its validators check the model, the address and the key's name
        return self

    @property
    def endpoint(self) -> Endpoint:
        """The generating model as an endpoint. Raises ValueError for an app bundle."""
        fields = {"model", "api_base", "api_key_env", "price", "allow_unpinned"}
        return Endpoint.model_validate(self.model_dump(include=fields))


def bundle_fingerprint(bundle: Bundle, prompt: Prompt | None, retrieval: RetrievalConfig | None) -> str:
    """Digest of pinned model id, prompt content, retrieval content and generation parameters."""
    content = {
        "model": bundle.model,
        "target": bundle.target.model_dump(exclude={"timeout_s"}) if bundle.target else None,
        "prompt": [prompt.system, prompt.template] if prompt else None,
        "parameters": (bundle.parameters or prompt.parameters).model_dump() if prompt else None,
        "retrieval": retrieval.fingerprint if retrieval else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def judge_fingerprint(judge: Judge | None, prompt: Prompt | None) -> str:
    """Digest of what decides a judge's score; empty without a judge."""
    if judge is None:
        return ""
    asked = [prompt.system, prompt.template, prompt.parameters.model_dump()] if prompt else None
    content = [judge.model, judge.embedding_model, asked]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
