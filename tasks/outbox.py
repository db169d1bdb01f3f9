"""The outbox: what the ledger holds is handed to MLflow, Prefect and people, in order and at least once.

The outbox is the ledger itself and a cursor per projection. A cursor moves only after its projection took an event, so
that a crash delivers again; a target that is away keeps its own cursor and holds up no other. What can come twice: the
event that was being sent when the process died, and one that a target took but answered too late. Projections
are therefore idempotent, or carry the event's sequence so that a receiver can tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from tasks import announce_release, notify, tracking_release
from tasks.anchors import checkpoint_and_anchor
from tasks.ledger import Ledger
from tasks.outbox_cursors import Cursors
from tasks.projection import Projection, TargetAway
from touchstone.alarms import ALARM_KINDS
from touchstone.errors import TouchstoneError
from touchstone.ledger import RELEASE_KINDS, EventKind, LedgerEvent
from touchstone.privacy import redact_secrets
from touchstone.settings import Settings

# A projection that is new takes what is this young: the event that caused its first delivery is no history.
NEW_ENOUGH = timedelta(minutes=10)
TOO_LATE = timedelta(hours=24)  # an alarm, or a trigger, of yesterday does more harm than good
BUDGET_S = 10.0  # per projection and delivery; what is left goes with the next one


@dataclass(frozen=True)
class Standing:
    """How far a projection is behind."""

    projection: str
    delivered: int  # sequence; 0 before the first
    waiting: int  # events it still has to be handed
    off: str = ""


def deliver(settings: Settings, ledger: Ledger, *, now: datetime | None = None) -> list[str]:
    """Hand every projection what it has not had, and return warnings; never raises.

    Somebody else who is delivering is left to it: it looks again before it ends. Takes seconds when a target is away.
    """
    now = now or datetime.now(UTC)
    try:
        projections = all_projections(settings)
    except Exception as error:
        return [_warning("outbox", error)]
    return [warning for one in projections if not one.off for warning in _deliver(settings, ledger, one, now)]


def tell_people(settings: Settings, *, left_to_flows: timedelta = timedelta()) -> list[str]:
    """Notifications only, for who has appended and closed the ledger; nothing is done where nobody is to be told.

    What is younger than `left_to_flows` is left, but for alarms: who appended it delivers it, and knows more links.
    """
    if not settings.notify:
        return []
    now = datetime.now(UTC)
    until = now - left_to_flows if left_to_flows else None
    try:
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            found = [_deliver(settings, ledger, one, now, until) for one in notify.projections(settings)]
    except Exception as error:
        return [_warning("notify", error)]
    return [warning for warnings in found for warning in warnings]


def deliver_all(settings: Settings, ledger: Ledger, *, rebuild: bool = False) -> list[str]:
    """`deliver`; with `rebuild` states are shown anew from the whole ledger. News is never sent again."""
    try:
        if rebuild:
            return _reset(settings, ledger) + deliver(settings, ledger)
    except Exception as error:
        return [_warning("outbox", error)]
    return deliver(settings, ledger)


def standings(
    settings: Settings, ledger: Ledger, *, rebuild: bool = False, now: datetime | None = None
) -> list[Standing]:
    """How far each projection is behind, or would be at a rebuild. Raises what the ledger's database raises."""
    now, cursors = now or datetime.now(UTC), Cursors(ledger)
    found = []
    for projection in all_projections(settings):
        cursor = 0 if rebuild and not projection.is_news else _cursor(cursors, ledger, projection, now)
        waiting = _wanted(projection, ledger.events(since=cursor), now)
        found.append(Standing(projection.name, cursor, len(waiting), projection.off))
    return found


def all_projections(settings: Settings) -> tuple[Projection, ...]:
    """Every target, the quickest first."""
    anchor = Projection("anchor", frozenset({*RELEASE_KINDS, EventKind.GATE_DECIDED}), _anchor, is_news=False)
    return (*notify.projections(settings), announce_release.projection(), tracking_release.projection(), anchor)


