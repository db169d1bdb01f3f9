"""One chat call in LiteLLM's words: the request built, the answer read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tasks.vendor_endpoint import access, price_of
from tasks.vendor_library import litellm_module
from touchstone.bundle import Endpoint
from touchstone.cost import call_cost, most_tokens
from touchstone.errors import InvalidAnswer
from touchstone.prompts import GenerationParameters
from touchstone.results import Call

Messages = Sequence[Mapping[str, str]]


def chat_request(
    endpoint: Endpoint,
    messages: Messages,
    parameters: GenerationParameters,
    response_format: Mapping[str, str] | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """LiteLLM's arguments, and the parameters that this vendor would refuse."""
    wanted = parameters.model_dump(exclude_none=True)
    if response_format is not None:
        wanted["response_format"] = dict(response_format)
    supported = _supported(endpoint.model)
    dropped = tuple(sorted(name for name in wanted if name not in supported))
    if "anthropic" in endpoint.model and {"temperature", "top_p"} <= wanted.keys():
        dropped = (*dropped, "top_p")  # newer Claude models refuse the two together
    kept = {name: value for name, value in wanted.items() if name not in dropped}
    return kept | {"messages": list(messages)} | access(endpoint), dropped


def most_chat_cost(endpoint: Endpoint, messages: Messages, parameters: GenerationParameters) -> float | None:
    """USD that one attempt can cost at most; None: the price is unknown."""
    prompt = sum(most_tokens(message["content"]) for message in messages)
    return call_cost(price_of(endpoint), prompt, parameters.max_tokens)


def read_chat(response: Any, endpoint: Endpoint, about: Call) -> tuple[str | None, Call]:
    """The text, and `about` completed by what the answer says of itself. Raises InvalidAnswer."""
    if not response.choices:
        raise InvalidAnswer("the answer has no choices")
    choice = response.choices[0]
    text: str | None = choice.message.content
    if text is not None and not _is_unicode(text):
        raise InvalidAnswer("the answer ends in half a character (a lone surrogate)")
    usage = getattr(response, "usage", None)
    into, out = getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0
    told = {
        "served_model": response.model or None,
        "fingerprint": getattr(response, "system_fingerprint", None),
        "finish_reason": choice.finish_reason,
        "input_tokens": into,
        "output_tokens": out,
        "visible_tokens": _visible_tokens(usage),
        "cost_usd": call_cost(price_of(endpoint), into, out) if into or out else None,
    }
    return text, about.model_copy(update=told)


@cache
def _supported(model: str) -> frozenset[str]:
    names = litellm_module().get_supported_openai_params(model=model)
    return frozenset(names or ("temperature", "max_tokens", "top_p", "seed", "response_format"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible_tokens(usage: Any) -> int | None:
    """Billed output tokens without hidden reasoning; None when the vendor told no usage."""
    billed = getattr(usage, "completion_tokens", None)
    if not billed:
        return None
    details = getattr(usage, "completion_tokens_details", None)
    return billed - (getattr(details, "reasoning_tokens", None) or 0)
