"""touchstone status as tables and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.stack_status import FlowStatus, PartStatus

_STYLES = {"up": "green", "starting": "yellow", "down": "red"}


def as_data(parts: Sequence[PartStatus], flows: Sequence[FlowStatus], waiting: Mapping[str, int]) -> dict[str, Any]:
    """Times are ISO 8601 in UTC."""
    return {
        "up": bool(parts) and all(part.state == "up" for part in parts),
        "parts": [_plain(asdict(part)) for part in parts],
        "flows": [_plain(asdict(flow)) for flow in flows],
        "outbox": dict(waiting),
    }


def print_status(parts: Sequence[PartStatus], flows: Sequence[FlowStatus], waiting: Mapping[str, int]) -> None:
    """Times are local."""
    from rich.table import Table

    from cli.output import out

    if not parts:
        out.print("nothing runs here; `touchstone up` starts it")
        return
    table = Table("part", "", "address", "pid", "since", box=None, pad_edge=False, header_style="dim")
    for part in parts:
        style = _STYLES[part.state]
        table.add_row(
            part.name, f"[{style}]{part.state}[/]", part.address, str(part.pid or "yours"), _local(part.since)
        )
    out.print(table)
    if flows:
        runs = Table("flow", "last run", "", "next run", box=None, pad_edge=False, header_style="dim")
        for flow in flows:
            runs.add_row(flow.deployment, _local(flow.last_at), flow.last_state or "", _local(flow.next_at))
        out.print(runs)
    for projection, events in waiting.items():
        if events:
            out.print(f"outbox {projection}: {events} events wait; `touchstone publish` delivers them")


def _local(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "–"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
