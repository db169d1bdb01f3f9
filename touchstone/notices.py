"""What people are told: steps of a release, levels that are reached or left, alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from touchstone.alarms import AlarmCleared, AlarmRaised
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.privacy import redact_secrets
from touchstone.release_news import NEWS_KINDS, News, tell
from touchstone.severity import Severity

_LEVELS = {
    EventKind.EVAL_DECIDED: "drift",
    EventKind.FRESHNESS_CHECKED: "freshness",
    EventKind.QUERIES_CHECKED: "queries",
    EventKind.PROBE_CHECKED: "probe",
}
_MOST_LINES = 25  # of many notices that are told as one
_ALARMS = {EventKind.ALARM_RAISED, EventKind.ALARM_CLEARED}
NOTICE_KINDS = NEWS_KINDS | frozenset(_LEVELS) | _ALARMS
# Who was told of something is told of its end: an end is as severe as what it ends. What is not listed is info.
_SEVERITIES = {
    **dict.fromkeys(("drift.detected", "drift.recovered", "freshness.breached"), Severity.CRITICAL),
    **dict.fromkeys(("freshness.recovered", "release.rolled_back"), Severity.CRITICAL),
    **dict.fromkeys(("drift.flagged", "freshness.flagged", "queries.drifted", "queries.recovered"), Severity.WARNING),
    **dict.fromkeys(("eval.unmeasurable", "eval.measurable"), Severity.WARNING),
    **dict.fromkeys(("freshness.unmeasurable", "freshness.measurable"), Severity.WARNING),
    **dict.fromkeys(("probe.detected", "probe.recovered"), Severity.WARNING),
    **dict.fromkeys(("release.held", "release.denied", "approval.asked"), Severity.WARNING),
}


class Notice(BaseModel):
    """One thing to tell. Text is free of secrets that have a shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    environment: str
    sequence: int
    at: str
    headline: str
    reason: str = ""
    severity: Severity = Severity.INFO
    facts: dict[str, str] = {}
    flow_run_id: str | None = None  # of the Prefect run that recorded it, or that it is about
    data: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """The same at every attempt, so that a receiver can tell a repetition. A full stop separates in signatures."""
        return f"{self.environment.replace('.', '_')}-{self.sequence}"


