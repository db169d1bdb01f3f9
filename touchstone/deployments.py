"""prefect.yaml, read strictly: Prefect ignores a key that it does not know, and a typo removes a limit."""

from __future__ import annotations

import re
from datetime import UTC, datetime
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
        if timezone not in available_timezones():
            raise ValueError(f"{timezone!r} is not a time zone such as Europe/Berlin or UTC")
        return timezone


class Trigger(_Closed):
    """An event that starts a run."""

    type: Literal["event"]
    enabled: bool = True
    name: str
    match: dict[str, str | list[str]]
    expect: list[str] = Field(min_length=1)
    parameters: dict[str, Any] = {}


class ConcurrencyLimit(_Closed):
    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


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
    deployments: list[Deployment]

    @model_validator(mode="after")
    def names_are_unique(self) -> Deployments:
        names = [deployment.full_name for deployment in self.deployments]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: declared twice; the second would replace the first")
        return self

    def suites(self) -> tuple[Suite, ...]:
        """Of golden-eval deployments with an active schedule."""
        return tuple(
            Suite(bundle=one.parameters["bundle"], dataset=one.parameters["dataset"], deployment=one.full_name)
            for one in self.deployments
            if one.flow == GOLDEN_EVAL and any(schedule.active for schedule in one.schedules)
        )


def _is_cron(cron: str) -> bool:
    try:
        CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError:
        return False
    return len(cron.split()) == 5
