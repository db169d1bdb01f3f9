"""Prefect's HTTP interface, for who must not carry Prefect itself: runs of deployments, and events.

Every refusal is told from a server that is away: what was refused is not tried again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

import httpx

from tasks.prefect_address import authorization
from touchstone.errors import BadInput, TouchstoneError, Unmeasurable
from touchstone.privacy import redact_secrets

TIMEOUT_S = 10.0
_BUSY = {408, 425, 429}  # and what is above 500: Prefect on SQLite answers 503 when two write at once
_TRIES = 8  # while it is busy: some 4 s


class PrefectAway(Unmeasurable):
    """Prefect did not answer, or was busy: any request may pass later."""


class PrefectBroke(TouchstoneError):
    """Prefect is ready, and yet answers this one request with an error of its own."""


class PrefectApi:
    """One server; for one event loop. Raises BadInput for what is no address; without one Prefect is away."""

    def __init__(self, url: str) -> None:
        if url and not _is_address(url):  # which is not shown: it may hold a password
            raise BadInput("PREFECT_API_URL: no http(s) address, as http://127.0.0.1:4200/api")
        self._http = httpx.AsyncClient(base_url=url, headers=authorization(), timeout=TIMEOUT_S, trust_env=False)
        self._deployments: dict[str, str] = {}

    async def close(self) -> None:
        await self._http.aclose()

    async def create_run(self, deployment: str, parameters: Mapping[str, Any], idempotency_key: str) -> str:
        """The flow run's id; the same one for the same key. `deployment` is FLOW/NAME.

        Raises BadInput for a deployment that is not there and for parameters that its flow does not take, PrefectBroke
        for what Prefect itself fails on (a deployment whose parameter schema is broken), PrefectAway otherwise.
        """
        if _has_template(parameters):
            raise BadInput(f"{deployment}: a parameter holds __prefect_kind, which Prefect would evaluate")
        body = {"parameters": parameters, "idempotency_key": idempotency_key, "enforce_parameter_schema": True}
        for _ in range(2):
            found = self._deployments.get(deployment) or await self._look_up(deployment)
            answer = await self._send("POST", f"/deployments/{found}/create_flow_run", body)
            if answer.status_code != 404:
                return str(_checked(answer, deployment)["id"])
            self._deployments.pop(deployment, None)  # it was deployed anew, under another id
        raise BadInput(_missing(deployment))

    async def emit(self, event: str, resource: str, payload: Mapping[str, Any], key: str) -> None:
        """Send an event. Prefect takes the same `key` once within five minutes. Raises as `create_run` does."""
        body = {
            "id": str(uuid5(NAMESPACE_URL, f"touchstone:{key}")),
            "event": event,
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": resource},
            "payload": payload,
        }
        answer = await self._send("POST", "/events", [body])
        if answer.status_code >= 400:
            raise BadInput(f"Prefect refuses the event {event}: {_reason(answer)}")

    async def _look_up(self, deployment: str) -> str:
        flow, _, name = deployment.partition("/")
        answer = await self._send("GET", f"/deployments/name/{quote(flow, safe='')}/{quote(name, safe='')}")
        if answer.status_code == 404:
            raise BadInput(_missing(deployment))
        self._deployments[deployment] = str(_checked(answer, deployment)["id"])
        return self._deployments[deployment]

    async def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = await self._sent(method, path, body)
        for attempt in range(1, _TRIES):
            if not _is_busy(answer):
                break
            await asyncio.sleep(random.uniform(0.5, 1.5) * 0.015 * 2**attempt)  # apart, or those who met meet again
            answer = await self._sent(method, path, body)
        if answer.status_code >= 500 and (await self._sent("GET", "/ready", None)).is_success:
            raise PrefectBroke(f"Prefect is ready, but answers {answer.status_code} to this: its server's log says why")
        if answer.status_code == 500 or _is_busy(answer):
            raise PrefectAway(f"Prefect answers {answer.status_code}")
        return answer

    async def _sent(self, method: str, path: str, body: Any) -> httpx.Response:
        if not self._http.base_url.host:
            raise PrefectAway("PREFECT_API_URL is not set")
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise PrefectAway(f"Prefect does not answer: {type(error).__name__}") from None
        if answer.status_code in {401, 403}:  # people mend this without sending the webhook again
            raise PrefectAway(f"Prefect answers {answer.status_code}: check PREFECT_API_AUTH_STRING or PREFECT_API_KEY")
        return answer


def _is_busy(answer: httpx.Response) -> bool:
    return answer.status_code > 500 or answer.status_code in _BUSY


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in {"http", "https"} and bool(parsed.host)


def _checked(answer: httpx.Response, deployment: str) -> dict[str, Any]:
    if answer.status_code >= 400:
        raise BadInput(f"{deployment}: Prefect refuses the run: {_reason(answer)}")
    return answer.json()


def _reason(answer: httpx.Response) -> str:
    try:
        found = answer.json()
    except ValueError:
        found = answer.text
    detail = found.get("detail", found.get("exception_detail", found)) if isinstance(found, dict) else found
    return redact_secrets(str(detail))[:500]


def _missing(deployment: str) -> str:
    return (
        f"Prefect has no deployment {deployment}: correct `run` of the rule in touchstone.yaml, or `touchstone deploy`"
    )


def _has_template(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "__prefect_kind" in value or any(_has_template(inner) for inner in value.values())
    return isinstance(value, list | tuple) and any(_has_template(inner) for inner in value)
