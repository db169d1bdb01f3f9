"""Notifications: Slack-compatible messages, webhooks signed as Standard Webhooks asks, mail and every other service."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence

from tasks.announce_release import run_links
from tasks.flow_run import flow_run_page
from tasks.ledger import Ledger
from tasks.notify_apprise import send_by_apprise
from tasks.outbox_http import post_json
from tasks.projection import Projection, TargetAway
from touchstone.alarms import ALARM_KINDS
from touchstone.ledger import RELEASE_SUBJECT, EventKind, LedgerEvent
from touchstone.notice_texts import is_end, plain_text, slack_message, webhook_body
from touchstone.notices import NOTICE_KINDS, Notice, folded, notice_of_alarm, notice_of_level, notice_of_release
from touchstone.release_news import NEWS_KINDS
from touchstone.settings import NotifyTarget, Settings
from touchstone.severity import Severity

FOLDED_ABOVE = 20  # so many at once are told one by one, more as one message
_LOOKED_BACK = 200  # evals of one subject: as far as the last one that could be measured
_APPRISE_TYPES = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "failure"}


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
        releases = ledger.events(subject=RELEASE_SUBJECT) if any(one.kind in NEWS_KINDS for one in events) else []
        found = [(event.sequence, _notice(ledger, releases, event)) for event in events]
        wanted = [notice for _, notice in found if notice and target.wants(notice.name, notice.severity)]
        if target.is_for_people and len(wanted) > FOLDED_ABOVE:
            _post(settings, target, folded(wanted))
            wanted = []
        for sequence, notice in found:
            if notice in wanted:
                _post(settings, target, notice)
            yield sequence

    return send


def _notice(ledger: Ledger, releases: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    if event.kind in NEWS_KINDS:
        return notice_of_release(ledger.environment, releases, event)
    if event.kind in ALARM_KINDS:
        return notice_of_alarm(ledger.environment, event)
    back = _LOOKED_BACK if event.kind is EventKind.EVAL_DECIDED else 1  # others record their transitions
    earlier = ledger.events(event.kind, event.subject, before=event.sequence, newest=back)[::-1]
    return notice_of_level(ledger.environment, earlier, event)


def _links(settings: Settings, notice: Notice) -> dict[str, str]:
    links = run_links(settings, notice.data.get("run_keys", ()))
    page = flow_run_page(settings, notice.flow_run_id)
    return links | ({"Prefect": page} if page else {})


def _post(settings: Settings, target: NotifyTarget, notice: Notice) -> None:
    url, links = _from_environment(target.url_env), _links(settings, notice)
    if target.kind == "slack":
        post_json(url, json.dumps(slack_message(notice, links)).encode())
        return
    if target.kind != "webhook":
        title, text = plain_text(notice, links)
        kind = "success" if is_end(notice) else _APPRISE_TYPES[notice.severity]
        send_by_apprise(url, title, text, kind, only_mail=target.kind == "email")
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
