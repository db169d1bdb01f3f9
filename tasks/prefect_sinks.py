"""What Prefect stores of our words: events, artifacts, log lines, messages of states. All are scrubbed here.

The functions have the names and arguments of Prefect's own; nothing else calls those.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

from touchstone.privacy import clean, clean_record

_OTHERS = ("uvicorn", "aiohttp.access")  # their formatters need the arguments of a line


def emit_event(event: str, resource: dict[str, str], payload: dict[str, Any] | None = None) -> Any:
    """Prefect's `emit_event`, its payload scrubbed."""
    from prefect.events import emit_event as emit

    return emit(event=event, resource=resource, payload=clean_record(payload))


def create_markdown_artifact(markdown: str, key: str, description: str | None = None) -> UUID:
    """A page of a flow run, scrubbed but for its pictures."""
    from prefect.artifacts import create_markdown_artifact as create

    return create(markdown=clean(markdown), key=key, description=description and clean(description))  # pyright: ignore


async def acreate_markdown_artifact(markdown: str, key: str, description: str | None = None) -> UUID:
    """The same, for flows that are asynchronous."""
    from prefect.artifacts import acreate_markdown_artifact as create

    return await create(markdown=clean(markdown), key=key, description=description and clean(description))


def scrub_logs() -> None:
    """From now on every log record of this process is scrubbed, and so is what Prefect says of an exception.

    A record factory, because Prefect adds its handlers, and with them the way to its API, whenever it likes.
    """
    known = logging.getLogRecordFactory()
    if getattr(known, "scrubs", False):
        return

    def scrubbing(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = known(*args, **kwargs)
        return record if record.name.startswith(_OTHERS) else _scrubbed(record)

    scrubbing.scrubs = True  # pyright: ignore[reportFunctionMemberAccess]
    logging.setLogRecordFactory(scrubbing)


def scrub_state_messages() -> None:
    """The message of a failed state quotes the exception, whoever raised it."""
    states = sys.modules.get("prefect.states")
    if states is None or getattr(states.format_exception, "scrubs", False):
        return
    format_exception: Callable[..., str] = states.format_exception

    def scrubbing(*args: Any, **kwargs: Any) -> str:
        return clean(format_exception(*args, **kwargs))

    scrubbing.scrubs = True  # pyright: ignore[reportFunctionMemberAccess]
    states.format_exception = scrubbing  # pyright: ignore[reportAttributeAccessIssue]


def _scrubbed(record: logging.LogRecord) -> logging.LogRecord:
    try:
        record.msg, record.args = clean(record.getMessage()), None
    except Exception:  # a line whose arguments do not fit: logging itself says so, where it can be seen
        return record
    if record.exc_info:
        record.exc_text = clean(logging.Formatter().formatException(record.exc_info))
    return record
