"""The support app's HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from examples.support_app.assistant import Assistant
from examples.support_app.release_client import ReleaseClient
from tasks.failover import Failover
from tasks.tracking_traffic import TrafficSender
from tasks.vendor_library import litellm_module
from touchstone.errors import TouchstoneError
from touchstone.routing import Arm
from touchstone.settings import Settings


class Question(BaseModel):
    """What a customer asks. `key` is of the user or session: it decides, and keeps, who sees a canary."""

    question: str = Field(min_length=1, max_length=4000)
    key: str = Field(min_length=1, max_length=512)
    segment: str | None = Field(default=None, max_length=64)


class Context(BaseModel):
    """One retrieved text."""

    id: str
    document_id: str
    title: str
    text: str


class AnswerView(BaseModel):
    """`bundle` was routed to; `served_by` answered: with `fallback` that was another vendor's model."""

    answer: str
    contexts: list[Context]
    bundle: str
    arm: Arm
    served_by: str
    fallback: bool
    request_id: str


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    kind: str
    request_id: str | None = None


@dataclass(frozen=True)
class AppOptions:
    """How the app is run."""

    settings: Settings
    gateway: str
    allow_ungated_fallback: bool = False
    poll_s: float = 0.3
    failover: dict[str, Any] = field(default_factory=dict)


def create_app(options: AppOptions) -> FastAPI:
    """Everything starts and ends with the server: nothing runs while this is only imported."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        releases = ReleaseClient(options.gateway, options.settings.environment, options.poll_s)
        sender = TrafficSender(options.settings)
        await asyncio.to_thread(releases.start)
        # Seconds of imports that no customer should wait for.
        await asyncio.to_thread(litellm_module)
        await asyncio.to_thread(sender.warm_up, options.settings.environment)
        assistant = Assistant(
            options.settings,
            releases,
            sender,
            Failover(**options.failover),
            allow_ungated_fallback=options.allow_ungated_fallback,
        )
        app.state.assistant, app.state.releases, app.state.sender = assistant, releases, sender
        yield
        releases.close()
        assistant.close()
        await asyncio.to_thread(sender.close)

    app = FastAPI(title="Support", lifespan=lifespan, redoc_url=None)

    @app.post("/ask", response_model=AnswerView, responses={503: {"model": Problem}})
    async def ask(asked: Question) -> AnswerView | Response:
        """The answer of whichever bundle this key is routed to, or of a fall-back when its vendor is away."""
        reply = await app.state.assistant.ask(asked.question, asked.key, asked.segment)
        text, served_by = reply.answered.text, reply.served_by
        if text is None or served_by is None:
            failure = reply.failure
            problem = Problem(error=failure.reason, kind=failure.kind.value, request_id=reply.request_id)
            return JSONResponse(problem.model_dump(), 503)
        chunks = reply.retrieval.chunks if reply.retrieval else ()
        return AnswerView(
            answer=text,
            contexts=[
                Context(id=one.chunk_id, document_id=one.document_id, title=one.title, text=one.text) for one in chunks
            ],
            bundle=reply.routed.bundle,
            arm=reply.routed.arm,
            served_by=served_by,
            fallback=reply.is_fallback,
            request_id=reply.request_id,
        )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The release state in use, the answers so far, and the traces that MLflow has or will never get."""
        return {
            "status": "ok",
            "release": app.state.releases.report(),
            "answers": dict(app.state.assistant.counts),
            "traces": app.state.sender.report(),
        }

    @app.get("/providers")
    async def providers() -> list[dict[str, Any]]:
        """Each vendor's circuit, and what it was asked, answered, took and cost."""
        return app.state.assistant.failover.report()

    @app.exception_handler(TouchstoneError)
    async def unanswerable(request: Request, error: TouchstoneError) -> Response:
        return JSONResponse(Problem(error=str(error), kind="not_served").model_dump(), 503)

    return app
