"""What stays of a table on disk: tagged versions, which a pointer can go to, and what is too young to remove."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tasks.index_table import open_latest, open_table, writer_lock
from touchstone.errors import LedgerConflict, Unmeasurable
from touchstone.index import IndexVersion

if TYPE_CHECKING:
    from lancedb.table import Table

_NEVER = timedelta(days=36_500)
_MARGINS = tuple(timedelta(seconds=seconds) for seconds in (0, 0.5, 5, 60, 900))
_ROUNDED = timedelta(milliseconds=1)  # LanceDB rounds ages to it
_LANCE_ERRORS = (RuntimeError, OSError, ValueError)
_log = logging.getLogger("touchstone")


@dataclass(frozen=True)
class CleanUp:
    """What a clean-up did to one table."""

    table: str
    removed: tuple[int, ...] = ()
    versions: int = 0  # that are left
    oldest_tag: str | None = None  # nothing newer than the version it names could be removed
    skipped: str | None = None  # why nothing was done


@dataclass(frozen=True)
class TagOwner:
    """Whose tags they are: several configs and environments share a table."""

    environment: str
    config_name: str

    def tag(self, version: int) -> str:
        return f"{self.prefix}{version}"

    @property
    def prefix(self) -> str:
        """Lance takes few characters, and one letter outside ASCII makes `tags.list()` fail for the whole table."""
        digest = hashlib.sha256(f"{self.environment}/{self.config_name}".encode()).hexdigest()[:8]
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.environment}-{self.config_name}").strip("-")[:80]
        return f"live-{words}-{digest}-"


def tag_version(lance_uri: str, owner: TagOwner, index: IndexVersion) -> int:
    """Keep a version from clean-ups; returns its rows. Raises Unmeasurable when it cannot be read."""
    table = open_table(lance_uri, index.table, index.version)
    name = owner.tag(index.version)
    try:
        if name not in table.tags.list():
            table.tags.create(name, index.version)
        return table.count_rows()
    except _LANCE_ERRORS as error:
        raise Unmeasurable(f"index {index.label} cannot be tagged: {error}") from None


def retag(table: Table, owner: TagOwner, retained: Iterable[IndexVersion]) -> None:
    """The owner's tags: those of retained versions that still exist, and no others."""
    found = {name for name in table.tags.list() if name.startswith(owner.prefix)}
    wanted = {owner.tag(index.version): index.version for index in retained if index.table == table.name}
    exist = {entry["version"] for entry in table.list_versions()}
    for name in wanted.keys() - found:
        if wanted[name] in exist:
            table.tags.create(name, wanted[name])
    for name in found - wanted.keys():
        table.tags.delete(name)


def clean_table(
    lance_uri: str, owner: TagOwner, name: str, retained: Iterable[IndexVersion], older_than: timedelta
) -> CleanUp:
    """Remove what is old and has no tag. Whatever prevents it is in the answer, and raises nothing."""
    try:
        with writer_lock(lance_uri, name, wait=False):
            table = open_latest(lance_uri, name)
            if table is None:
                return CleanUp(name, skipped="there is no such table any more")
            retag(table, owner, retained)
            return _remove_old(table, older_than)
    except LedgerConflict:
        return CleanUp(name, skipped="a build of this index is running")
    except (*_LANCE_ERRORS, Unmeasurable) as error:
        _log.warning("index %s could not be cleaned up: %s", name, error)
        return CleanUp(name, skipped=str(error))


def _remove_old(table: Table, older_than: timedelta) -> CleanUp:
    """Remove versions that are older than `older_than`, and than every tagged one."""
    before = _versions(table)
    tags = {name: tag["version"] for name, tag in table.tags.list().items()}
    oldest_tag = min(tags, key=lambda name: tags[name], default=None)
    limit = min([datetime.now(UTC) - older_than, *(before[version] for version in tags.values() if version in before)])
    del before[max(before)]  # the latest version is never removed
    if any(made < limit for made in before.values()):
        table.optimize(cleanup_older_than=_NEVER)  # compacts, which may take minutes: below only the removal is left
        remove_before(table, before.values(), limit)
        table.checkout_latest()
    after = _versions(table)
    return CleanUp(table.name, tuple(sorted(before.keys() - after.keys())), len(after), oldest_tag)


def remove_before(table: Table, made: Collection[datetime], limit: datetime) -> None:
    """Remove versions made before `limit`, the time of the oldest tagged one at most; `made` are the times of all.

    Lance counts the age from its own clock, later than ours, and removes nothing at all when a tagged version is
    older than that. So the cut-off is just above the newest version that goes, and when that was too close to a
    tagged one, the next attempt leaves more time between them.
    """
    for margin in _MARGINS:
        old = [moment for moment in made if moment < limit - margin]
        if not old:
            return
        age = datetime.now(UTC) - max(old) - _ROUNDED
        try:
            return table.optimize(cleanup_older_than=max(age, _ROUNDED))
        except RuntimeError as error:
            if "tagged version" not in str(error) or margin == _MARGINS[-1]:
                raise


def _versions(table: Table) -> dict[int, datetime]:
    """When each version was made. Lance gives local times without a zone."""
    return {entry["version"]: entry["timestamp"].astimezone(UTC) for entry in table.list_versions()}
