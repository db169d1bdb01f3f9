"""The HTTP face of the emulator: vendor routes, control routes, delivery with its faults."""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from emulator.answering import Answerer
from emulator.control import BadControl, Counters, merge_aliases
from emulator.embeddings import damaged, embed, read_embedding, write_gemini_vectors, write_vectors
from emulator.faults import BadFault, Fault, damage, delay_s, read_faults, struck
from emulator.wire import BadRequest, Vendor, openai_stream, read_chat, write_chat, write_error

_GEMINI_PATH = re.compile(r"/models/([^/]+):(\w+)$")
_FOREVER_S = 86_400.0
_JSON = "application/json"


class Service:
    """Answers every request of one emulator; runs in one event loop, so its state needs no locks."""

    def __init__(self, answerer: Answerer, options: Mapping[str, Any]) -> None:
        self.answerer = answerer
        self.options = options
        self.latency_s = float(options["latency_ms"]) / 1000
        self.counters = Counters()
        self.faults: tuple[Fault, ...] = ()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Route a request; what the vendor refuses is answered in the vendor's shape."""
        path = request.path.rstrip("/")
        if path.startswith("/control"):
            return await self._control(request, path)
        if request.method == "GET":
            return self._get(path)
        if request.method != "POST":
            return _json({"error": {"message": f"{request.method} is not supported"}}, 405)
        vendor, gemini = _vendor(path), _GEMINI_PATH.search(path)
        try:
            if path.endswith("/embeddings"):
                return await self._embeddings(request, "openai", None)
            if gemini and gemini.group(2) == "batchEmbedContents":
                return await self._embeddings(request, "gemini", gemini.group(1))
            if gemini and gemini.group(2) == "generateContent":
                return await self._chat(request, "gemini", gemini.group(1))
            if path.endswith(("/chat/completions", "/messages")):
                return await self._chat(request, vendor, None)
            raise BadRequest(f"there is no route POST {path}", status=404)
        except BadRequest as error:
            return _answer(write_error(vendor, error.status, error.message, error.param, error.code), error.status)

    def _get(self, path: str) -> web.Response:
        if path in ("", "/health"):
            return _json({"status": "ok"})
        if path.endswith("/models"):
            names = dict.fromkeys([*self.answerer.recording.models, *self.answerer.aliases])
            rows = [{"id": name, "object": "model", "created": 0, "owned_by": "emulator"} for name in names]
            return _json({"object": "list", "data": rows})
        return _json({"error": {"message": f"there is no route GET {path}"}}, 404)

    # --- vendor routes

    async def _chat(self, request: web.BaseRequest, vendor: Vendor, model: str | None) -> web.StreamResponse:
        raw = await request.read()
        chat = read_chat(vendor, raw, model)
        body = _digest(request.path, raw)
        found, refusal = await self._arrive(request, vendor, chat.model, body)
        if refusal is not None:
            return refusal
        kind, reply = self.answerer.answer(chat, body, self.counters.answer(body))
        self.counters.by_kind[kind] += 1
        reply, created = damage(reply, found), int(time.time())
        self._count(found, "content", "model", "fingerprint")
        if chat.stream:
            return await self._stream(request, openai_stream(reply, created, chat.stream_usage), body)
        return await self._deliver(request, write_chat(vendor, reply, created), body, found)

    async def _embeddings(self, request: web.BaseRequest, vendor: Vendor, model: str | None) -> web.StreamResponse:
        raw = await request.read()
        asked, body = read_embedding(raw, model), _digest(request.path, raw)
        found, refusal = await self._arrive(request, vendor, asked.model, body)
        if refusal is not None:
            return refusal
        self.counters.answer(body)
        self.counters.embed(asked.texts, asked.tokens)
        shown, snapshot = self.answerer.shown(asked.model), self.answerer.snapshot(asked.model)
        self._count(found, "model", "vectors")
        if "model" in found:
            shown = found["model"].parameters["model"]
        vectors = [embed(text, asked.dimensions, snapshot) for text in asked.texts]
        vectors, places = damaged(vectors, found["vectors"].kind if "vectors" in found else "")
        if vendor == "gemini":
            return await self._deliver(request, write_gemini_vectors(vectors), body, found)
        return await self._deliver(request, write_vectors(asked, vectors, places, shown), body, found)

    async def _arrive(
        self, request: web.BaseRequest, vendor: Vendor, model: str, body: str
    ) -> tuple[Mapping[str, Fault], web.StreamResponse | None]:
        """Count the call, wait as long as the vendor would, and refuse it where a fault says so."""
        attempt = self.counters.arrive(body)
        self.counters.by_model[model] += 1
        seed, wait = self.answerer.seed, self.latency_s
        found: Mapping[str, Fault] = {}
        if self.faults:
            found = struck(self.faults, seed, body, attempt, (model, self.answerer.snapshot(model)))
            self._count(found, "delay", "refusal")
        if "delay" in found:
            wait += delay_s(found["delay"], seed, body, attempt)
        if wait > 0:
            await asyncio.sleep(wait)
        if "refusal" not in found:
            return found, None
        return found, await _refuse(request, vendor, model, found["refusal"])

    def _count(self, found: Mapping[str, Fault], *stages: str) -> None:
        for stage in stages:
            if stage in found:
                self.counters.faults[found[stage].kind] += 1

    async def _deliver(
        self, request: web.BaseRequest, answer: bytes, body: str, found: Mapping[str, Fault]
    ) -> web.StreamResponse:
        """Send an answer; it counts as completed once its last byte went to the socket."""
        self._count(found, "delivery")
        fault = found.get("delivery")
        if fault is not None and fault.kind == "malformed_json":
            answer = answer[: len(answer) * 3 // 5]
        if fault is not None and fault.kind == "drip":
            response = await _drip(request, answer, fault)
        else:
            response = _answer(answer)
            await response.prepare(request)
            await response.write_eof()
        self.counters.complete(body)
        return response

    async def _stream(self, request: web.BaseRequest, events: list[bytes], body: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        await response.write_eof()
        self.counters.complete(body)
        return response

    # --- control routes

    async def _control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        try:
            if request.method == "GET" and path == "/control/state":
                return _json(self._state())
            if request.method == "POST" and path == "/control/reset":
                self.counters.reset()
                self.answerer.recording.rewind()
                return _json(self._state())
            if request.method == "PUT" and path in ("/control/faults", "/control/aliases"):
                self._put(path, await request.read())
                return _json(self._state())
        except (BadControl, BadFault) as error:
            return _json({"error": {"message": str(error)}}, 400)
        known = "GET /control/state, POST /control/reset, PUT /control/faults, PUT /control/aliases"
        return _json({"error": {"message": f"there is no route {request.method} {path}; known: {known}"}}, 404)

    def _put(self, path: str, raw: bytes) -> None:
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadControl(f"the body is not JSON: {error}") from None
        if path == "/control/faults":
            self.faults = read_faults(data)
            self.counters.forget_attempts()
        else:
            self.answerer.aliases = merge_aliases(self.answerer.aliases, data)

    def _state(self) -> dict[str, Any]:
        return {
            "aliases": self.answerer.aliases,
            "faults": [fault.as_json() for fault in self.faults],
            "options": self.options,
            "counters": self.counters.as_json(),
        }


def _vendor(path: str) -> Vendor:
    if path.endswith("/messages"):
        return "anthropic"
    return "gemini" if _GEMINI_PATH.search(path) else "openai"


def _digest(path: str, raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=12, person=path[-16:].encode()[-16:]).hexdigest()


def _answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type=_JSON)


def _json(data: object, status: int = 200) -> web.Response:
    return _answer(orjson.dumps(data), status)


async def _refuse(request: web.BaseRequest, vendor: Vendor, model: str, fault: Fault) -> web.StreamResponse:
    """The refusal a fault asks for, in the vendor's words."""
    if fault.kind == "timeout":
        await asyncio.sleep(_FOREVER_S)  # ends by cancellation when the client hangs up
    if fault.kind in ("timeout", "disconnect"):
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
    if fault.kind == "rate_limit":
        seconds = f"{fault.parameters['retry_after_s']:g}"
        message = f"Rate limit reached for {model}. Please try again in {seconds}s."
        answer = write_error(vendor, 429, message, code="rate_limit_exceeded")
        return _answer(answer, 429, {"Retry-After": seconds})
    if fault.kind == "deprecated":
        message = f"The model `{model}` has been deprecated and is no longer available."
        return _answer(write_error(vendor, 404, message, code="model_not_found"), 404)
    status = fault.parameters["status"]
    return _answer(write_error(vendor, status, "The server had an error while processing your request."), status)


async def _drip(request: web.BaseRequest, answer: bytes, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": _JSON, "Content-Length": str(len(answer))})
    await response.prepare(request)
    step = fault.parameters["chunk_bytes"]
    for start in range(0, len(answer), step):
        await response.write(answer[start : start + step])
        await asyncio.sleep(fault.parameters["interval_s"])
    await response.write_eof()
    return response
