"""The three vendors' HTTP shapes: requests read into one form, replies and errors written from one form."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

Vendor = Literal["openai", "anthropic", "gemini"]
Finish = Literal["stop", "length", "content_filter"]


class BadRequest(Exception):
    """A request the vendor refuses: status, message and the parameter at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True)
class ChatRequest:
    """One chat call, whichever vendor it was sent to."""

    vendor: Vendor
    model: str
    system: str
    user: str
    temperature: float
    max_tokens: int | None
    top_logprobs: int | None  # None: no log-probabilities wanted
    stream: bool
    stream_usage: bool


@dataclass(frozen=True)
class Reply:
    """One answer, before it takes a vendor's shape."""

    model: str
    text: str | None
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    fingerprint: str
    logprobs: Sequence[Mapping[str, Any]] | None = None
    no_choices: bool = False
    id: str = field(default="")


# --- requests


def read_chat(vendor: Vendor, body: bytes, model: str | None = None) -> ChatRequest:
    """Read a chat request; `model` comes from the path for Gemini."""
    data = read_object(body)
    try:
        return _read_gemini(data, model or "") if vendor == "gemini" else _read_messages(vendor, data)
    except (AttributeError, TypeError, KeyError) as error:
        raise BadRequest(f"the request does not have the vendor's shape: {error}") from None


def _read_messages(vendor: Vendor, data: Mapping[str, Any]) -> ChatRequest:
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list", "messages")
    system = _text(data.get("system")) if vendor == "anthropic" else _join(messages, ("system", "developer"))
    if vendor == "anthropic" and data.get("stream"):
        raise BadRequest("this emulator streams in OpenAI's shape only", "stream")
    if data.get("n", 1) != 1:
        raise BadRequest("this emulator answers n=1 only", "n")
    top = data.get("top_logprobs") or 0
    if not isinstance(top, int) or not 0 <= top <= 20:
        raise BadRequest(f"'top_logprobs' must be a whole number from 0 to 20, not {top!r}", "top_logprobs")
    return ChatRequest(
        vendor=vendor, model=_model(data.get("model")), system=system, user=_last_user(messages),
        temperature=_temperature(data.get("temperature")),
        max_tokens=_limit(data.get("max_completion_tokens") or data.get("max_tokens")),
        top_logprobs=top if data.get("logprobs") else None,
        stream=bool(data.get("stream")),
        stream_usage=bool((data.get("stream_options") or {}).get("include_usage")),
    )  # fmt: skip


def _read_gemini(data: Mapping[str, Any], model: str) -> ChatRequest:
    contents = data.get("contents")
    if not isinstance(contents, list) or not contents:
        raise BadRequest("'contents' must be a non-empty list", "contents")
    config = data.get("generationConfig") or data.get("generation_config") or {}
    instruction = data.get("systemInstruction") or data.get("system_instruction") or {}
    return ChatRequest(
        vendor="gemini", model=_model(model), system=_text(instruction.get("parts")),
        user=_last_user([{"role": each.get("role", "user"), "content": each.get("parts")} for each in contents]),
        temperature=_temperature(config.get("temperature")),
        max_tokens=_limit(config.get("maxOutputTokens") or config.get("max_output_tokens")),
        top_logprobs=int(config.get("logprobs") or 0) if config.get("responseLogprobs") else None,
        stream=False, stream_usage=False,
    )  # fmt: skip


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or the vendor's complaint."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest("The body of the request must be a JSON object")
    return data


def _text(content: object) -> str:
    """Message content as text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def _join(messages: Sequence[Any], roles: tuple[str, ...]) -> str:
    chosen = (each for each in messages if isinstance(each, dict) and each.get("role") in roles)
    return "\n\n".join(_text(each.get("content")) for each in chosen)


def _last_user(messages: Sequence[Any]) -> str:
    for each in reversed(messages):
        if isinstance(each, dict) and each.get("role") == "user":
            return _text(each.get("content"))
    raise BadRequest("the conversation holds no user message", "messages")


def _model(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest("you must provide a model parameter", "model")
    return value


def _temperature(value: object) -> float:
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 2:
        raise BadRequest(f"'temperature' must be a number from 0 to 2, not {value!r}", "temperature")
    return float(value)


def _limit(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"'max_tokens' must be a whole number >= 1, not {value!r}", "max_tokens")
    return value


# --- replies


def write_chat(vendor: Vendor, reply: Reply, created: int) -> bytes:
    """A reply in its vendor's shape."""
    if vendor == "anthropic":
        return orjson.dumps(_anthropic(reply))
    return orjson.dumps(_gemini(reply) if vendor == "gemini" else _openai(reply, created))


