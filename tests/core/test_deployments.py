"""prefect.yaml as it is read: what Prefect would ignore or misunderstand is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from touchstone.deployments import Deployments

SCHEDULE = {"cron": "30 6 * * *", "timezone": "Europe/Berlin", "slug": "daily"}
TRIGGER = {"type": "event", "name": "after", "match": {"prefect.resource.id": "x"}, "expect": ["y"]}


def read(**fields: Any) -> Deployments:
    entry = {
        "name": "daily",
        "description": "Once a day.",
        "entrypoint": "flows.golden_eval.golden_eval",
        "work_pool": {"name": "evals"},
        "parameters": {"bundle": "b", "dataset": "d"},
    }
    return Deployments.model_validate({"name": "touchstone", "deployments": [entry | fields]})


def resources(deployments: Deployments) -> list[str]:
    return [suite.resource for suite in deployments.suites()]


def test_a_scheduled_golden_eval_is_a_suite_and_one_without_a_schedule_is_not() -> None:
    assert resources(read(schedules=[SCHEDULE])) == ["touchstone.eval.b.d"]
    assert resources(read()) == []
    assert resources(read(schedules=[SCHEDULE | {"active": False}])) == []


def test_each_schedule_that_asks_for_another_golden_set_is_a_suite_of_its_own() -> None:
    other = SCHEDULE | {"slug": "other", "parameters": {"dataset": "e"}}
    again = SCHEDULE | {"slug": "again"}
    assert resources(read(schedules=[SCHEDULE, other, again])) == ["touchstone.eval.b.d", "touchstone.eval.b.e"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedules": [SCHEDULE], "parameters": {"bundle": "b"}}, "dataset must be given"),
        ({"schedules": [SCHEDULE, SCHEDULE]}, "schedules: slug daily: given twice"),
        ({"triggers": [TRIGGER, TRIGGER]}, "triggers: name after: given twice"),
        ({"triggers": [TRIGGER | {"expect": []}]}, "at least 1 item"),
        ({"triggers": [TRIGGER | {"posture": "Proactive"}]}, "Extra inputs are not permitted"),
        ({"schedules": [SCHEDULE | {"cron": "0 30 6 * * *"}]}, "not a cron line of five fields"),
        ({"entrypoint": "flows/golden_eval.py:golden_eval"}, "is not dotted"),
    ],
)
def test_what_would_run_otherwise_than_it_reads_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        read(**fields)
