"""The gateway's HTTP interface: which bundles an environment serves, and who answers a request key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from gateway.releases import Answer, Releases
from touchstone.errors import TouchstoneError
from touchstone.routing import Arm, PublishedRelease, route

Environment = Annotated[str, Path(pattern=r"^[\w.-]{1,64}$", description="A release line, such as `production`")]
_KEEP = "no-cache"  # may be kept, must be asked about: that is what the ETag is for


class Problem(BaseModel):
    """What went wrong, and what to do."""

    error: str


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
    return {code: {"model": Problem, "description": said[code]} for code in codes}


def create_app(releases: Releases, ready: Callable[[], object]) -> FastAPI:
    """`ready` raises a TouchstoneError while the ledger cannot be read."""
    app = FastAPI(title="Touchstone gateway", version="1.0", description="What an environment serves.", redoc_url=None)

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
            return _problem(409, str(error))
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
        return _problem(503, str(error), {"Retry-After": "1"})

    return app


def _matches(asked: str | None, etag: str) -> bool:
    """If-None-Match names the ETag, alone or in a list; a proxy may have weakened it."""
    return asked is not None and (
        asked.strip() == "*" or etag in {tag.strip().removeprefix("W/") for tag in asked.split(",")}
    )


def _unknown(environment: str) -> Response:
    return _problem(404, f"nothing was ever released to {environment}; `touchstone promote` makes its first champion")


def _problem(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(Problem(error=error).model_dump(), status, headers)
