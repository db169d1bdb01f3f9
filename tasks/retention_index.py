"""Old versions of every retrieval config's index, by the clean-up that `touchstone index cleanup` is."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path

from tasks.ledger import Ledger
from tasks.live_index import clean_up
from tasks.loading import load_retrieval_config
from tasks.retention_files import retrieval_configs
from touchstone.errors import TouchstoneError
from touchstone.housekeeping import Cleaned
from touchstone.settings import Settings

_BUSY = "a build of this index is running"


def clean_indexes(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """Versions that no pointer can go to and no eval can be reading: older than a day, below the oldest tagged one.

    A table that is being built is left to the next day. A config that cannot be read holds up no other.
    """
    what = "index versions"
    if dry_run:
        return [Cleaned(what=what, note="not counted in a dry run: what may go is known under the writer's lock only")]
    before = _bytes(settings)
    removed, kept, busy, errors = 0, 0, 0, []
    for file in retrieval_configs(settings):
        try:
            config, _ = load_retrieval_config(settings.root, str(file), needs_source=False)
            with closing(Ledger(settings.ledger, settings.environment)) as ledger:
                tables = clean_up(ledger, settings.lance, config.name)
        except TouchstoneError as error:
            errors.append(str(error))
            continue
        removed += sum(len(table.removed) for table in tables)
        kept += sum(table.versions for table in tables)
        busy += sum(table.skipped == _BUSY for table in tables)
        errors += [f"{table.table}: {table.skipped}" for table in tables if table.skipped and table.skipped != _BUSY]
    after = _bytes(settings)
    freed = None if before is None or after is None else max(0, before - after)
    note = f"{busy} tables are being built: left to the next time" if busy else ""
    return [
        Cleaned(
            what=what, days=1, kept=kept, removed=removed, bytes_freed=freed, note=note, error="; ".join(errors[:3])
        )
    ]


def _bytes(settings: Settings) -> int | None:
    """On this disk; None for an object store."""
    if "://" in settings.lance:
        return None
    folder = Path(settings.lance)
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
