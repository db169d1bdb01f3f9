"""What Prefect shows of housekeeping: a table of what was kept and what went."""

from __future__ import annotations

from tasks.environment import apply_defaults
from tasks.prefect_sinks import create_markdown_artifact
from touchstone.housekeeping import Cleaned, HousekeepingReport


def create_housekeeping_artifact(report: HousekeepingReport) -> None:
    """On the flow run's page, under one key."""
    apply_defaults()
    create_markdown_artifact(markdown=markdown(report), key="housekeeping", description=report.headline)


def markdown(report: HousekeepingReport) -> str:
    """One row for each kind of thing."""
    title = "Housekeeping, dry run: nothing was removed" if report.dry_run else "Housekeeping"
    removed = "would be removed" if report.dry_run else "removed"
    lines = [f"## {title}", "", f"| what | older than | kept | {removed} | freed | |", "|---|---:|---:|---:|---:|---|"]
    for item in report.items:
        days = "–" if item.days is None else f"{item.days:g} days"
        kept = "–" if item.kept is None else f"{item.kept:,}"
        lines.append(f"| {item.what} | {days} | {kept} | {item.removed:,} | {size(item)} | {notes(item)} |")
    return "\n".join(lines)


def size(item: Cleaned) -> str:
    """Bytes for people."""
    if item.bytes_freed is None:
        return "–"
    size, unit = float(item.bytes_freed), "B"
    for larger in ("KB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def notes(item: Cleaned) -> str:
    """Why old ones stay, what was left, and what went wrong."""
    stays = ", ".join(f"{count} {why}" for why, count in item.needed.items())
    parts = [f"old but needed: {stays}" if stays else "", item.note, f"**{item.error}**" if item.error else ""]
    return "; ".join(part for part in parts if part).replace("|", "¦").replace("\n", " ")
