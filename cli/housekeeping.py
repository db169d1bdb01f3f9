"""touchstone housekeeping"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.housekeeping import HousekeepingReport


def housekeeping(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go; remove nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Remove what is older than `retention` in touchstone.yaml allows; what the ledger still needs stays.

    Exit 3 when something could not be cleaned; the rest was.
    """
    from cli.output import exit_with, print_json
    from flows.housekeeping import conduct
    from tasks.loading import load_settings

    report = conduct(load_settings(), dry_run=dry_run)
    if as_json:
        print_json(report.summary())
    else:
        _print(report)
    exit_with(3 if report.failed else 0)


def _print(report: HousekeepingReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cli.output import out
    from tasks.announce_housekeeping import notes, size

    out.print("dry run: nothing was removed" if report.dry_run else escape(report.headline))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("what", "older than", "kept", "would go" if report.dry_run else "removed", "freed", ""):
        table.add_column(name, justify="left" if name in {"what", ""} else "right")
    for item in report.items:
        days = "–" if item.days is None else f"{item.days:g} d"
        kept = "–" if item.kept is None else f"{item.kept}"
        table.add_row(item.what, days, kept, str(item.removed), size(item), escape(notes(item)))
    out.print(table)
