"""A notice in the words of who takes it: Slack's blocks, a webhook's JSON, plain text."""

from __future__ import annotations

from typing import Any

from touchstone.notices import Notice
from touchstone.severity import Severity

_MARKS = {
    "promoted": "✅",
    "graduated": "✅",
    "recovered": "✅",
    "cleared": "✅",
    "measurable": "✅",
    "rolled_back": "⛔",
    "denied": "⛔",
    "detected": "▼",
    "drifted": "▼",
    "breached": "▼",
    "asked": "❓",
    "held": "❓",
    "unmeasurable": "❓",
    "raised": "🔔",
    "reminded": "🔔",
}
ENDS = frozenset({"recovered", "cleared", "measurable"})
_LONGEST = 2_800  # Slack takes 3,000 characters in a block


def slack_message(notice: Notice, links: dict[str, str]) -> dict[str, Any]:
    """Incoming-webhook JSON: `text` for the notification, `blocks` for the channel."""
    headline = _marked(notice)
    body = f"*{_escaped(headline)}*"
    if notice.reason:
        body += f"\n{_escaped(notice.reason)}"
    context = [f"{label} {_escaped(value)}" for label, value in _facts(notice).items()]
    context += [f"<{url}|{label}>" for label, url in links.items()]
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": body[:_LONGEST]}}]
    if context:
        text = {"type": "mrkdwn", "text": " · ".join(context)[:_LONGEST]}
        blocks.append({"type": "context", "elements": [text]})  # type: ignore[dict-item]
    return {"text": _escaped(headline), "blocks": blocks}


def webhook_body(notice: Notice, links: dict[str, str]) -> dict[str, Any]:
    """As Standard Webhooks words it: type, timestamp, data."""
    data = notice.data | {"headline": notice.headline, "severity": notice.severity.value, "links": links}
    return {"type": f"touchstone.{notice.name}", "timestamp": notice.at, "data": data}


def plain_text(notice: Notice, links: dict[str, str]) -> tuple[str, str]:
    """(title, body) for mail and everybody else."""
    facts = [f"{label}: {value}" for label, value in _facts(notice).items()]
    pages = [f"{label}: {url}" for label, url in links.items()]
    parts = ("\n".join(part) for part in ([notice.reason], facts, pages) if any(part))
    return " ".join(_marked(notice).split()), "\n\n".join(parts) or notice.headline


def is_end(notice: Notice) -> bool:
    """Whether it says that something is over."""
    return notice.name.rpartition(".")[2] in ENDS


def _marked(notice: Notice) -> str:
    return f"{_MARKS.get(notice.name.rpartition('.')[2], '•')} {notice.headline}"


def _facts(notice: Notice) -> dict[str, str]:
    told = {} if notice.severity is Severity.INFO or is_end(notice) else {"severity": notice.severity.value}
    return told | notice.facts


def _escaped(text: str) -> str:
    """Slack's three: without them a reason could hold a link, or call everybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
