"""Who is told, and of what: an entry of `notify` in touchstone.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from touchstone.severity import Severity

_RELEASES = (
    *("release.candidate", "release.canary", "release.held", "release.graduated", "release.stopped"),
    *("release.denied", "release.promoted", "release.rolled_back", "approval.asked"),
)
# What is told unless a target chooses: no flags, which pass by themselves, and no gate, which tells who asked for it.
QUIET = (
    *_RELEASES,
    *("alarm.raised", "alarm.reminded", "alarm.cleared"),
    *("eval.unmeasurable", "eval.measurable", "freshness.unmeasurable", "freshness.measurable"),
    *("probe.detected", "probe.recovered"),
    *("drift.detected", "drift.recovered", "freshness.breached", "freshness.recovered"),
    *("queries.drifted", "queries.recovered"),
)
NOTICES = (*QUIET, "gate.decided", "drift.flagged", "freshness.flagged", "queries.flagged", "probe.flagged")


class NotifyTarget(BaseModel):
    """Somebody who is told. Addresses are secrets, so that the environment holds them, and here is their name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["slack", "webhook", "email", "apprise"]
    url_env: str = Field(pattern=r"^[A-Za-z_]\w*$", description="Variable with the address; email: mailto(s)://...")
    secret_env: str = Field(default="", pattern=r"^([A-Za-z_]\w*)?$", description="With the webhook's signing secret")
    events: tuple[str, ...] = Field(default=(), description="Such as release, drift.detected; empty: all but flags")
    minimum_severity: Severity = Field(default=Severity.INFO, description="What is less severe is not told")

    @field_validator("events")
    @classmethod
    def events_exist(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        known = {*NOTICES, *(name.partition(".")[0] for name in NOTICES)}
        unknown = [name for name in events if name not in known]
        if unknown:
            raise ValueError(f"unknown event {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return events

    @model_validator(mode="after")
    def webhook_is_signed(self) -> NotifyTarget:
        if self.kind == "webhook" and not self.secret_env:
            raise ValueError("name the variable with the webhook's secret in `secret_env`: what is sent is signed")
        return self

    @property
    def is_for_people(self) -> bool:
        """Who would rather read one message than fifty."""
        return self.kind != "webhook"

    def wants(self, notice: str, severity: Severity = Severity.CRITICAL) -> bool:
        """Whether it is told of a notice, such as release.promoted."""
        chosen = self.events or QUIET
        named = notice in chosen or notice.partition(".")[0] in chosen
        return named and severity.rank >= self.minimum_severity.rank
