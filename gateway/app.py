"""The gateway's HTTP interface: which bundles an environment serves, who answers a request key; webhooks in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from gateway.hooks import HookDesk, add_receiving
from gateway.metrics import GatewayMetrics
from gateway.operators import add_operators
from gateway.problem import documented, problem
from gateway.releases import Answer, Releases
from touchstone.errors import TouchstoneError
from touchstone.routing import Arm, PublishedRelease, route

Environment = Annotated[str, Path(pattern=r"^[\w.-]{1,64}$", description="A release line, such as `production`")]
_BEGIN_AGAIN_S = 5.0
_log = logging.getLogger("touchstone")
_KEEP = "no-cache"  # may be kept, must be asked about: that is what the ETag is for


class RouteView(BaseModel):
    """Who answers one request key."""

    environment: str
    sequence: int
    arm: Arm
    bundle: str
    fingerprint: str
    model: str
    canary_id: str | None = Field(description="The canary that runs, whichever arm this is")


class Health(BaseModel):
    """The gateway runs and can read the ledger."""

    status: str


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    said = {
        404: "Nothing was ever released to this environment",
        409: "The environment has no champion yet",
        503: "The ledger cannot be read: keep what you have and ask again",
    }
    return documented({code: said[code] for code in codes})


def create_app(releases: Releases, ready: Callable[[], object], hooks: HookDesk | None = None) -> FastAPI:
    """`ready` raises a TouchstoneError while the ledger cannot be read. Without `hooks` no webhooks are taken."""
    app = FastAPI(
        title="Touchstone gateway",
        version="1.0",
        description="What an environment serves, and webhooks in.",
        redoc_url=None,
        lifespan=_working(hooks),
    )

    async def current(environment: str) -> Answer:
        return releases.remembered(environment) or await run_in_threadpool(releases.current, environment)

    @app.get(
        "/releases/{environment}",
        response_model=PublishedRelease,
        responses={304: {"description": "Unchanged since the ETag in If-None-Match"}, **_problems(404, 503)},
    )
    async def release(
        environment: Environment,
        if_none_match: Annotated[str | None, Header(description="ETag of the answer you have")] = None,
    ) -> Response:
        """Champion, canary and fall-backs, each with its whole definition. Poll it with If-None-Match."""
        answer = await current(environment)
        if answer.release is None:
            return _unknown(environment)
        headers = {"ETag": answer.etag, "Cache-Control": _KEEP}
        if _matches(if_none_match, answer.etag):
            return Response(status_code=304, headers=headers)
        return Response(answer.body, media_type="application/json", headers=headers)

    @app.get("/releases/{environment}/route", response_model=RouteView, responses=_problems(404, 409, 503))
    async def routed(
        environment: Environment,
        key: Annotated[str, Query(min_length=1, max_length=512, description="Of the user or session: it is sticky")],
    ) -> RouteView | Response:
        """For apps that do not want the client: who answers this request key now."""
        answer = await current(environment)
        if answer.release is None:
            return _unknown(environment)
        try:
            found = route(answer.release, key)
        except TouchstoneError as error:
            return problem(409, str(error))
        return RouteView(
            environment=environment,
            sequence=answer.release.sequence,
            arm=found.arm,
            bundle=found.bundle,
            fingerprint=found.fingerprint,
            model=found.served.definition.model,
            canary_id=found.canary_id,
        )

    @app.get("/health", response_model=Health, responses=_problems(503))
    async def health() -> Health:
        """The gateway runs and can read the ledger."""
        await run_in_threadpool(ready)
        return Health(status="ok")

    @app.exception_handler(TouchstoneError)
    async def unreadable(request: Request, error: TouchstoneError) -> Response:
        return problem(503, str(error), {"Retry-After": "1"})

    if hooks is not None:
        metrics = GatewayMetrics(hooks.inbox)
        add_operators(app, hooks, metrics)
        add_receiving(app, hooks, metrics)
    return app


def _working(hooks: HookDesk | None) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(_kept_up(hooks.work)) if hooks and hooks.work else None
        yield
        if work is not None:
            work.cancel()
            await asyncio.wait([work])

    return lifespan


async def _kept_up(work: Callable[[], Awaitable[object]]) -> None:
    """Begun again when it fails: webhooks are still acknowledged then, and something has to act on them."""
    while True:
        try:
            await work()
        except Exception:
            _log.exception("what runs beside the gateway failed, and begins again in %.0f s", _BEGIN_AGAIN_S)
        await asyncio.sleep(_BEGIN_AGAIN_S)


def _matches(asked: str | None, etag: str) -> bool:
    """If-None-Match names the ETag, alone or in a list; a proxy may have weakened it."""
    return asked is not None and (
        asked.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in asked.split(",")}
    )


def _unknown(environment: str) -> Response:
    return problem(404, f"nothing was ever released to {environment}; `touchstone promote` makes its first champion")
