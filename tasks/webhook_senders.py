"""Webhooks as their senders sign them: for trying out what one would start."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

from standardwebhooks import Webhook

from touchstone.webhooks import Source


def signed_headers(source: Source, secret: str, body: bytes, delivery: str, event: str, now: float) -> dict[str, str]:
    """The headers that prove `body` to come from `source`; `now` in Unix seconds. `event` where a header says it."""
    time = str(int(now))
    if source.kind == "standard":
        signature = Webhook(secret).sign(delivery, datetime.fromtimestamp(int(now), UTC), body.decode())
        return {"webhook-id": delivery, "webhook-timestamp": time, "webhook-signature": signature}
    if source.kind == "github":
        signature = f"sha256={_digest(secret, body).hex()}"
        return {"x-hub-signature-256": signature, "x-github-event": event, "x-github-delivery": delivery}
    if source.kind == "mlflow":
        signature = f"v1,{_base64(_digest(secret, f'{delivery}.{time}.'.encode() + body))}"
        return {"x-mlflow-delivery-id": delivery, "x-mlflow-timestamp": time, "x-mlflow-signature": signature}
    named = {source.event_header: event} if source.event_header else {}
    if source.kind == "token":
        return {"authorization": f"Bearer {secret}", **named}
    timed = {source.timestamp_header: time} if source.timestamp_header else {}
    digest = _digest(secret, f"{time}.".encode() + body if timed else body)
    written = digest.hex() if source.encoding == "hex" else _base64(digest)
    return {source.signature_header: source.signature_prefix + written, **timed, **named}


def _digest(secret: str, signed: bytes) -> bytes:
    return hmac.digest(secret.encode(), signed, hashlib.sha256)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
