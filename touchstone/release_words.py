"""Names and reasons as they are recorded."""

from __future__ import annotations

from touchstone.errors import BadInput
from touchstone.pii import scrub
from touchstone.privacy import redact_secrets

_LONGEST_NAME, _LONGEST_REASON = 200, 2000


def clean_name(name: str) -> str:
    """A person's name. Personal, and kept on purpose: the ledger has to say who. Raises BadInput without one."""
    name = " ".join(redact_secrets(_printable(name)).split())[:_LONGEST_NAME]
    if not name:
        raise BadInput("who is it? `--by NAME`, for those who read it later")
    return name


def clean_reason(reason: str) -> str:
    """A reason without secrets, personal data of others, and what would upset a terminal."""
    return scrub(redact_secrets(_printable(reason))).strip()[:_LONGEST_REASON]


def needed_reason(reason: str) -> str:
    """A clean reason. Raises BadInput when there is none."""
    reason = clean_reason(reason)
    if not reason:
        raise BadInput("why? `--reason WHY`, for those who read it later")
    return reason


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else " " for mark in text)
