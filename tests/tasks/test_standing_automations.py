"""Which events the standing automations act on, by the matching of Prefect's server."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource

from tasks.standing_automations import acting, telling
from touchstone.deployments import Suite
from touchstone.errors import BadInput
from touchstone.settings import Settings

SUITE = Suite(bundle="support", dataset="support", deployment="golden-eval/daily")


def acts_on(event: str, resource: dict[str, str], *related: dict[str, str]) -> list[str]:
    """The first words of the names of those that this event starts, or makes wait."""
    found = []
    for one in [*acting(), *telling(Settings(root=Path("/nowhere")), [SUITE], UUID(int=1))]:
        trigger = EventTrigger.model_validate(one.trigger.model_dump(mode="json"))
        covered = trigger.covers_resources(Resource(resource), [RelatedResource(label) for label in related])
        if covered and (trigger.expects(event) or trigger.starts_after(event)):
            found.append(one.name)
    return sorted(found)


def of_run(event: str, flow: str, name: str, tag: str = "touchstone") -> list[str]:
    return acts_on(
        event,
        {"prefect.resource.id": f"prefect.flow-run.{UUID(int=2)}", "prefect.resource.name": name},
        {
            "prefect.resource.id": f"prefect.flow.{UUID(int=3)}",
            "prefect.resource.role": "flow",
            "prefect.resource.name": flow,
        },
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"},
    )


CRASHED, HEARTBEAT = "prefect.flow-run.Crashed", "prefect.flow-run.heartbeat"
MARK = "touchstone: mark a run as crashed when its worker is gone"  # its wait is over with any event of the run


def test_a_crashed_golden_eval_is_resumed_and_nobody_is_told() -> None:
    assert of_run(CRASHED, "golden-eval", "golden-eval a on b") == [MARK, "touchstone: resume a crashed golden eval"]


def test_a_resumed_golden_eval_that_crashes_is_told_and_not_resumed() -> None:
    assert of_run(CRASHED, "golden-eval", "golden-eval a on b (resumed)") == [
        MARK,
        "touchstone: tell when a resumed golden eval crashed again",
    ]


def test_another_flow_that_crashes_is_told() -> None:
    assert of_run(CRASHED, "freshness", "freshness a") == [MARK, "touchstone: tell when a flow run crashed"]


def test_runs_of_others_on_the_same_server_are_left_alone() -> None:
    assert of_run(CRASHED, "golden-eval", "golden-eval a on b", tag="theirs") == []


def test_a_promotion_that_waits_for_people_is_not_taken_for_dead() -> None:
    assert of_run(HEARTBEAT, "freshness", "freshness a") == [MARK]
    assert of_run(HEARTBEAT, "promotion", "promotion a") == []


@pytest.mark.parametrize(
    ("automation", "told"),
    [
        ("gate-on-change", True),
        ("touchstone: resume a crashed golden eval", True),
        ("touchstone: tell when a flow run crashed", False),
        (MARK, False),
    ],
)
def test_an_automation_that_fails_is_told_unless_it_tells_or_marks_itself(automation: str, told: bool) -> None:
    resource = {"prefect.resource.id": f"prefect.automation.{UUID(int=4)}", "prefect.resource.name": automation}
    expected = ["touchstone: tell when an automation fails"] if told else []
    assert acts_on("prefect.automation.action.failed", resource) == expected


def test_only_suites_of_the_file_are_watched() -> None:
    silence = ["touchstone: tell when a scheduled golden eval is silent"]
    assert acts_on("touchstone.suite.armed", {"prefect.resource.id": SUITE.resource}) == silence
    assert acts_on("touchstone.eval.completed", {"prefect.resource.id": "touchstone.eval.support.other"}) == []


def test_a_silence_shorter_than_prefect_watches_is_refused() -> None:
    with pytest.raises(BadInput, match=r"TOUCHSTONE_SILENT_AFTER_H: 0.001 is less than 10 seconds"):
        telling(Settings(root=Path("/nowhere"), silent_after_h=0.001), [SUITE], UUID(int=1))
