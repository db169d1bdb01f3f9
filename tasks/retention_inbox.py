"""Webhooks that were done with long ago; those that wait or failed stay, however old."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path

from tasks.inbox import WebhookInbox
from touchstone.housekeeping import Cleaned
from touchstone.settings import Settings


def clean_inbox(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """After `webhooks.keep_days`: a repetition of one that was removed would be taken as new. Raises Unmeasurable."""
    what, days = "webhooks", settings.webhooks.keep_days
    kind, _, path = settings.inbox.partition(":///")
    if kind.startswith("sqlite") and not Path(path).exists():
        return [Cleaned(what=what, days=days, kept=0, note="no webhook was ever received")]
    if dry_run:
        return [Cleaned(what=what, days=days, note="not counted in a dry run")]
    with closing(WebhookInbox(settings.inbox)) as inbox:
        removed = inbox.remove_older_than(days)
        kept = sum(inbox.counted().values())
    return [Cleaned(what=what, days=days, kept=kept, removed=removed, bytes_freed=None)]
