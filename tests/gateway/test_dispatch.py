"""The dispatcher: what a webhook starts is done once, later when it must, and never forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway import dispatch
from gateway.dispatch import Dispatcher, Doers
from tasks.inbox import WebhookInbox
from touchstone.errors import BadInput, TouchstoneError, Unmeasurable
from touchstone.inbox import HookStatus, InboxRow
from touchstone.webhooks import Action, Hook

GATE = Action(kind="run", target="gate/support", parameters={"event": {"paths": ["a"]}})
EVAL = Action(kind="run", target="golden-eval/daily")
EVENT = Action(kind="emit", target="my.event", resource="my.thing", parameters={"n": 1})
ALARM = Action(kind="alarm", target="suite-silent", parameters={"resource": "r"})


class Site:
    """A dispatcher on a real inbox, whose doers write down what they are asked; `answer` may raise."""

    def __init__(self, inbox: WebhookInbox) -> None:
        self.inbox, self.asked = inbox, []
        self.answer: Callable[[str], Any] = lambda target: None
        self.hangs: set[str] = set()

    async def _run(self, target: str, parameters: Mapping[str, Any], key: str) -> str:
        run = self._ask(target, parameters, key)
        if target in self.hangs:
            await asyncio.Event().wait()
        return run

    async def _emit(self, target: str, resource: str, parameters: Mapping[str, Any], key: str) -> None:
        self._ask(target, {"resource": resource, **parameters}, key)

    async def _alarm(self, target: str, parameters: Mapping[str, Any]) -> str:
        return self._ask(target, parameters, "")

    def _ask(self, target: str, parameters: Mapping[str, Any], key: str) -> str:
        self.asked.append((target, dict(parameters), key))
        self.answer(target)
        return f"run {len(self.asked)}"

    def targets(self) -> list[str]:
        return [target for target, _, _ in self.asked]

    def put(self, *actions: Action, id: str = "h1", age: timedelta = timedelta()) -> None:
        at = (datetime.now(UTC) - age).isoformat()
        hook = Hook(id=id, source="github", event="push", received_at=at, actions=actions)
        assert asyncio.run(self.inbox.put(hook))

    def work(self, until: Callable[[], bool]) -> None:
        """Let a new dispatcher work until something is so."""

        async def main() -> None:
            dispatcher = Dispatcher(self.inbox, Doers(self._run, self._emit, self._alarm))
            working = asyncio.create_task(dispatcher.work())
            dispatcher.wake()
            async with asyncio.timeout(20):
                while not until() and not working.done():  # noqa: ASYNC110  (what is waited for is on disk)
                    await asyncio.sleep(0.01)
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

        asyncio.run(main())

    def settle(self) -> InboxRow:
        self.work(lambda: HookStatus.WAITING not in self.inbox.counted())
        return self.row()

    def row(self, id: str = "h1") -> InboxRow:
        return next(row for row in self.inbox.listed() if row.hook.id == id)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(dispatch, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(dispatch, "_LOOK_EVERY_S", 0.02)
    with closing(WebhookInbox(f"sqlite:///{tmp_path / 'inbox.db'}")) as inbox:
        yield Site(inbox)


def raising(error: Exception, *targets: str) -> Callable[[str], None]:
    def answer(target: str) -> None:
        if target in targets:
            raise error

    return answer


def test_each_action_is_done_once_in_order_under_a_key_of_its_own(site: Site) -> None:
    site.put(GATE, EVENT, ALARM)
    row = site.settle()
    assert site.asked == [
        ("gate/support", {"event": {"paths": ["a"]}}, "gate/support:h1:0"),
        ("my.event", {"resource": "my.thing", "n": 1}, "my.event:h1:1"),
        ("suite-silent", {"resource": "r"}, ""),
    ]
    assert row.status is HookStatus.DONE
    assert row.outcomes == ("gate/support: flow run run 1", "my.event: sent", "suite-silent: run 3")


def test_what_was_done_before_a_failure_is_not_done_again(site: Site) -> None:
    site.put(GATE, EVAL)
    failures = iter([TouchstoneError("away"), TouchstoneError("away")])

    def answer(target: str) -> None:
        if target == "golden-eval/daily" and (error := next(failures, None)):
            raise error

    site.answer = answer
    assert site.settle().status is HookStatus.DONE
    assert site.targets() == ["gate/support", "golden-eval/daily", "golden-eval/daily", "golden-eval/daily"]
    assert {key for target, _, key in site.asked if target == "golden-eval/daily"} == {"golden-eval/daily:h1:1"}


def test_what_cannot_be_done_is_told_and_the_other_actions_are_done(site: Site) -> None:
    site.put(GATE, EVAL)
    site.answer = raising(BadInput("Prefect has no deployment gate/support"), "gate/support")
    row = site.settle()
    assert row.status is HookStatus.FAILED
    assert row.outcomes == ("failed: Prefect has no deployment gate/support", "golden-eval/daily: flow run run 2")


def test_a_retry_does_only_what_failed(site: Site) -> None:
    site.put(EVENT, GATE, EVAL)
    site.answer = raising(BadInput("no"), "gate/support")
    assert site.settle().status is HookStatus.FAILED
    site.answer = lambda target: None
    assert site.inbox.retry("h1") == 1
    row = site.settle()
    assert (row.status, site.targets()[3:]) == (HookStatus.DONE, ["gate/support"])
    assert row.outcomes == ("my.event: sent", "gate/support: flow run run 4", "golden-eval/daily: flow run run 3")


def test_a_value_that_the_payload_lacks_fails_with_what_to_correct(site: Site) -> None:
    site.put(GATE.model_copy(update={"problem": "the webhook has no payload.after"}))
    row = site.settle()
    assert (row.status, site.asked) == (HookStatus.FAILED, [])
    assert "the webhook has no payload.after; correct `parameters` of the rule" in row.outcomes[0]


def test_while_prefect_is_away_it_is_asked_now_and_then_and_all_is_done_when_it_is_back(
    site: Site,
) -> None:
    for number in range(30):
        site.put(GATE, id=f"h{number}")
    site.answer = raising(Unmeasurable("Prefect does not answer"), "gate/support")
    ends, began = iter(range(60)), time.monotonic()
    site.work(lambda: next(ends, None) is None)  # some 0.6 s
    pauses = (time.monotonic() - began) / dispatch.LONGEST_PAUSE_S
    assert (
        1 <= len(site.asked) <= 8 * (pauses + 2)
    )  # a few at a time, then a pause: not all that waits, again and again
    assert site.inbox.counted() == {HookStatus.WAITING: 30}

    site.answer, site.asked = lambda target: None, []
    site.work(lambda: HookStatus.WAITING not in site.inbox.counted())
    assert sorted(key for _, _, key in site.asked) == sorted(f"gate/support:h{number}:0" for number in range(30))


def test_what_was_tried_for_a_day_is_given_up_and_says_why(site: Site) -> None:
    site.put(GATE, age=timedelta(hours=25))
    site.answer = raising(TouchstoneError("Prefect does not answer"), "gate/support")
    row = site.settle()
    assert row.status is HookStatus.FAILED
    assert row.outcomes == ("failed: gate/support: given up after 25 h: Prefect does not answer",)
    assert site.inbox.retry("h1") == 1
    assert site.settle().outcomes == row.outcomes  # it is away still
    site.answer = lambda target: None
    assert site.inbox.retry("h1") == 1
    assert site.settle().status is HookStatus.DONE


def test_nothing_that_goes_wrong_ends_the_dispatcher(site: Site) -> None:
    site.put(ALARM, id="h1")
    failures = iter([RuntimeError("what is this"), ValueError("and this")])

    def answer(target: str) -> None:
        if error := next(failures, None):
            raise error

    site.answer = answer
    assert site.settle().status is HookStatus.DONE
    assert site.targets() == ["suite-silent"] * 3


def test_runs_that_prefect_breaks_on_hold_up_no_others(site: Site) -> None:
    for number in range(9):  # more than are under way at once, and all of them older
        site.put(GATE, id=f"broken-{number}")
    site.put(EVAL, id="sound")
    site.answer = raising(TouchstoneError("Prefect is ready, and answers 500"), "gate/support")
    site.work(lambda: site.row("sound").status is HookStatus.DONE)
    assert site.inbox.counted() == {HookStatus.WAITING: 9, HookStatus.DONE: 1}


def test_an_alarm_is_raised_while_prefect_is_away_whatever_else_waits(site: Site) -> None:
    for number in range(30):
        site.put(GATE, id=f"h{number}")
    site.put(ALARM, id="alarm")
    site.answer = raising(Unmeasurable("Prefect does not answer"), "gate/support")
    site.work(lambda: site.row("alarm").status is HookStatus.DONE)
    assert "suite-silent" in site.targets()[: dispatch._AT_ONCE]


def test_what_was_done_is_on_disk_before_the_next_action_begins(site: Site) -> None:
    site.put(EVENT, ALARM)
    seen: list[tuple[str, ...]] = []
    site.answer = lambda target: seen.append(site.row().outcomes)
    site.settle()
    assert seen == [(), ("my.event: sent",)]


def test_an_action_that_hangs_is_left_before_its_row_is_handed_out_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.inbox import LEASE_S

    assert dispatch._ACTION_S < LEASE_S
    monkeypatch.setattr(dispatch, "_ACTION_S", 0.05)
    site.put(EVAL)
    site.hangs = {"golden-eval/daily"}
    site.answer = lambda target: len(site.asked) < 3 or site.hangs.clear()
    assert site.settle().status is HookStatus.DONE
    assert len(site.asked) == 3


def test_a_webhook_wakes_the_dispatcher(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_LOOK_EVERY_S", 60)

    async def main() -> None:
        dispatcher = Dispatcher(site.inbox, Doers(site._run, site._emit, site._alarm))
        working = asyncio.create_task(dispatcher.work())
        await asyncio.sleep(0.3)  # it has looked, found nothing, and waits
        at = datetime.now(UTC).isoformat()
        await site.inbox.put(Hook(id="h1", source="github", event="push", received_at=at, actions=(GATE,)))
        dispatcher.wake()
        async with asyncio.timeout(10):
            while site.inbox.counted() != {HookStatus.DONE: 1}:  # noqa: ASYNC110  (what is waited for is on disk)
                await asyncio.sleep(0.02)
        working.cancel()

    asyncio.run(main())
