"""Alarms in the ledger: what is heard of, what is found by looking, and what stands.

Prefect's automations and the look at the ledger are two lines of one defence. Both decide on the events of the alarm's
subject and append by compare-and-swap, so that who comes second finds the alarm standing and says nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tasks.ledger import Ledger
from tasks.loading import load_deployments
from tasks.outbox import tell_people
from touchstone.alarms import (
    ALARM_KINDS,
    AUTOMATION_FAILED,
    FLOW_CRASHED,
    SUITE_SILENT,
    Alarm,
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
from touchstone.deployments import Suite
from touchstone.errors import BadInput, LedgerConflict, TouchstoneError
from touchstone.ledger import EventKind, LedgerEvent, alarm_subject
from touchstone.privacy import redact_secrets
from touchstone.settings import Settings
from touchstone.severity import Severity

# The flow that appended an event knows MLflow's page of it a little later, and tells people itself: it goes first.
LEFT_TO_FLOWS = timedelta(seconds=60)
_ATTEMPTS = 20


@dataclass(frozen=True)
class SuiteLook:
    """One suite, as it was found."""

    suite: SuiteNow
    silent: bool
    did: str  # raised, reminded, cleared, watched, or nothing


def hear(settings: Settings, name: str, facts: Mapping[str, Any]) -> str:
    """Take a hint of Prefect's, look at what it says, and answer in words what was done.

    `suite-silent` {resource}, `automation-failed` {automation, reason, automation_id}, `flow-crashed` {flow_run,
    deployment}. Raises BadInput for any other, and what the ledger's database raises.
    """
    now = datetime.now(UTC)
    if name == SUITE_SILENT:
        return _hear_silence(settings, str(facts.get("resource", "")), now)
    if name == AUTOMATION_FAILED:
        finding = _automation_failed(facts, now)
    elif name == FLOW_CRASHED:
        finding = _flow_crashed(facts, now)
    else:
        raise BadInput(f"no alarm is called {name!r}; there are {SUITE_SILENT}, {AUTOMATION_FAILED}, {FLOW_CRASHED}")
    with closing(_ledger(settings)) as ledger:
        did = _settle(settings, ledger, finding.name, lambda alarm: finding, now)
    return f"{finding.name}: {did or 'stands already'}"


def check_suites(settings: Settings, now: datetime | None = None) -> tuple[SuiteLook, ...]:
    """Look whether every suite of prefect.yaml has finished lately; raise, remind and clear.

    A suite that never finished counts from the first look at it, which the ledger remembers. Raises BadInput when
    prefect.yaml cannot be read.
    """
    now = now or datetime.now(UTC)
    suites = load_deployments(settings.root).suites()
    with closing(_ledger(settings)) as ledger:
        looks = tuple(_look(settings, ledger, suite, now) for suite in _unique(suites))
        _clear_unscheduled(settings, ledger, {look.suite.name for look in looks}, now)
        for look in looks:
            _clear_resumed(settings, ledger, look.suite, now)
    return looks


def suites_now(settings: Settings, now: datetime | None = None) -> tuple[SuiteLook, ...]:
    """The same look without a change of anything, for a page that shows it. Raises BadInput as `check_suites` does."""
    now, after = now or datetime.now(UTC), timedelta(hours=settings.silent_after_h)
    suites = _unique(load_deployments(settings.root).suites())
    with closing(_ledger(settings)) as ledger:
        subjects = [alarm_subject(alarm_name(SUITE_SILENT, suite.bundle, suite.dataset)) for suite in suites]
        pairs = zip(suites, subjects, strict=True)
        found = [_suite_now(ledger, suite, ledger.events(subject=subject)) for suite, subject in pairs]
    return tuple(SuiteLook(suite, suite.silence(now, after) is not None, "nothing") for suite in found)


def standing_alarms(settings: Settings) -> tuple[Alarm, ...]:
    """What stands now, the longest first."""
    with closing(_ledger(settings)) as ledger:
        return _all_standing(ledger)


def clear_alarm(settings: Settings, name: str, reason: str, by: str) -> None:
    """End an alarm by hand; for a silent suite the clock starts anew. Raises BadInput when it does not stand."""
    with closing(_ledger(settings)) as ledger:
        known = [alarm.raised.name for alarm in _all_standing(ledger)]
        if name not in known:
            raise BadInput(f"no alarm {name!r} stands; there are {', '.join(known) or 'none'}")
        words = redact_secrets(reason)

        def decide(events: Sequence[LedgerEvent]) -> Step | None:
            alarm = standing(events)
            return clear_step(alarm, words, by) if alarm else None

        _append(ledger, name, decide)


def watch(settings: Settings) -> list[str]:
    """The second line, for every minute: look at the suites, remind of what stands, tell people what waits.

    Returns warnings and never raises. Takes seconds when somebody who is to be told is away.
    """
    warnings: list[str] = []
    for part in (check_suites, _remind):
        try:
            part(settings)
        except Exception as error:
            known = isinstance(error, TouchstoneError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            warnings.append(redact_secrets(f"alarms: {(text.splitlines() or [''])[0]}"))
    return warnings + tell_people(settings, left_to_flows=LEFT_TO_FLOWS)


def _hear_silence(settings: Settings, resource: str, now: datetime) -> str:
    suites = load_deployments(settings.root).suites()
    suite = next((one for one in suites if one.resource == resource), None)
    if suite is None:
        known = ", ".join(one.resource for one in suites) or "none"
        return f"{redact_secrets(resource)[:200]!r} is no suite of prefect.yaml ({known}): nothing was raised"
    with closing(_ledger(settings)) as ledger:
        look = _look(settings, ledger, suite, now)
    if not look.silent:
        return f"{look.suite.name}: not silent, quiet since {look.suite.quiet_since or 'now'}: nothing was raised"
    return f"{look.suite.name}: {look.did if look.did != 'nothing' else 'stands already'}"


def _automation_failed(facts: Mapping[str, Any], now: datetime) -> Finding:
    automation = str(facts.get("automation") or facts.get("automation_id") or "")
    reason = redact_secrets(str(facts.get("reason") or "Prefect does not say why"))[:1000]
    return Finding(
        name=alarm_name(AUTOMATION_FAILED, automation),
        severity=Severity.CRITICAL,
        reason=f"an action of Prefect's automation failed, so that what it should start did not start: {reason}",
        since=now.isoformat(),
    )


def _flow_crashed(facts: Mapping[str, Any], now: datetime) -> Finding:
    run = str(facts.get("flow_run") or "").removeprefix("prefect.flow-run.")
    return Finding(
        name=alarm_name(FLOW_CRASHED, str(facts.get("deployment") or "")),
        severity=Severity.WARNING,
        reason=f"flow run {redact_secrets(run)[:100] or 'of unknown id'} crashed: killed, or its worker is gone",
        since=now.isoformat(),
        flow_run_id=run if _is_uuid(run) else None,
    )


def _look(settings: Settings, ledger: Ledger, suite: Suite, now: datetime) -> SuiteLook:
    """Decide on one suite, on what the ledger says at the moment of the decision."""
    found: list[SuiteNow] = []
    after, again = timedelta(hours=settings.silent_after_h), timedelta(hours=settings.renotify_h)

    def decide(events: Sequence[LedgerEvent]) -> Step | None:
        found.append(_suite_now(ledger, suite, events))
        if found[-1].is_new:
            return watch_step(found[-1].name)
        finished = found[-1].finished_at
        over = f"an eval finished at {finished[:16].replace('T', ' ')} UTC" if finished else "it is over"
        return decide_alarm(standing(events), found[-1].silence(now, after), now, again, over)

    step = _append(ledger, alarm_name(SUITE_SILENT, suite.bundle, suite.dataset), decide)
    return SuiteLook(found[-1], found[-1].silence(now, after) is not None, _words(step) or "nothing")


def _suite_now(ledger: Ledger, suite: Suite, events: Sequence[LedgerEvent]) -> SuiteNow:
    """`events`: those of its alarm."""
    cleared = [event.at for event in events if event.kind is EventKind.ALARM_CLEARED]
    return SuiteNow(
        bundle=suite.bundle,
        dataset=suite.dataset,
        deployment=suite.deployment,
        finished_at=_last_finish(ledger, suite),
        cleared_at=cleared[-1] if cleared else None,
    )


def _last_finish(ledger: Ledger, suite: Suite) -> str | None:
    """When the newest eval of a suite ended with a verdict, whatever the bundle's content was.

    A first run freezes a provisional baseline instead of a verdict.
    """
    subjects = ledger.subjects(f"{suite.bundle}:", f":{suite.dataset}")
    newest = [ledger.latest(EventKind.EVAL_DECIDED, subject) for subject in subjects]
    first = [ledger.latest(EventKind.BASELINE_FROZEN, subject) for subject in subjects]
    ended = [one for one in newest if one] + [one for one in first if one and len(one.payload["run_keys"]) == 1]
    return max((event.at for event in ended), key=datetime.fromisoformat, default=None)


def _clear_unscheduled(settings: Settings, ledger: Ledger, scheduled: set[str], now: datetime) -> None:
    for alarm in _all_standing(ledger):
        name = alarm.raised.name
        if name.startswith(f"{SUITE_SILENT}:") and name not in scheduled:
            _settle(settings, ledger, name, lambda alarm: None, now, over="prefect.yaml has no such suite any more")


def _clear_resumed(settings: Settings, ledger: Ledger, suite: SuiteNow, now: datetime) -> None:
    """A crashed eval is over once a later one has finished, resumed or new."""

    def find(alarm: Alarm | None) -> Finding | None:
        over = alarm and finished and datetime.fromisoformat(finished) > datetime.fromisoformat(alarm.raised.since)
        return None if over else _as_it_stands(alarm)

    finished = suite.finished_at
    _settle(settings, ledger, alarm_name(FLOW_CRASHED, suite.deployment), find, now, over="an eval finished since")


def _remind(settings: Settings) -> None:
    """Of alarms that only people can end."""
    now = datetime.now(UTC)
    with closing(_ledger(settings)) as ledger:
        for alarm in _all_standing(ledger):
            if not alarm.raised.name.startswith(f"{SUITE_SILENT}:"):
                _settle(settings, ledger, alarm.raised.name, _as_it_stands, now)


def _as_it_stands(alarm: Alarm | None) -> Finding | None:
    fields = set(Finding.model_fields)
    return alarm and Finding.model_validate(alarm.raised.model_dump(include=fields))


def _settle(
    settings: Settings,
    ledger: Ledger,
    name: str,
    find: Callable[[Alarm | None], Finding | None],
    now: datetime,
    over: str = "it is over",
) -> str:
    """Append what follows from what stands and what is found; what was done in a word, empty: nothing."""
    again = timedelta(hours=settings.renotify_h)

    def decide(events: Sequence[LedgerEvent]) -> Step | None:
        alarm = standing(events)
        return decide_alarm(alarm, find(alarm), now, again, over)

    return _words(_append(ledger, name, decide))


def _append(ledger: Ledger, name: str, decide: Callable[[Sequence[LedgerEvent]], Step | None]) -> Step | None:
    """Decide on the alarm's events and append; again on what the other left, when somebody was quicker."""
    subject = alarm_subject(name)
    for _ in range(_ATTEMPTS):
        events = ledger.events(subject=subject, erased=True)
        step = decide(events)
        if step is None:
            return None
        try:
            after = events[-1].sequence if events else 0
            ledger.append(step.kind, subject, step.payload, after=after, watched=ALARM_KINDS)
            return step
        except LedgerConflict:
            continue
    raise LedgerConflict(f"{subject}: others were quicker {_ATTEMPTS} times")


def _words(step: Step | None) -> str:
    if step is None:
        return ""
    if step.kind is EventKind.ALARM_CLEARED:
        return "cleared" if step.payload["since"] else "watched"
    return "reminded" if step.payload["reminder"] else "raised"


def _all_standing(ledger: Ledger) -> tuple[Alarm, ...]:
    events = [event for kind in ALARM_KINDS for event in ledger.events(kind, newest=1000)]
    return all_standing(sorted(events, key=lambda event: event.sequence))


def _unique(suites: Sequence[Suite]) -> tuple[Suite, ...]:
    """Two deployments of one golden set on one bundle are one suite."""
    return tuple({suite.resource: suite for suite in reversed(suites)}.values())[::-1]


def _ledger(settings: Settings) -> Ledger:
    return Ledger(settings.ledger, settings.environment)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
