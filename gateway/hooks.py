"""POST /hooks/{source}: a webhook is verified, put into the inbox, and only then acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.routing import Route

from gateway.hook_bodies import Budget, read_body
from gateway.hook_content import read_hook
from gateway.hook_docs import RECEIVE
from gateway.inbox import Inbox
from gateway.metrics import UNKNOWN, GatewayMetrics
from gateway.problem import problem
from gateway.signatures import Refused, verify
from touchstone.errors import Unmeasurable
from touchstone.webhooks import Hook, Webhooks

_PUT_DEADLINE_S = 10.0


@dataclass(frozen=True)
class HookDesk:
    """What the gateway needs to take webhooks.

    `secrets` are of `signatures.read_secrets`. `on_put` is called in the event loop after each webhook that is new and
    starts something. `work` runs beside the server, from its start until it is cancelled at its end; if it
    fails it is begun again. Without `operator_token` only this machine sees the inbox.
    """

    webhooks: Webhooks
    secrets: Mapping[str, tuple[str, ...]]
    inbox: Inbox
    on_put: Callable[[], object] = lambda: None
    work: Callable[[], Coroutine[Any, Any, object]] | None = None
    operator_token: str = field(default="", repr=False)


class Receipt(BaseModel):
    """The webhook is on disk, or was before."""

    id: str = Field(description="The same for every repetition; `touchstone hooks` knows it")
    status: Literal["accepted", "ignored", "duplicate"] = Field(description="ignored: no rule wants it")


def add_receiving(app: FastAPI, desk: HookDesk, metrics: GatewayMetrics) -> None:
    """The route that takes webhooks: a plain one, which is faster than FastAPI's; that one serves as documentation."""
    budget, most = Budget(), desk.webhooks.max_body_kb * 1024

    async def receive(request: Request) -> Response:
        """Take a webhook: 202 once it is on disk, 200 when it was there before."""
        started = time.perf_counter()
        name = request.path_params["source"]
        label = name if name in desk.webhooks.sources else UNKNOWN
        outcome, reason = "refused", ""
        try:
            with budget.lease() as lease:
                _check_request(desk, name, request)
                body = await read_body(request, most, lease)
                hook = _read(desk, name, request, body)
                outcome = await _put(desk, hook)
            return _receipt(hook, outcome)
        except Refused as refused:
            reason = refused.reason
            closes = {"Connection": "close"} if refused.closes else {}
            return problem(refused.status, refused.error, closes | _HEADERS.get(refused.status, {}))
        except (Unmeasurable, TimeoutError) as error:
            reason = "unkept"
            return problem(503, str(error) or "the inbox does not answer", {"Retry-After": "2"})
        finally:
            metrics.count(label, outcome, time.perf_counter() - started, reason)

    app.router.routes.append(Route("/hooks/{source}", receive, methods=["POST"]))
    app.post("/hooks/{source}", status_code=202, response_model=Receipt, **RECEIVE)(receive)


_HEADERS = {401: {"WWW-Authenticate": "Signature"}, 429: {"Retry-After": "1"}}


def _check_request(desk: HookDesk, name: str, request: Request) -> None:
    if name not in desk.webhooks.sources:
        raise Refused(404, "source", "there is no such source in webhooks.sources of touchstone.yaml")
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise Refused(415, "media_type", "send application/json (in GitHub's form: Content type)")


def _read(desk: HookDesk, name: str, request: Request, body: bytes) -> Hook:
    now = time.time()
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in request.scope["headers"]}
    verified = verify(desk.webhooks.sources[name], desk.secrets[name], headers, body, now)
    return read_hook(desk.webhooks, name, verified, headers, body, now)


async def _put(desk: HookDesk, hook: Hook) -> Literal["accepted", "ignored", "duplicate"]:
    async with asyncio.timeout(_PUT_DEADLINE_S):  # should it be kept after that, the sender's next try is a duplicate
        is_new = await desk.inbox.put(hook)
    if not is_new:
        return "duplicate"
    if not hook.actions:
        return "ignored"
    desk.on_put()
    return "accepted"


def _receipt(hook: Hook, outcome: Any) -> Response:
    receipt = Receipt(id=hook.id, status=outcome)
    return JSONResponse(receipt.model_dump(), 200 if outcome == "duplicate" else 202)
