"""Whether to raise, remind or clear: on what stands and what is wrong now, and on nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from touchstone.alarms import (
    Finding,
    Step,
    SuiteNow,
    alarm_name,
    all_standing,
    clear_step,
    decide_alarm,
    standing,
    watch_step,
)
from touchstone.ledger import EventKind, LedgerEvent, alarm_subject
from touchstone.severity import Severity

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
FINDING = Finding(name="flow-crashed:gate/support", severity=Severity.WARNING, reason="gone", since=NOON.isoformat())


def events_of(*steps: tuple[Step | None, datetime]) -> list[LedgerEvent]:
    """The steps as a ledger holds them."""
    return [
        LedgerEvent(
            environment="default",
            sequence=number,
            at=at.isoformat(),
            kind=step.kind,
            subject=alarm_subject(step.payload["name"]),
            payload_digest="",
            previous="",
            payload=step.payload,
            salt="salt",
        )
        for number, (step, at) in enumerate(steps, start=1)
        if step is not None
    ]


def test_what_is_wrong_is_raised_once_and_again_only_after_it_was_over() -> None:
    raised = decide_alarm(None, FINDING, NOON, DAY)
    events = events_of((raised, NOON))
    assert decide_alarm(standing(events), FINDING, NOON + timedelta(hours=1), DAY) is None
    cleared = decide_alarm(standing(events), None, NOON + timedelta(hours=2), DAY)
    events = events_of((raised, NOON), (cleared, NOON + timedelta(hours=2)))
    assert standing(events) is None
    assert decide_alarm(None, None, NOON, DAY) is None
    again = decide_alarm(standing(events), FINDING, NOON + timedelta(hours=3), DAY)
    assert again is not None
    assert (again.kind, again.payload["reminder"]) == (EventKind.ALARM_RAISED, 0)


def test_what_stands_is_told_again_after_the_interval_with_the_time_it_began() -> None:
    events, told = events_of((decide_alarm(None, FINDING, NOON, DAY), NOON)), []
    for hour in range(1, 61):
        now = NOON + timedelta(hours=hour)
        later = FINDING.model_copy(update={"since": now.isoformat()})
        if step := decide_alarm(standing(events), later, now, DAY):
            told.append((hour, step.payload["reminder"], step.payload["since"]))
            events = events_of((step, now))
    assert told == [(24, 1, NOON.isoformat()), (48, 2, NOON.isoformat())]


def test_the_standing_alarms_are_those_that_nobody_cleared() -> None:
    other = FINDING.model_copy(update={"name": "automation-failed:x"})
    first, second = (decide_alarm(None, one, NOON, DAY) for one in (FINDING, other))
    alarm = standing(events_of((first, NOON)))
    assert alarm is not None
    steps = events_of((first, NOON), (second, NOON), (clear_step(alarm, "seen", "Ada"), NOON))
    assert [one.raised.name for one in all_standing(steps)] == ["automation-failed:x"]
    assert standing(events_of((watch_step("suite-silent:a:b"), NOON))) is None


def suite(finished: datetime | None, cleared: datetime | None) -> SuiteNow:
    finished_at, cleared_at = (at.isoformat() if at else None for at in (finished, cleared))
    return SuiteNow("support", "support", "golden-eval/daily", finished_at, cleared_at)


@pytest.mark.parametrize(
    ("finished_h", "cleared_h", "silent"),
    [(25.9, None, False), (26, None, True), (None, 25.9, False), (None, 26, True), (90, 3, False), (90, 27, True)],
)
def test_a_suite_is_silent_from_its_last_end_or_from_when_somebody_cleared_it(
    finished_h: float | None, cleared_h: float | None, silent: bool
) -> None:
    at = [NOON - timedelta(hours=hours) if hours is not None else None for hours in (finished_h, cleared_h)]
    finding = suite(*at).silence(NOON, timedelta(hours=26))
    assert (finding is not None) is silent
    if finding:
        assert finding.severity is Severity.CRITICAL
        assert finding.since == max(one for one in at if one).isoformat()


def test_a_suite_that_nobody_has_looked_at_is_new_and_not_silent() -> None:
    assert suite(None, None).is_new
    assert suite(None, None).silence(NOON, timedelta(hours=26)) is None


def test_a_name_holds_no_text_that_somebody_smuggled_in() -> None:
    assert alarm_name("flow-crashed", "gate/support") == "flow-crashed:gate/support"
    assert alarm_name("automation-failed", "a\x00b\n<!channel>") == "automation-failed:a_b___channel_"
    assert alarm_name("flow-crashed", " ") == "flow-crashed:unknown"
    assert len(alarm_name("flow-crashed", "x" * 999)) == 200