def _openai(reply: Reply, created: int) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text, "refusal": None},
        "logprobs": {"content": reply.logprobs, "refusal": None} if reply.logprobs is not None else None,
        "finish_reason": reply.finish,
    }
    return {
        "id": f"chatcmpl-{reply.id}", "object": "chat.completion", "created": created, "model": reply.model,
        "choices": [] if reply.no_choices else [choice],
        "usage": _openai_usage(reply), "system_fingerprint": reply.fingerprint,
    }  # fmt: skip


def _openai_usage(reply: Reply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.completion_tokens
    return {
        "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens, "total_tokens": total
    }  # fmt: skip


def openai_stream(reply: Reply, created: int, with_usage: bool) -> list[bytes]:
    """The same reply as server-sent events, a few words each."""
    head = {
        "id": f"chatcmpl-{reply.id}", "object": "chat.completion.chunk", "created": created, "model": reply.model,
        "system_fingerprint": reply.fingerprint,
    }  # fmt: skip
    pieces = re.findall(r"\s*\S+(?:\s+\S+){0,2}\s*$|\s*\S+(?:\s+\S+){0,2}", reply.text or "")
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    deltas.append(({}, reply.finish))
    events = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    if with_usage:
        events.append({**head, "choices": [], "usage": _openai_usage(reply)})
    return [b"data: " + orjson.dumps(event) + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


_ANTHROPIC_FINISH = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_GEMINI_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _anthropic(reply: Reply) -> dict[str, Any]:
    empty = reply.no_choices or reply.text is None
    return {
        "id": f"msg_{reply.id}", "type": "message", "role": "assistant", "model": reply.model,
        "content": [] if empty else [{"type": "text", "text": reply.text}],
        "stop_reason": _ANTHROPIC_FINISH[reply.finish], "stop_sequence": None,
        "usage": {"input_tokens": reply.prompt_tokens, "output_tokens": reply.completion_tokens},
    }  # fmt: skip


def _gemini(reply: Reply) -> dict[str, Any]:
    content: dict[str, Any] = {"role": "model"}
    if reply.text is not None:
        content["parts"] = [{"text": reply.text}]
    candidate: dict[str, Any] = {"content": content, "finishReason": _GEMINI_FINISH[reply.finish], "index": 0}
    if reply.logprobs is not None:
        candidate["logprobsResult"] = {
            "chosenCandidates": [_gemini_token(row) for row in reply.logprobs],
            "topCandidates": [
                {"candidates": [_gemini_token(top) for top in row.get("top_logprobs") or []]} for row in reply.logprobs
            ],
        }
    total = reply.prompt_tokens + reply.completion_tokens
    return {
        "candidates": [] if reply.no_choices else [candidate],
        "usageMetadata": {
            "promptTokenCount": reply.prompt_tokens, "candidatesTokenCount": reply.completion_tokens,
            "totalTokenCount": total,
        },
        "modelVersion": reply.model, "responseId": reply.id,
    }  # fmt: skip


def _gemini_token(row: Mapping[str, Any]) -> dict[str, Any]:
    token = row["token"]
    number = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=2).digest(), "big")
    return {"token": token, "tokenId": number, "logProbability": row["logprob"]}


# --- errors

_ANTHROPIC_ERRORS = {
    400: "invalid_request_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GEMINI_ERRORS = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
_OPENAI_ERRORS = {429: "requests"}


def write_error(vendor: Vendor, status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error in its vendor's shape."""
    if vendor == "anthropic":
        kind = _ANTHROPIC_ERRORS.get(status, "api_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    if vendor == "gemini":
        state = _GEMINI_ERRORS.get(status, "INTERNAL")
        return orjson.dumps({"error": {"code": status, "message": message, "status": state}})
    kind = _OPENAI_ERRORS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if status == 404 and code != "model_not_found":
        kind = "not_found_error"  # LiteLLM takes any other invalid_request_error for a 400
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
