"""Where a model is called: is its vendor known, which key opens it, what does a token cost."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Literal

from pydantic import ValidationError

from tasks.vendor_library import litellm_module
from touchstone.bundle import Endpoint, Price
from touchstone.errors import BadInput
from touchstone.retrieval_config import EmbeddingEndpoint

Mode = Literal["chat", "embedding"]


def embedding_endpoint(model: str, where: EmbeddingEndpoint, section: str = "embedding") -> Endpoint:
    """A vendor's embedding model as an endpoint; `section` is where the file says `where`. Raises BadInput."""
    usd = where.usd_per_million_tokens
    price = None if usd is None else Price(input_per_million=usd, output_per_million=0)
    try:
        return Endpoint(
            model=model,
            api_base=where.api_base,
            api_key_env=where.api_key_env,
            price=price,
            allow_unpinned=True,  # embedding models are not dated; `check_same_model` guards the space instead
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"field {section}.{field}: {first['msg'].removeprefix('Value error, ')}") from None


def api_key(endpoint: Endpoint) -> str | None:
    """The endpoint's key; None leaves the choice to LiteLLM. Raises BadInput when a named variable is not set."""
    if endpoint.api_key_env:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise BadInput(f"{endpoint.api_key_env} is not set; {endpoint.model} needs it (export it, or use .env)")
        return key
    return "not-needed-on-loopback" if endpoint.is_local else None


def access(endpoint: Endpoint) -> dict[str, Any]:
    """LiteLLM's arguments for where and as whom; its own retries are off."""
    request: dict[str, Any] = {"model": endpoint.model, "max_retries": 0, "num_retries": 0}
    if endpoint.api_base:
        request["api_base"] = endpoint.api_base
    if key := api_key(endpoint):
        request["api_key"] = key
    return request


def provider(model: str) -> str | None:
    """The vendor that LiteLLM takes a model's name for; None: it knows none."""
    try:
        return litellm_module().get_llm_provider(model)[1]
    except Exception:  # LiteLLM's BadRequestError, and plain ones
        return None


def check_endpoint(endpoint: Endpoint, field: str = "model") -> None:
    """Raise BadInput, before any call, when the vendor is not known or its key is missing."""
    offline = "use a bundle whose api_base is `touchstone emulator serve`"
    known = ""
    if field.endswith("embedding_model"):
        offline, known = "use `minilm`", "`minilm`, `hashing` or "
    if provider(endpoint.model) is None:
        raise BadInput(
            f"{field} {endpoint.model!r}: LiteLLM knows no such vendor; write {known}vendor/model, as openai/..."
        )
    if endpoint.api_base and not endpoint.is_local and not endpoint.api_key_env:
        raise BadInput(
            f"{field} {endpoint.model!r}: {endpoint.api_base} is not this machine: name the variable that holds its "
            "key in `api_key_env`, or LiteLLM would send it the key of another vendor"
        )
    if api_key(endpoint) is None:
        missing = litellm_module().validate_environment(model=endpoint.model)["missing_keys"]
        if missing:
            raise BadInput(f"{' or '.join(missing)} is not set; {endpoint.model} needs it. Offline, {offline}")


def check_cap(endpoint: Endpoint, cap_usd: float | None, remedy: str, mode: Mode = "chat") -> None:
    """Raise BadInput when a spend cap cannot be kept because the price is unknown; `remedy` names what to write."""
    if cap_usd is not None and price_of(endpoint, mode) is None:
        raise BadInput(
            f"the price of {endpoint.model} is unknown, so the spend cap of {cap_usd:g} USD cannot be kept; "
            f"{remedy}, or remove the cap"
        )


def price_of(endpoint: Endpoint, mode: Mode = "chat") -> Price | None:
    """The endpoint's own price, else LiteLLM's; None is unknown, not free."""
    if endpoint.price is None:
        return _listed_price(endpoint.model)
    if _listed(endpoint.model) is None:  # a listed one would be overwritten, for every other endpoint of it too
        _register(endpoint.model, endpoint.price.input_per_million, endpoint.price.output_per_million, mode)
    return endpoint.price


def most_input_tokens(model: str) -> int | None:
    """What the model reads of one text, where LiteLLM's list knows it."""
    return (_listed(model) or {}).get("max_input_tokens")


@cache
def _listed_price(model: str) -> Price | None:
    info = _listed(model) or {}
    into, out = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if not (into or out):
        return None
    return Price(input_per_million=(into or 0) * 1e6, output_per_million=(out or 0) * 1e6)


@cache
def _listed(model: str) -> Any:
    """What LiteLLM's own list says of a model."""
    try:
        info = litellm_module().get_model_info(model)
    except Exception:  # LiteLLM raises a plain Exception for a model that it does not know
        return None
    return info if info.get("key") in _listed_models() else None


@cache
def _listed_models() -> frozenset[str]:
    """LiteLLM's own price list, as it was before we registered anything."""
    return frozenset(litellm_module().model_cost)


@cache
def _register(model: str, input_per_million: float, output_per_million: float, mode: Mode) -> None:
    """Tell LiteLLM the price, or it searches its whole price list for a model that is not in it at every call."""
    entry = {
        "input_cost_per_token": input_per_million / 1e6,
        "output_cost_per_token": output_per_million / 1e6,
        "litellm_provider": model.partition("/")[0],
        "mode": mode,
    }
    litellm_module().register_model({model: entry})
