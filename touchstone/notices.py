"""What people are told, and in which words: steps of a release, and levels that are reached or left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from touchstone.ledger import EventKind, LedgerEvent
from touchstone.privacy import redact_secrets
from touchstone.release_news import NEWS_KINDS, News, tell

_LEVELS = {
    EventKind.EVAL_DECIDED: "drift",
    EventKind.FRESHNESS_CHECKED: "freshness",
    EventKind.QUERIES_CHECKED: "queries",
}
NOTICE_KINDS = NEWS_KINDS | frozenset(_LEVELS)
_MARKS = {
    "promoted": "✅",
    "graduated": "✅",
    "recovered": "✅",
    "rolled_back": "⛔",
    "denied": "⛔",
    "detected": "▼",
    "drifted": "▼",
    "breached": "▼",
    "asked": "❓",
    "held": "❓",
}
_LONGEST = 2_800  # Slack takes 3,000 characters in a block


class Notice(BaseModel):
    """One thing to tell. Text is free of secrets that have a shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    environment: str
    sequence: int
    at: str
    headline: str
    reason: str = ""
    facts: dict[str, str] = {}
    data: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """The same at every attempt, so that a receiver can tell a repetition. A full stop separates in signatures."""
        return f"{self.environment.replace('.', '_')}-{self.sequence}"


def notice_of_release(environment: str, release_events: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    """What a step of a release tells people."""
    news = tell(environment, release_events, event)
    if news is None:
        return None
    return Notice(
        name=news.event.removeprefix("touchstone."),
        environment=environment,
        sequence=event.sequence,
        at=event.at,
        headline=news.headline,
        reason=news.reason or "",
        facts=_facts(news),
        data=news.model_dump(mode="json"),
    )


def notice_of_level(environment: str, earlier: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    """What an eval or a check tells: only that a level was reached or left. `earlier`: those of its subject before."""
    transition = _transition(earlier, event)
    if transition is None:
        return None
    about = event.subject.removeprefix("index:")
    if event.kind is EventKind.EVAL_DECIDED:
        bundle, _, dataset = event.subject.split(":", 2)
        about = f"{bundle} on {dataset}"
    name = f"{_LEVELS[event.kind]}.{transition}"
    reason = redact_secrets(str(event.payload.get("reason") or ""))
    return Notice(
        name=name,
        environment=environment,
        sequence=event.sequence,
        at=event.at,
        headline=f"{environment}: {_LEVELS[event.kind]} {transition}: {about}",
        reason=reason,
        data={
            "event": f"touchstone.{name}",
            "environment": environment,
            "sequence": event.sequence,
            "at": event.at,
            "about": about,
            "reason": reason,
            "run_keys": [event.payload["run_key"]] if "run_key" in event.payload else [],
        },
    )


def slack_message(notice: Notice, links: dict[str, str]) -> dict[str, Any]:
    """Incoming-webhook JSON: `text` for the notification, `blocks` for the channel."""
    headline = f"{_MARKS.get(notice.name.rpartition('.')[2], '•')} {notice.headline}"
    body = f"*{_escaped(headline)}*"
    if notice.reason:
        body += f"\n{_escaped(notice.reason)}"
    context = [f"{label} {_escaped(value)}" for label, value in notice.facts.items()]
    context += [f"<{url}|{label}>" for label, url in links.items()]
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": body[:_LONGEST]}}]
    if context:
        text = {"type": "mrkdwn", "text": " · ".join(context)[:_LONGEST]}
        blocks.append({"type": "context", "elements": [text]})  # type: ignore[dict-item]
    return {"text": _escaped(headline), "blocks": blocks}


def webhook_body(notice: Notice, links: dict[str, str]) -> dict[str, Any]:
    """As Standard Webhooks words it: type, timestamp, data."""
    data = notice.data | {"headline": notice.headline, "links": links}
    return {"type": f"touchstone.{notice.name}", "timestamp": notice.at, "data": data}


def _transition(earlier: Sequence[LedgerEvent], event: LedgerEvent) -> str | None:
    if event.kind is EventKind.FRESHNESS_CHECKED:
        return event.payload.get("announcement")
    if event.kind is EventKind.QUERIES_CHECKED:
        return event.payload.get("transition")
    measured = (one.payload.get("verdict") for one in reversed(earlier))
    before = next((verdict for verdict in measured if verdict != "unmeasurable"), "stable")
    verdict = event.payload.get("verdict")
    moves = {
        ("stable", "flagged"): "flagged",
        ("stable", "drifted"): "detected",
        ("flagged", "drifted"): "detected",
        ("drifted", "stable"): "recovered",
    }
    return moves.get((str(before), str(verdict)))


def _facts(news: News) -> dict[str, str]:
    found = {
        "changed": ", ".join(news.changed),
        "model": news.model,
        "prompt": news.prompt,
        "retrieval": news.retrieval,
        "owner": news.owner,
        "by": news.by,
        "canary": news.canary_id,
        "approval": news.approval_id,
        "event": str(news.sequence),
    }
    return {label: redact_secrets(value) for label, value in found.items() if value}


def _escaped(text: str) -> str:
    """Slack's three: without them a reason could hold a link, or call everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
