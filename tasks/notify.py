"""Notifications: Slack-compatible messages, and webhooks signed as Standard Webhooks asks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence

from tasks.announce_release import flow_run_url, run_links
from tasks.ledger import Ledger
from tasks.outbox_http import post_json
from tasks.projection import Projection, TargetAway
from touchstone.ledger import RELEASE_SUBJECT, LedgerEvent
from touchstone.notices import NOTICE_KINDS, Notice, notice_of_level, notice_of_release, slack_message, webhook_body
from touchstone.release_news import NEWS_KINDS
from touchstone.settings import NotifyTarget, Settings


def projections(settings: Settings) -> tuple[Projection, ...]:
    """One per target of the settings, so that a receiver that is down delays no other."""
    return tuple(
        Projection(f"notify.{target.url_env}", NOTICE_KINDS, _sender(target)) for target in _distinct(settings.notify)
    )


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Standard Webhooks: HMAC-SHA256 over id, time and body. The secret is `whsec_` and base64, or any text."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def _distinct(targets: Sequence[NotifyTarget]) -> list[NotifyTarget]:
    """Of two entries with one address the first: their cursor would be one."""
    return list({target.url_env: target for target in reversed(targets)}.values())[::-1]


def _sender(target: NotifyTarget) -> Callable[[Settings, Ledger, Sequence[LedgerEvent]], Iterator[int]]:
    def send(settings: Settings, ledger: Ledger, events: Sequence[LedgerEvent]) -> Iterator[int]:
        releases = ledger.events(subject=RELEASE_SUBJECT)
        for event in events:
            notice = _notice(ledger, releases, event)
            if notice is not None and target.wants(notice.name):
                _post(target, notice, _links(settings, notice))
            yield event.sequence

    return send


def _notice(ledger: Ledger, releases: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    if event.kind in NEWS_KINDS:
        return notice_of_release(ledger.environment, releases, event)
    earlier = [one for one in ledger.events(event.kind, event.subject) if one.sequence < event.sequence]
    return notice_of_level(ledger.environment, earlier, event)


def _links(settings: Settings, notice: Notice) -> dict[str, str]:
    links = run_links(settings, notice.data.get("run_keys", ()))
    page = flow_run_url(settings)
    return links | ({"Prefect": page} if page else {})


def _post(target: NotifyTarget, notice: Notice, links: dict[str, str]) -> None:
    url = _from_environment(target.url_env)
    if target.kind == "slack":
        post_json(url, json.dumps(slack_message(notice, links)).encode())
        return
    body = json.dumps(webhook_body(notice, links)).encode()
    secret = _from_environment(target.secret_env)
    post_json(url, body, signed_headers(secret, notice.id, int(time.time()), body))


def _from_environment(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise TargetAway(f"{name} is not set; what waits is sent by a process that has it")
    return value


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise TargetAway("the webhook's secret starts with whsec_, but base64 does not follow") from None