def notice_of_release(environment: str, release_events: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    """What a step of a release tells people."""
    news = tell(environment, release_events, event)
    if news is None:
        return None
    name = news.event.removeprefix("touchstone.")
    return Notice(
        name=name,
        environment=environment,
        sequence=event.sequence,
        at=event.at,
        headline=news.headline,
        reason=news.reason or "",
        severity=_SEVERITIES.get(name, Severity.INFO),
        facts=_facts(news),
        flow_run_id=event.payload.get("flow_run_id"),
        data=news.model_dump(mode="json"),
    )


def notice_of_level(environment: str, earlier: Sequence[LedgerEvent], event: LedgerEvent) -> Notice | None:
    """What an eval or a check tells: only that a level was reached or left. `earlier`: those of its subject before."""
    name = _transition(earlier, event)
    if name is None:
        return None
    about = _about(event)
    reason = redact_secrets(str(event.payload.get("reason") or ""))
    severity = _SEVERITIES.get(name, Severity.INFO)
    if event.payload.get("direction") == "better":
        severity = Severity.WARNING
    return Notice(
        name=name,
        environment=environment,
        sequence=event.sequence,
        at=event.at,
        headline=f"{environment}: {name.replace('.', ' ')}: {about}",
        reason=reason,
        severity=severity,
        flow_run_id=event.payload.get("flow_run_id"),
        data={
            "event": f"touchstone.{name}",
            "environment": environment,
            "sequence": event.sequence,
            "at": event.at,
            "about": about,
            "reason": reason,
            "run_keys": [event.payload["run_key"]] if "run_key" in event.payload else [],
        },
    )


def notice_of_alarm(environment: str, event: LedgerEvent) -> Notice | None:
    """What is told of an alarm: that it was raised, that it still stands, that it is over."""
    if event.kind is EventKind.ALARM_RAISED:
        alarm: AlarmRaised | AlarmCleared = AlarmRaised.model_validate(event.payload)
        step, flow_run_id = ("reminded" if alarm.reminder else "raised"), alarm.flow_run_id
    else:
        alarm, step, flow_run_id = AlarmCleared.model_validate(event.payload), "cleared", None
        if alarm.since is None:
            return None
    words = {"raised": "alarm", "reminded": "alarm still stands", "cleared": "alarm is over"}[step]
    reason = redact_secrets(alarm.reason)
    facts = {"since": f"{alarm.since[:16].replace('T', ' ')} UTC"} if alarm.since else {}
    if isinstance(alarm, AlarmCleared) and alarm.by:
        facts["cleared by"] = redact_secrets(alarm.by)
    return Notice(
        name=f"alarm.{step}",
        environment=environment,
        sequence=event.sequence,
        at=event.at,
        headline=f"{environment}: {words}: {alarm.name}",
        reason=reason,
        severity=alarm.severity,
        facts=facts,
        flow_run_id=flow_run_id,
        data={
            "event": f"touchstone.alarm.{step}",
            "environment": environment,
            "sequence": event.sequence,
            "at": event.at,
            "about": alarm.name,
            "reason": reason,
            "since": alarm.since,
            "run_keys": [],
        },
    )


def folded(notices: Sequence[Notice]) -> Notice:
    """Many at once as one, as severe as the most severe of them."""
    last = notices[-1]
    worst = sorted(notices, key=lambda notice: (-notice.severity.rank, notice.sequence))
    lines = [f"{notice.severity}: {notice.headline}" for notice in worst[:_MOST_LINES]]
    if len(worst) > _MOST_LINES:
        lines.append(f"and {len(worst) - _MOST_LINES} more: `touchstone alarms`, `touchstone drift status`")
    return Notice(
        name="digest",
        environment=last.environment,
        sequence=last.sequence,
        at=last.at,
        headline=f"{last.environment}: {len(notices)} notices at once",
        reason="\n".join(lines),
        severity=worst[0].severity,
        facts={name: str(count) for name, count in Counter(notice.name for notice in notices).items()},
    )


def _about(event: LedgerEvent) -> str:
    if event.kind is EventKind.EVAL_DECIDED:
        bundle, _, dataset = event.subject.split(":", 2)
        return f"{bundle} on {dataset}"
    if event.kind is EventKind.PROBE_CHECKED:
        return str(event.payload.get("bundle") or event.subject)
    return event.subject.removeprefix("index:")


def _transition(earlier: Sequence[LedgerEvent], event: LedgerEvent) -> str | None:
    """The notice's name. A level that changed is told before that something can be measured again."""
    level = _LEVELS[event.kind]
    if event.kind is EventKind.EVAL_DECIDED:
        moved = _drift_transition(earlier, event)
    elif event.kind is EventKind.FRESHNESS_CHECKED:
        moved = event.payload.get("announcement")
    else:
        moved = event.payload.get("transition")
    if moved:
        return f"{level}.{moved}"
    was, is_now = (bool(one) and _is_unmeasurable(one) for one in (earlier[-1] if earlier else None, event))
    measured = {(False, True): "unmeasurable", (True, False): "measurable"}.get((was, is_now))
    return f"{'eval' if level == 'drift' else level}.{measured}" if measured else None


def _drift_transition(earlier: Sequence[LedgerEvent], event: LedgerEvent) -> str | None:
    measured = (one.payload.get("verdict") for one in reversed(earlier))
    before = next((verdict for verdict in measured if verdict != "unmeasurable"), "stable")
    moves = {
        ("stable", "flagged"): "flagged",
        ("stable", "drifted"): "detected",
        ("flagged", "drifted"): "detected",
        ("drifted", "stable"): "recovered",
    }
    return moves.get((str(before), str(event.payload.get("verdict"))))


def _is_unmeasurable(event: LedgerEvent) -> bool:
    """Of freshness: the source could not be read."""
    if event.kind is EventKind.FRESHNESS_CHECKED:
        return event.payload.get("measures", {}).get("never_embedded", {}).get("level") == "unmeasurable"
    return event.kind is EventKind.EVAL_DECIDED and event.payload.get("verdict") == "unmeasurable"


def _facts(news: News) -> dict[str, str]:
    found = {
        "changed": ", ".join(news.changed),
        "model": news.model,
        "prompt": news.prompt,
        "retrieval": news.retrieval,
        "owner": news.owner,
        "by": news.by,
        "canary": news.canary_id,
        "approval": news.approval_id,
        "event": str(news.sequence),
    }
    return {label: redact_secrets(value) for label, value in found.items() if value}