def _anchor(settings: Settings, ledger: Ledger, events: Sequence[LedgerEvent]) -> Iterator[int]:
    """One signed checkpoint covers them all."""
    if warnings := checkpoint_and_anchor(settings, ledger):
        raise TargetAway("; ".join(warnings))
    yield events[-1].sequence


def _deliver(
    settings: Settings, ledger: Ledger, projection: Projection, now: datetime, until: datetime | None = None
) -> list[str]:
    """One projection. Whatever it raises is a warning: nothing that was decided depends on who has been told."""
    warnings: list[str] = []
    try:
        cursors = Cursors(ledger)
        more = True
        while more:  # what came meanwhile was left to us by those who found it claimed
            with cursors.claimed(projection.name) as is_mine:
                if not is_mine or not _send(settings, ledger, projection, cursors, now, until, warnings):
                    break
            more = bool(_after(ledger, _cursor(cursors, ledger, projection, now), until))
    except Exception as error:
        warnings.append(_warning(projection.name, error))
    return warnings


def _send(
    settings: Settings,
    ledger: Ledger,
    projection: Projection,
    cursors: Cursors,
    now: datetime,
    until: datetime | None,
    warnings: list[str],
) -> bool:
    """Hand it what is after its cursor; False when its time was over before."""
    start = _cursor(cursors, ledger, projection, now)
    cursors.move(projection.name, start)  # where a new projection starts is settled once, or an outage would move it
    events = _after(ledger, start, until)
    if not events:
        return True
    wanted = _wanted(projection, events, now)
    late = sum(event.kind in projection.kinds for event in events) - len(wanted)
    if late:
        warnings.append(f"{projection.name}: {late} events of before {now - TOO_LATE:%m-%d %H:%M} UTC passed over")
    if wanted:  # or a target that is away for months would have them all read at every delivery
        cursors.move(projection.name, wanted[0].sequence - 1)
    end = time.monotonic() + BUDGET_S
    for sequence in projection.send(settings, ledger, wanted) if wanted else ():
        cursors.move(projection.name, sequence)
        if time.monotonic() > end and sequence != wanted[-1].sequence:
            left = sum(event.sequence > sequence for event in wanted)
            warnings.append(f"{projection.name}: {left} events wait for the next delivery: it took {BUDGET_S:.0f} s")
            return False
    cursors.move(projection.name, events[-1].sequence)
    return True


def _after(ledger: Ledger, cursor: int, until: datetime | None) -> list[LedgerEvent]:
    """What comes after the cursor, in order; only up to the first event that is younger than `until` and no alarm."""
    events = ledger.events(since=cursor)
    if until is None:
        return events
    limit = until.isoformat()
    return list(takewhile(lambda event: event.at <= limit or event.kind in ALARM_KINDS, events))


def _wanted(projection: Projection, events: Sequence[LedgerEvent], now: datetime) -> list[LedgerEvent]:
    """What concerns it; of news, what does not come too late."""
    oldest = (now - TOO_LATE).isoformat() if projection.is_news else ""
    return [event for event in events if event.kind in projection.kinds and event.at >= oldest]


def _cursor(cursors: Cursors, ledger: Ledger, projection: Projection, now: datetime) -> int:
    """The last delivered sequence; where a new projection starts."""
    known = cursors.read(projection.name)
    if known is not None:
        return known
    if not projection.is_news:
        return 0
    recent = ledger.events(newest=500)
    history = (now - NEW_ENOUGH).isoformat()
    before = recent[-1].sequence - 1 if recent else 0
    return next((event.sequence for event in recent if event.at < history), before)


def _reset(settings: Settings, ledger: Ledger) -> list[str]:
    cursors = Cursors(ledger)
    busy: list[str] = []
    for projection in all_projections(settings):
        if projection.is_news:
            continue
        with cursors.claimed(projection.name) as is_mine:
            if is_mine:
                cursors.move(projection.name, 0)
            else:
                busy.append(f"{projection.name}: not rebuilt, another process is delivering to it; try again")
    return busy


def _warning(name: str, error: Exception) -> str:
    known = isinstance(error, TouchstoneError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return redact_secrets(f"{name}: {(text.splitlines() or [''])[0]}")
