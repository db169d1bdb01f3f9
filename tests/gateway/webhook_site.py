"""A gateway that takes webhooks into a real inbox, and senders of every kind."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from standardwebhooks import Webhook

from gateway.app import create_app
from gateway.hooks import HookDesk
from gateway.releases import Releases
from gateway.server import running
from gateway.signatures import read_secrets
from tasks.inbox import WebhookInbox
from touchstone.inbox import InboxRow
from touchstone.webhooks import Webhooks

STANDARD = "whsec_" + base64.b64encode(b"a key of twenty-four byte").decode()
SECRETS = {
    "STANDARD_SECRET": STANDARD,
    "GITHUB_SECRET": "the-new-github-secret the-old-github-secret",
    "MLFLOW_SECRET": "the-secret-of-mlflow",
    "CI_SECRET": "the-secret-of-the-ci",
    "PLAIN_SECRET": "the-secret-of-plain",
    "PREFECT_TOKEN": "the-token-of-prefect",
}
WEBHOOKS = Webhooks.model_validate(
    {
        "max_body_kb": 64,
        "sources": {
            "standard": {"kind": "standard", "secret_env": "STANDARD_SECRET"},
            "github": {"kind": "github", "secret_env": "GITHUB_SECRET"},
            "mlflow": {"kind": "mlflow", "secret_env": "MLFLOW_SECRET"},
            "ci": {
                "kind": "hmac",
                "secret_env": "CI_SECRET",
                "signature_header": "X-CI-Signature",
                "signature_prefix": "v0=",
                "encoding": "base64",
                "timestamp_header": "X-CI-Time",
                "event_header": "X-CI-Event",
                "tolerance_s": 60,
            },
            "plain": {"kind": "hmac", "secret_env": "PLAIN_SECRET"},
            "prefect": {"kind": "token", "secret_env": "PREFECT_TOKEN"},
        },
        "rules": [
            {
                "source": "github",
                "event": "push",
                "paths": ["prompts/*"],
                "run": "gate/support",
                "parameters": {"event": {"paths": "${paths}", "commit": "${payload.after}"}},
            },
            *(
                {"source": source, "event": event, "run": "gate/support", "parameters": {"data": "${payload.data}"}}
                for source, event in (
                    ("standard", "prompt.*"),
                    ("mlflow", "prompt_version.created"),
                    ("ci", "built"),
                    ("plain", "built"),
                )
            ),
        ],
    }
)
_NUMBERS = itertools.count()


def fresh_id() -> str:
    return f"msg-{next(_NUMBERS)}"


class HookSite:
    """A running gateway with its inbox; `sign` makes the headers of each kind as its senders do."""

    def __init__(self, inbox: WebhookInbox, **desk: Any) -> None:
        self.inbox, self.puts = inbox, 0
        given = {"webhooks": WEBHOOKS, "secrets": read_secrets(WEBHOOKS, SECRETS), "inbox": inbox} | desk
        self.desk = HookDesk(on_put=self._count, **given)
        self.app: FastAPI = create_app(Releases(lambda _: 0, lambda _: None), lambda: None, self.desk)
        self.url = ""
        self.http: httpx.Client

    def _count(self) -> None:
        self.puts += 1

    def post(self, source: str, body: Any, headers: dict[str, str] | None = None, **signing: Any) -> httpx.Response:
        """Signed as the source wants, unless headers are given."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = sign(source, content, **signing) if headers is None else headers
        return self.http.post(
            f"/hooks/{source}", content=content, headers={"Content-Type": "application/json"} | headers
        )

    def row(self, answer: httpx.Response) -> InboxRow:
        return next(row for row in self.inbox.listed(limit=10_000) if row.hook.id == answer.json()["id"])


@contextmanager
def hook_site(folder: Path, **desk: Any) -> Iterator[HookSite]:
    inbox = WebhookInbox(f"sqlite:///{folder / 'inbox.db'}")
    try:
        site = HookSite(inbox, **desk)
        with running(site.app) as site.url, httpx.Client(base_url=site.url, timeout=20) as site.http:
            yield site
    finally:
        inbox.close()


def sign(
    source: str, body: bytes, secret: str = "", at: float | None = None, delivery: str = "", event: str = "push"
) -> dict[str, str]:
    delivery, stamp = delivery or fresh_id(), str(int(time.time() if at is None else at))
    if source == "standard":
        moment = datetime.fromtimestamp(int(stamp), UTC)
        proof = Webhook(secret or STANDARD).sign(delivery, moment, body.decode(errors="replace"))
        return {"webhook-id": delivery, "webhook-timestamp": stamp, "webhook-signature": proof}
    if source == "github":
        proof = "sha256=" + _hmac(secret or "the-new-github-secret", body).hex()
        return {"X-Hub-Signature-256": proof, "X-GitHub-Event": event, "X-GitHub-Delivery": delivery}
    if source == "mlflow":
        proof = "v1," + _base64(secret or SECRETS["MLFLOW_SECRET"], f"{delivery}.{stamp}.".encode() + body)
        return {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": stamp, "X-MLflow-Signature": proof}
    if source == "ci":
        proof = "v0=" + _base64(secret or SECRETS["CI_SECRET"], f"{stamp}.".encode() + body)
        return {"X-CI-Signature": proof, "X-CI-Time": stamp, "X-CI-Event": event}
    if source == "plain":
        return {"X-Signature": _hmac(secret or SECRETS["PLAIN_SECRET"], body).hex()}
    return {"Authorization": f"Bearer {secret or SECRETS['PREFECT_TOKEN']}"}


def _hmac(secret: str, signed: bytes) -> bytes:
    return hmac.new(secret.encode(), signed, hashlib.sha256).digest()


def _base64(secret: str, signed: bytes) -> str:
    return base64.b64encode(_hmac(secret, signed)).decode()
