"""Systems under test: the built-in RAG, a prompt alone, the user's app over HTTP or as a Python callable."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.calls import CaseCalls
from tasks.retrieval import Retriever
from touchstone.bundle import AppTarget, Bundle, Endpoint
from touchstone.cases import GoldenCase
from touchstone.errors import BadInput, InvalidAnswer, VendorTimeout, VendorUnavailable
from touchstone.privacy import clean
from touchstone.prompts import GenerationParameters, Prompt
from touchstone.results import Answer, Call, Retrieval, RetrievedChunk


class Target(Protocol):
    """Answers golden cases. `prepare` sees a block of cases first, for work that is cheaper in one batch."""

    async def prepare(self, cases: Sequence[GoldenCase]) -> None: ...

    async def answer(self, case: GoldenCase, calls: CaseCalls) -> Answer: ...

    async def close(self) -> None: ...


class ModelTarget:
    """A pinned model with a prompt; with a retriever it is the built-in RAG."""

    def __init__(self, bundle: Bundle, prompt: Prompt, retriever: Retriever | None) -> None:
        self._endpoint: Endpoint = bundle.endpoint
        self._prompt = prompt
        self._parameters: GenerationParameters = bundle.parameters or prompt.parameters
        self._retriever = retriever
        self._retrieved: dict[str, Retrieval] = {}

    async def prepare(self, cases: Sequence[GoldenCase]) -> None:
        if self._retriever is not None:
            questions = list(dict.fromkeys(case.question for case in cases))
            found = await asyncio.to_thread(self._retriever.search_many, questions)
            self._retrieved |= dict(zip(questions, found, strict=True))

    async def answer(self, case: GoldenCase, calls: CaseCalls) -> Answer:
        retrieval = self._retrieved.get(case.question)
        values = {"question": case.question}
        if retrieval is not None:
            values["context"] = render_context(retrieval.chunks)
        text = await calls.complete(
            self._endpoint,
            self._prompt.messages(**values),
            self._parameters,
            role="generation",
            prompt_version=self._prompt.version,
        )
        return Answer(text=text, retrieval=retrieval)

    async def close(self) -> None:
        self._retrieved.clear()


class AppContext(BaseModel):
    """One context that an app used."""

    model_config = ConfigDict(extra="ignore")

    text: str
    id: str = ""
    document_id: str = ""


class AppReply(BaseModel):
    """What an app must answer: at least its answer; the rest makes retrieval scores, cost and metadata known."""

    model_config = ConfigDict(extra="ignore")

    answer: str = Field(min_length=1)
    contexts: list[AppContext | str] | None = None
    model: str | None = None
    fingerprint: str | None = None
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class AppTargetRunner:
    """The user's own app; its answers are journaled like a vendor's."""

    def __init__(self, app: AppTarget, ask: Callable[[GoldenCase], Awaitable[Any]], concurrency: int) -> None:
        self._app = app
        self._ask = ask
        self._limit = asyncio.Semaphore(concurrency)

    async def prepare(self, cases: Sequence[GoldenCase]) -> None:
        """An app prepares itself."""

    async def answer(self, case: GoldenCase, calls: CaseCalls) -> Answer:
        name = self._app.http or self._app.python or ""

        async def make() -> tuple[str, Call]:
            async with self._limit:  # outside the clock: waiting for a free place is not the app's time
                calls.budget.reserve(0.0)  # its cost is told afterwards: the cap ends the run at the next call
                started = time.perf_counter()
                try:
                    async with asyncio.timeout(self._app.timeout_s):
                        reply = _read_reply(await self._ask(case), name)
                except TimeoutError:
                    raise VendorTimeout(f"{name} did not answer within {self._app.timeout_s:g} s") from None
                latency_ms = (time.perf_counter() - started) * 1000
            calls.budget.settle(0.0, reply.cost_usd)
            return reply.model_dump_json(), _app_call(reply, name, latency_ms)

        def check(text: str | None, call: Call) -> AppReply:
            return AppReply.model_validate_json(text or "")

        reply = await calls.once({"target": name, "question": case.question}, make, check)
        return Answer(text=reply.answer, retrieval=_app_retrieval(case, reply, name))

    async def close(self) -> None:
        closing = getattr(self._ask, "close", None)
        if closing is not None:
            await closing()


class HttpApp:
    """POSTs {question, case_id} as JSON to the app."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, case: GoldenCase) -> Any:
        if self._session is None:
            # The runner limits and times the calls; aiohttp's own 100 connections and 5 minutes would come on top.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        body = {"question": case.question, "case_id": case.id}
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    text = clean((await response.text(errors="replace"))[:2000])[:200]
                    raise VendorUnavailable(f"{self._url} answered {response.status}: {text}")
                return await response.json(content_type=None)
        except aiohttp.ClientError as error:
            raise VendorUnavailable(f"{self._url}: {type(error).__name__}: {error}") from None
        except ValueError as error:
            raise InvalidAnswer(f"{self._url} did not answer JSON: {error}") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def python_app(reference: str, root: Path) -> Callable[[GoldenCase], Awaitable[Any]]:
    """`pkg.mod:function`, installed or below `root`, as an async callable; a plain function runs in a thread."""
    module_name, _, name = reference.partition(":")
    if str(root) not in sys.path:
        sys.path.append(str(root))  # last: the project's folders must hide no installed package
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's module may raise anything
        reason = clean(f"{type(error).__name__}: {error}")
        raise BadInput(f"bundle, field target.python: {reference!r} cannot be imported: {reason}") from None
    if not callable(function):
        raise BadInput(f"bundle, field target.python: {reference!r} is not callable")

    async def ask(case: GoldenCase) -> Any:
        try:
            if inspect.iscoroutinefunction(function):
                return await function(case.question)
            return await asyncio.to_thread(function, case.question)
        except Exception as error:  # the app is the user's: whatever it raises is its failure, not ours
            reason = clean(f"{type(error).__name__}: {error}")[:300]
            raise VendorUnavailable(f"{reference} raised {reason}") from error

    return ask


def render_context(chunks: Sequence[RetrievedChunk]) -> str:
    """Retrieved chunks as marked blocks of data, so that a model can tell them from instructions."""
    return "\n".join(
        f'<document id="{escape(chunk.document_id)}" title="{escape(chunk.title)}">\n'
        f"{chunk.text.replace('</document', '</ document')}\n</document>"
        for chunk in chunks
    )


def _read_reply(reply: Any, name: str) -> AppReply:
    try:
        return AppReply.model_validate({"answer": reply} if isinstance(reply, str) else reply)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "answer"
        raise InvalidAnswer(f"{name}: field {field}: {first['msg']}") from None


def _app_call(reply: AppReply, name: str, latency_ms: float) -> Call:
    return Call(
        role="generation",
        requested_model=name,
        served_model=reply.model,
        fingerprint=reply.fingerprint,
        finish_reason="stop",
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cost_usd=reply.cost_usd,
        latency_ms=latency_ms,
    )


def _app_retrieval(case: GoldenCase, reply: AppReply, name: str) -> Retrieval | None:
    if reply.contexts is None:
        return None
    contexts = [AppContext(text=item) if isinstance(item, str) else item for item in reply.contexts]
    chunks = tuple(
        RetrievedChunk(
            chunk_id=context.id or str(rank),
            document_id=context.document_id or context.id or str(rank),
            text=context.text,
            rank=rank,
            score=1 / rank,
        )
        for rank, context in enumerate(contexts, start=1)
    )
    return Retrieval(
        query=case.question, chunks=chunks, latency_ms=0, embedding_model="app", index_version=name, search="app"
    )
