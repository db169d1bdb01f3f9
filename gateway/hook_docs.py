"""What the OpenAPI document says of POST /hooks/{source}, whose headers depend on the source's kind."""

from __future__ import annotations

from typing import Any

from gateway.problem import documented


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


_PARAMETERS = [
    {
        "name": "source",
        "in": "path",
        "required": True,
        "description": "Of webhooks.sources in touchstone.yaml",
        "schema": {"type": "string"},
        "example": "github",
    },
    _header("webhook-id", "standard", "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"),
    _header("webhook-timestamp", "standard: Unix seconds", "1764304000"),
    _header(
        "webhook-signature",
        "standard: v1, and HMAC-SHA256 of ID.TIME.BODY in base64; several by spaces",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
    _header("X-GitHub-Event", "github", "push"),
    _header("X-GitHub-Delivery", "github; not signed, so that repetitions are known by the body", "72d3162e-cc78"),
    _header("X-Hub-Signature-256", "github: sha256= and HMAC-SHA256 of the body in hexadecimal", "sha256=757107ea0eb2"),
    _header("X-MLflow-Delivery-Id", "mlflow", "0f9e4f3c-1d1e-4a59-9c52-1df9c5b9a0d1"),
    _header("X-MLflow-Timestamp", "mlflow: Unix seconds", "1764304000"),
    _header(
        "X-MLflow-Signature",
        "mlflow: v1, and HMAC-SHA256 of ID.TIME.BODY in base64",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
    _header("X-Signature", "hmac: of the body; name, prefix and encoding are the source's", "757107ea0eb2"),
]

_BODY = {
    "required": True,
    "description": "Signed as it is, byte by byte. A payload is a hint: what it starts reads the state again.",
    "content": {
        "application/json": {
            "schema": {},
            "examples": {
                "mlflow": {
                    "value": {
                        "entity": "prompt_version",
                        "action": "created",
                        "timestamp": "2026-11-28T05:03:39+00:00",
                        "data": {"name": "support", "version": "3"},
                    }
                },
                "alarm": {
                    "value": {
                        "type": "suite-silent",
                        "alarm": "suite-silent",
                        "id": "1",
                        "data": {"resource": "touchstone.suite.support"},
                    }
                },
            },
        }
    },
}

RECEIVE: dict[str, Any] = {
    "operation_id": "receive_webhook",
    "responses": {
        202: {"description": "Kept: what it starts is started as soon as Prefect takes it"},
        200: {"description": "A repetition of one that was kept before"},
        **documented(
            {
                400: "Malformed, or proved but of a time too far from now: `error` says how far",
                401: "Not signed by a secret of this source, whatever part of it is wrong",
                404: "No such source",
                408: "The body did not come in time; mostly the connection is closed instead",
                413: "The body is larger than webhooks.max_body_kb",
                415: "Not JSON",
                429: "The bodies on their way at once pass what the gateway holds; see Retry-After",
                503: "The inbox cannot be written; nothing was kept; see Retry-After",
            }
        ),
    },
    "openapi_extra": {"parameters": _PARAMETERS, "requestBody": _BODY},
}
