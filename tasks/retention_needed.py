"""What is old and must stay all the same: the ledger, or somebody who reads it, still refers to it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field

import sqlalchemy as sa

from tasks.ledger import Ledger
from tasks.releases import read_release
from tasks.tracking import unpublished
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.release import Deployment
from touchstone.settings import Settings

_GOOD = {"stable", "calibration"}


@dataclass
class Needed:
    """By key, why it stays."""

    runs: dict[str, str] = field(default_factory=dict)
    gates: dict[str, str] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    builds: dict[str, str] = field(default_factory=dict)


def needed_by_ledger(settings: Settings) -> Needed:
    """Over all environments of the ledger: they may share one disk.

    Raises what the ledger's database raises: without it nobody knows what may go.
    """
    found = Needed()
    for folder in unpublished(settings.state):
        found.runs[folder.name] = "unpublished"
    for environment in environments(settings):
        with closing(Ledger(settings.ledger, environment)) as ledger:
            _evals(ledger, found)
            _gates(ledger, found)
            _releases(ledger, found)
            for event in _newest(ledger.events(EventKind.INDEX_PROMOTED)):
                if event.payload.get("build_key"):
                    found.builds.setdefault(event.payload["build_key"], "live index")
    return found


def environments(settings: Settings) -> list[str]:
    """Every environment that the ledger has events of, and this one."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger, ledger.engine.connect() as connection:
        rows = connection.execution_options(reads=True).execute(sa.text("SELECT DISTINCT environment FROM events"))
        return sorted({settings.environment, *(row[0] for row in rows)})


def _evals(ledger: Ledger, found: Needed) -> None:
    """Baselines, and what an attribution compares with: the last run of a bundle, and its last good one."""
    for event in _newest(ledger.events(EventKind.BASELINE_FROZEN)):
        for key in event.payload.get("run_keys", ()):
            found.runs.setdefault(key, "baseline")
    decided = ledger.events(EventKind.EVAL_DECIDED)
    good = [event for event in decided if event.payload.get("verdict") in _GOOD]
    for events, why in ((decided, "last eval"), (good, "last good eval")):
        for event in _newest(events):
            found.runs.setdefault(event.payload.get("run_key", ""), why)


def _gates(ledger: Ledger, found: Needed) -> None:
    for event in _newest(ledger.events(EventKind.GATE_DECIDED)):
        found.gates.setdefault(event.payload.get("gate_key", ""), "last gate of its bundle")
        for key in event.payload.get("run_keys", ()):
            found.runs.setdefault(key, "last gate of its bundle")


def _releases(ledger: Ledger, found: Needed) -> None:
    """What serves, what a roll-back can return to, and what is on its way."""
    state = read_release(ledger)
    deployments: list[tuple[Deployment, str]] = [(one.deployment, "can be rolled back to") for one in state.previous]
    if state.champion:
        deployments.append((state.champion.deployment, "champion"))
    if state.candidate:
        deployments.append((state.candidate.deployment, "candidate"))
        if state.candidate.canary:
            found.canaries.setdefault(state.candidate.canary.canary_id, "running canary")
    for deployment, why in deployments:
        found.gates.setdefault(deployment.gate_key, why)
        for key in deployment.run_keys:
            found.runs.setdefault(key, why)


def _newest(events: Iterable[LedgerEvent]) -> Iterable[LedgerEvent]:
    """Of each subject the last one; `events` are in order."""
    return {event.subject: event for event in events}.values()
