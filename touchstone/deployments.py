"""prefect.yaml, read strictly: Prefect ignores a key that it does not know, and a typo removes a limit."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

GOLDEN_EVAL = "golden-eval"
_DOTTED = re.compile(r"flows(\.\w+){2}")


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Schedule(_Closed):
    """When a deployment runs by itself. A cron line without a time zone means another hour on another machine."""

    cron: str
    timezone: str
    slug: str = Field(pattern=r"^[a-z0-9-]+$", description="What the schedule is recognised by at the next deploy")
    active: bool = True
    parameters: dict[str, Any] = {}

    @field_validator("cron")
    @classmethod
    def is_cron(cls, cron: str) -> str:
        if not _is_cron(cron):
            raise ValueError(f"{cron!r} is not a cron line of five fields, such as '30 6 * * *'")
        return cron

    @field_validator("timezone")
    @classmethod
    def exists(cls, timezone: str) -> str:
        if timezone not in _time_zones():
            raise ValueError(f"{timezone!r} is not a time zone such as Europe/Berlin or UTC")
        return timezone


class Trigger(_Closed):
    """An event that starts a run; `within` and `schedule_after` are seconds."""

    type: Literal["event"]
    enabled: bool = True
    name: str = Field(min_length=1, description="What the trigger is recognised by at the next deploy")
    description: str = ""
    match: dict[str, str | list[str]]
    match_related: dict[str, str | list[str]] = {}
    expect: list[str] = Field(min_length=1)
    for_each: list[str] = []
    threshold: int = Field(default=1, ge=1)
    within: float = Field(default=0, ge=0)
    schedule_after: float = Field(default=0, ge=0)
    parameters: dict[str, Any] = {}


class ConcurrencyLimit(_Closed):
    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]
    grace_period_seconds: int | None = Field(default=None, ge=60, le=86400, description="To start after a slot is had")


class WorkPool(_Closed):
    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}


class Deployment(_Closed):
    """One entry of prefect.yaml."""

    name: str
    description: str = Field(min_length=1, description="What the UI shows")
    entrypoint: str
    tags: list[str] = []
    parameters: dict[str, Any] = {}
    schedules: list[Schedule] = []
    triggers: list[Trigger] = []
    concurrency_limit: ConcurrencyLimit | None = None
    work_pool: WorkPool

    @field_validator("entrypoint")
    @classmethod
    def is_dotted(cls, entrypoint: str) -> str:
        if not _DOTTED.fullmatch(entrypoint):
            raise ValueError(f"{entrypoint!r} is not dotted, as flows.gate.gate; a path loads the flow a second time")
        return entrypoint

    @model_validator(mode="after")
    def parts_are_told_apart(self) -> Deployment:
        for what, names in (
            ("schedules: slug", [schedule.slug for schedule in self.schedules]),
            ("triggers: name", [trigger.name for trigger in self.triggers]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)}: given twice; the next deploy could not tell them apart")
        return self

    @property
    def flow(self) -> str:
        """The flow's name: the function's, with hyphens."""
        return self.entrypoint.rpartition(".")[2].replace("_", "-")

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"


class Suite(_Closed):
    """A golden set on a bundle that runs by itself: silence of it is an alarm."""

    bundle: str
    dataset: str
    deployment: str

    @property
    def resource(self) -> str:
        """prefect.resource.id of its events."""
        return f"touchstone.eval.{self.bundle}.{self.dataset}"


class Deployments(_Closed):
    """prefect.yaml."""

    name: str
    prefect_version: str | None = Field(default=None, alias="prefect-version")
    pull: list[dict[str, Any]] | None = Field(
        default=None, description="How a worker gets the project; empty: it is where it was deployed from"
    )
    deployments: list[Deployment]

    @model_validator(mode="after")
    def names_are_unique(self) -> Deployments:
        names = [deployment.full_name for deployment in self.deployments]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: declared twice; the second would replace the first")
        return self

    @model_validator(mode="after")
    def suites_are_named(self) -> Deployments:
        for number, one in enumerate(self.deployments):
            for schedule in one.schedules:
                missing = {"bundle", "dataset"} - one.parameters.keys() - schedule.parameters.keys()
                if one.flow == GOLDEN_EVAL and schedule.active and missing:
                    raise ValueError(
                        f"deployments.{number} ({one.full_name}): parameters: {', '.join(sorted(missing))} must be "
                        "given, since silence of a scheduled golden set is an alarm that names it"
                    )
        return self

    def suites(self) -> tuple[Suite, ...]:
        """Of golden-eval deployments with an active schedule, each once."""
        found = [
            Suite(bundle=given["bundle"], dataset=given["dataset"], deployment=one.full_name)
            for one in self.deployments
            for schedule in one.schedules
            if one.flow == GOLDEN_EVAL and schedule.active
            for given in [{**one.parameters, **schedule.parameters}]
        ]
        return tuple(dict.fromkeys(found))


def _is_cron(cron: str) -> bool:
    try:
        CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return len(cron.split()) == 5


@cache
def _time_zones() -> set[str]:
    """Reads a folder of hundreds of files."""
    return available_timezones()
