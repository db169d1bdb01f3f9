"""What operators look at: the inbox, and the metrics."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from gateway.hooks import HookDesk
from gateway.metrics import GatewayMetrics
from gateway.problem import documented, problem
from touchstone.inbox import HookStatus, InboxRow

_BEARER = HTTPBearer(auto_error=False, description="TOUCHSTONE_GATEWAY_TOKEN")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
Source = Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Only of this source")]
_RSS = "# HELP process_resident_memory_bytes Resident memory size in bytes."


class InboxPage(BaseModel):
    """Webhooks, newest first."""

    rows: tuple[InboxRow, ...]


def add_operators(app: FastAPI, desk: HookDesk, metrics: GatewayMetrics) -> None:
    @app.get(
        "/hooks/inbox",
        response_model=InboxPage,
        responses=documented(
            {
                401: "Not the token of TOUCHSTONE_GATEWAY_TOKEN",
                403: "Asked from another machine while TOUCHSTONE_GATEWAY_TOKEN is not set",
                503: "The inbox cannot be read",
            }
        ),
    )
    async def inbox(
        request: Request,
        bearer: Bearer,
        status: Annotated[HookStatus | None, Query(description="Only of this status")] = None,
        source: Source = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        """Webhooks with what became of them."""
        if (refusal := _refusal(desk.operator_token, bearer, request.scope)) is not None:
            return refusal
        page = InboxPage(rows=tuple(await desk.inbox.rows(status, source, limit)))
        return Response(page.model_dump_json(), media_type="application/json")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {"example": _RSS}}}},
    )
    async def prometheus() -> Response:
        """Webhooks by source and outcome, latency, what waits in the inbox, the process."""
        return Response(await metrics.text(), media_type="text/plain; version=0.0.4")


def _refusal(token: str, bearer: HTTPAuthorizationCredentials | None, scope: Any) -> Response | None:
    """None: the caller may look."""
    if token:
        given = bearer.credentials if bearer else ""
        if hmac.compare_digest(given.encode(errors="replace"), token.encode()):
            return None
        return problem(
            401, "send `Authorization: Bearer` with TOUCHSTONE_GATEWAY_TOKEN", {"WWW-Authenticate": "Bearer"}
        )
    if all(_is_loopback(scope.get(side)) for side in ("server", "client")):  # the client's also behind a proxy
        return None
    return problem(403, "set TOUCHSTONE_GATEWAY_TOKEN for the gateway: without it only its own machine sees the inbox")


def _is_loopback(address: Any) -> bool:
    try:
        return ip_address(address[0]).is_loopback
    except (TypeError, ValueError, IndexError):
        return False
