"""What is removed from disk when it is old: spools of evals, gates, canaries, attributions, builds, the retrieval log.

A folder leaves its place in one rename before it is taken apart, so that nobody ever finds half of it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tasks.loading import load_retrieval_config
from tasks.retention_needed import needed_by_ledger
from tasks.spool import Spool
from touchstone.errors import BadInput, TouchstoneError
from touchstone.housekeeping import Cleaned
from touchstone.settings import Settings

_REMOVING = ".removing"


def clean_folders(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """Spools that are older than `retention.runs`, but for what is still needed, unpublished or in use.

    Raises what the ledger raises: nothing is removed then, since nobody knows what is needed.
    """
    needed, days = needed_by_ledger(settings), settings.retention.runs
    if not dry_run:
        shutil.rmtree(settings.state / _REMOVING, ignore_errors=True)  # what a kill left
    limit = now - timedelta(days=days)
    unpublished_builds = {
        folder.name: "unpublished"
        for folder in _folders(settings, "builds")
        if not (folder / "published.json").exists()
    }
    kinds: dict[str, Mapping[str, str]] = {
        "runs": needed.runs,
        "gates": needed.gates,
        "canaries": needed.canaries,
        "attributions": {},
        "builds": unpublished_builds | needed.builds,
    }
    folders = [_clean(settings, kind, stays, limit, days, dry_run) for kind, stays in kinds.items()]
    return [*folders, _clean_takeovers(settings, limit, days, dry_run)]


def clean_retrieval_log(settings: Settings, now: datetime, dry_run: bool) -> list[Cleaned]:
    """Days of the retrieval log; those that a freshness or query drift check may look back to stay."""
    days, note = float(settings.retention.retrievals), ""
    if (longest := _longest_look_back(settings)) > days:
        days, note = longest, f"a retrieval config looks back {longest:g} days, so that these are kept"
    oldest = (now - timedelta(days=days)).date().isoformat()
    kept, gone, freed, errors = 0, 0, 0, []
    for file in sorted((settings.state / "retrievals").glob("????-??-??.jsonl")):
        if file.stem >= oldest:
            kept += 1
            continue
        size = file.stat().st_size
        try:
            if not dry_run:
                file.unlink(missing_ok=True)
        except OSError as error:
            errors.append(f"{file.name}: {error.strerror}")
            continue
        gone, freed = gone + 1, freed + size
    what, error = "days of the retrieval log", "; ".join(errors[:3])
    return [Cleaned(what=what, days=days, kept=kept, removed=gone, bytes_freed=freed, note=note, error=error)]


def _clean(
    settings: Settings, kind: str, stays: Mapping[str, str], limit: datetime, days: int, dry_run: bool
) -> Cleaned:
    kept, gone, freed, errors = 0, 0, 0, []
    needed: Counter[str] = Counter()
    for folder in _folders(settings, kind):
        try:
            size, touched = _measured(folder)
            if touched >= limit:
                kept += 1
            elif folder.name in stays:
                needed[stays[folder.name]] += 1
            elif dry_run or _remove(settings, folder):
                gone, freed = gone + 1, freed + size
            else:
                needed["in use"] += 1
        except FileNotFoundError:
            continue  # somebody else removed it
        except OSError as error:
            errors.append(f"{folder.name}: {error.strerror}")
    return Cleaned(
        what=kind,
        days=days,
        kept=kept + needed.total(),
        removed=gone,
        bytes_freed=freed,
        needed=dict(needed),
        error="; ".join(errors[:3]),
    )


def _clean_takeovers(settings: Settings, limit: datetime, days: int, dry_run: bool) -> Cleaned:
    """Marks of crashed flow runs that were resumed: their spools are gone by then."""
    files = [file for file in (settings.state / "taken_over").glob("*") if file.is_file()]
    old = [file for file in files if datetime.fromtimestamp(file.stat().st_mtime, UTC) < limit]
    freed = sum(file.stat().st_size for file in old)
    for file in old if not dry_run else ():
        file.unlink(missing_ok=True)
    return Cleaned(what="crashes", days=days, kept=len(files) - len(old), removed=len(old), bytes_freed=freed)


def _folders(settings: Settings, kind: str) -> list[Path]:
    parent = settings.state / kind
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _measured(folder: Path) -> tuple[int, datetime]:
    """(bytes, when anything in it was written last)."""
    size, touched = 0, folder.stat().st_mtime if not any(folder.iterdir()) else 0.0
    for path in folder.rglob("*"):
        found = path.lstat()
        if not path.is_dir():
            size, touched = size + found.st_size, max(touched, found.st_mtime)
    return size, datetime.fromtimestamp(touched, UTC)


def _remove(settings: Settings, folder: Path) -> bool:
    """False when somebody is running it."""
    aside = settings.state / _REMOVING
    aside.mkdir(exist_ok=True)
    spool = Spool(folder)
    try:
        with spool.locked():
            folder.rename(aside / f"{folder.parent.name}-{folder.name}")
    except BadInput:
        return False
    finally:
        spool.close()
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _longest_look_back(settings: Settings) -> float:
    """Days that checks of any retrieval config read; a config that cannot be read has no check."""
    return max((0.0, *_look_backs(settings)))


def _look_backs(settings: Settings) -> Iterator[float]:
    for file in retrieval_configs(settings):
        try:
            config, _ = load_retrieval_config(settings.root, str(file), needs_source=False)
        except TouchstoneError:
            continue
        queries = config.query_drift
        # A reference is held where it is while a drift stands, for as long as it covers at most.
        yield from (config.freshness.window_days, 2 * (queries.window_days + queries.reference_days))


def retrieval_configs(settings: Settings) -> list[Path]:
    return sorted((settings.root / "retrieval_configs").glob("*.yaml"))
