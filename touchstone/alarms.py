"""Alarms: something is wrong, and stands until it is cleared. Whether to raise, remind or clear is decided here.

An alarm is the fold of the ledger events of its subject. Who raises second finds it standing, so that an outage is one
alarm, however many notice it and however often.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from touchstone.ledger import EventKind, LedgerEvent
from touchstone.severity import Severity

ALARM_KINDS = (EventKind.ALARM_RAISED, EventKind.ALARM_CLEARED)  # compare-and-swap is over both
SUITE_SILENT, AUTOMATION_FAILED, FLOW_CRASHED = "suite-silent", "automation-failed", "flow-crashed"
_LONGEST_NAME = 200  # the ledger's subjects take 255 characters


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Record):
    """Something that is wrong now."""

    name: str = Field(description="Such as suite-silent:support:support")
    severity: Severity
    reason: str
    since: str = Field(description="ISO time")
    flow_run_id: str | None = Field(default=None, description="Of the Prefect run that it is about")


class AlarmRaised(Finding):
    """Payload of ALARM_RAISED."""

    reminder: int = Field(default=0, ge=0, description="0 when it was raised, then 1, 2 ...")


class AlarmCleared(_Record):
    """Payload of ALARM_CLEARED. Without `since` nothing stood: the subject is watched from here on."""

    name: str
    severity: Severity
    reason: str
    since: str | None
    by: str = Field(default="", description="Who cleared it by hand; empty: it is over")


@dataclass(frozen=True)
class Alarm:
    """An alarm that stands."""

    raised: AlarmRaised  # the last time it was told
    told_at: str
    sequence: int  # of that event


@dataclass(frozen=True)
class Step:
    """An event to append."""

    kind: EventKind
    payload: dict[str, Any]


def alarm_name(kind: str, *about: str) -> str:
    """`kind:about`, free of what a name must not hold: what a webhook says of itself is anybody's text."""
    return ":".join([kind, *(re.sub(r"[^\w.:/@ -]", "_", one).strip() or "unknown" for one in about)])[:_LONGEST_NAME]


def standing(events: Sequence[LedgerEvent]) -> Alarm | None:
    """What stands after the events of one alarm, in their order."""
    known = [event for event in events if event.kind in ALARM_KINDS and not event.is_erased]
    if not known or known[-1].kind is EventKind.ALARM_CLEARED:
        return None
    return Alarm(AlarmRaised.model_validate(known[-1].payload), known[-1].at, known[-1].sequence)


def all_standing(events: Sequence[LedgerEvent]) -> tuple[Alarm, ...]:
    """Of the events of all alarms, those that stand, the longest first."""
    subjects = {event.subject: [] for event in events} | {}
    for event in events:
        subjects[event.subject].append(event)
    found = [alarm for mine in subjects.values() if (alarm := standing(mine))]
    return tuple(sorted(found, key=lambda alarm: (alarm.raised.since, alarm.raised.name)))


def decide_alarm(
    alarm: Alarm | None, finding: Finding | None, now: datetime, again_after: timedelta, over: str = "it is over"
) -> Step | None:
    """What follows from what stands and what is wrong now; None: nothing. `over` is why it ends when nothing is."""
    if finding is None:
        return None if alarm is None else clear_step(alarm, over)
    if alarm is None:
        return Step(EventKind.ALARM_RAISED, AlarmRaised(**finding.model_dump()).model_dump(mode="json"))
    if now - datetime.fromisoformat(alarm.told_at) < again_after:
        return None
    told = finding.model_dump() | {"since": alarm.raised.since, "reminder": alarm.raised.reminder + 1}
    return Step(EventKind.ALARM_RAISED, AlarmRaised(**told).model_dump(mode="json"))


def clear_step(alarm: Alarm, reason: str, by: str = "") -> Step:
    """The end of an alarm."""
    raised = alarm.raised
    cleared = AlarmCleared(name=raised.name, severity=raised.severity, reason=reason, since=raised.since, by=by)
    return Step(EventKind.ALARM_CLEARED, cleared.model_dump(mode="json"))


def watch_step(name: str) -> Step:
    """Remembers since when something is watched that never happened: a clock that no restart sets back."""
    reason = "watched from here on: it has never finished"
    cleared = AlarmCleared(name=name, severity=Severity.INFO, reason=reason, since=None)
    return Step(EventKind.ALARM_CLEARED, cleared.model_dump(mode="json"))


@dataclass(frozen=True)
class SuiteNow:
    """A scheduled golden set as the ledger shows it. Times are ISO."""

    bundle: str
    dataset: str
    deployment: str
    finished_at: str | None  # of its newest eval that ended with a verdict, `unmeasurable` too
    cleared_at: str | None  # when its alarm was last cleared, or it was first watched

    @property
    def name(self) -> str:
        return alarm_name(SUITE_SILENT, self.bundle, self.dataset)

    @property
    def is_new(self) -> bool:
        """Nothing says since when to count."""
        return self.finished_at is None and self.cleared_at is None

    @property
    def quiet_since(self) -> str | None:
        """From when silence counts: the last finish, or the last time somebody cleared the alarm."""
        return max((at for at in (self.finished_at, self.cleared_at) if at), key=datetime.fromisoformat, default=None)

    def silence(self, now: datetime, after: timedelta) -> Finding | None:
        """What is wrong, when it was silent for too long."""
        if self.quiet_since is None or now - datetime.fromisoformat(self.quiet_since) < after:
            return None
        last = f"the last one at {self.finished_at[:16].replace('T', ' ')} UTC" if self.finished_at else "none ever"
        reason = (
            f"no golden eval of {self.bundle} on {self.dataset} finished for {after / timedelta(hours=1):g} h "
            f"({last}); {self.deployment} should run it"
        )
        return Finding(name=self.name, severity=Severity.CRITICAL, reason=reason, since=self.quiet_since)
