"""Send what others do not have yet (runs and index builds to MLflow, the outbox to everybody), and say what waits."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tasks.index_builds import REPORT, build_folders
from tasks.ledger import Ledger
from tasks.outbox import Standing, all_projections, deliver_all, standings
from tasks.tracking import Published, TrackingUnavailable, publish_all, unpublished
from tasks.tracking_index import publish_builds
from touchstone.index import BuildReport
from touchstone.settings import Settings


@dataclass(frozen=True)
class Waiting:
    """Something that has not been sent, and since when it could have been."""

    what: str
    count: int
    since: datetime


@dataclass
class Sent:
    """What one publishing did. `error`: MLflow is away, or a run cannot be read; the rest was sent all the same."""

    runs: list[Published] = field(default_factory=list)
    builds: list[BuildReport] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)  # events handed over now, by projection
    standings: list[Standing] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: Exception | None = None

    @property
    def count(self) -> int:
        return len(self.runs) + len(self.builds) + sum(self.told.values())


def send_waiting(settings: Settings, *, everything: bool = False) -> Sent:
    """Send runs, builds and events. `everything`: runs again too, and the states that projections show, anew.

    Sending twice makes no second of anything. With MLflow away people are told all the same.
    """
    sent = Sent()
    try:  # first the evals, which releases refer to
        sent.runs = publish_all(settings, force=everything)
    except Exception as error:
        sent.error = error
    try:
        if not isinstance(sent.error, TrackingUnavailable):  # nobody answers: that is known by now
            sent.builds = publish_builds(settings, force=everything)
    except Exception as error:
        sent.error = sent.error or error
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        before = {one.projection: one.waiting for one in standings(settings, ledger, rebuild=everything)}
        sent.warnings = deliver_all(settings, ledger, rebuild=everything)
        sent.standings = standings(settings, ledger)
    sent.told = {one.projection: max(0, before.get(one.projection, 0) - one.waiting) for one in sent.standings}
    return sent


def still_waiting(settings: Settings, standing: list[Standing]) -> list[Waiting]:
    """What is left, with the moment at which the oldest of it came to be. A projection that is off waits for nobody."""
    runs = [_written(folder / "report.json") for folder in unpublished(settings.state)]
    builds = [_written(folder / REPORT) for folder in build_folders(settings.state) if not _is_sent(folder)]
    found = [Waiting("runs", len(runs), min(runs))] if runs else []
    found += [Waiting("index builds", len(builds), min(builds))] if builds else []
    kinds = {projection.name: projection.kinds for projection in all_projections(settings)}
    behind = [one for one in standing if one.waiting and not one.off]
    if behind:
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            for one in behind:
                events = ledger.events(since=one.delivered)
                moments = [event.at for event in events if event.kind in kinds[one.projection]]
                since = datetime.fromisoformat(min(moments)) if moments else datetime.now(UTC)
                found.append(Waiting(f"events for {one.projection}", one.waiting, since))
    return found


def _is_sent(folder: Path) -> bool:
    return (folder / "published.json").exists()


def _written(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)
