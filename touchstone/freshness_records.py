"""What a freshness check says: records that the terminal, the ledger and Prefect share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Basis = Literal["production", "golden", "documents"]
MEASURES = ("stale_fraction", "source_lag", "ghosts", "never_embedded")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FreshnessLevel(StrEnum):
    """Of a measure, and of the worst of them."""

    OK = "ok"
    FLAGGED = "flagged"
    BREACHED = "breached"


class DocumentStatus(StrEnum):
    """An indexed document against its source as it is now."""

    FRESH = "fresh"
    LAGGING = "lagging"  # title or text changed since it was embedded
    GHOST = "ghost"  # the source has it no more
    UNVERIFIABLE = "unverifiable"  # nobody can read it now


class Measure(_Record):
    """One share. `value` is of retrieved chunks (never_embedded: of the source's documents), `unweighted` of documents.

    The interval is two-sided 95 %, `lower_bound` one-sided 95 %; without sampling all are the value.
    """

    value: float | None = Field(description="None: it could not be measured")
    ci_low: float | None = None
    ci_high: float | None = None
    lower_bound: float | None = None
    limit: float
    unweighted: float | None = None
    level: Literal["ok", "flagged", "breached", "unmeasurable"]
    count: int | None = Field(default=None, description="Documents that it is about")


class Ages(_Record):
    """Days, over retrieved chunks; `unweighted_*` over documents."""

    median: float | None
    p95: float | None
    unweighted_median: float | None = None
    unweighted_p95: float | None = None


class SegmentFreshness(_Record):
    """Shown, not acted on: many segments would raise many false alarms."""

    n_retrievals: int
    n_chunks: int
    measures: dict[str, Measure]
    age_days: Ages


class NeverEmbedded(_Record):
    """Documents of the source that no query can find."""

    count: int | None = Field(description="None: the source could not be read")
    share: float | None
    limit: float
    documents: tuple[str, ...] = Field(description="The first 20")
    quarantined: tuple[str, ...] = Field(default=(), description="Left out by policy, and not counted")


class ResponsibleDocument(_Record):
    """A document that is not fresh, or that was not verified for too long."""

    id: str
    status: DocumentStatus
    stale: bool
    traffic_share: float = Field(description="Of retrieved chunks; basis `documents`: of documents")
    last_verified_at: str
    age_days: float
    embedded_at: str
    chunks: int
    note: str = ""


class PlannedDocument(_Record):
    """One document of a plan."""

    id: str
    action: Literal["embed", "delete"]
    status: Literal["lagging", "ghost", "never_embedded"]
    chunks: int = Field(description="To embed; an estimate")
    traffic_share: float


class PlanCost(_Record):
    """What embedding costs, estimated."""

    documents: int
    chunks: int
    tokens: int | None = Field(description="None: the source cannot be read")
    cost_usd: float | None = Field(description="None: unknown, not free")


class FreshnessPlan(_Record):
    """The cheapest documents to re-embed or delete so that every estimate is within its limit again."""

    method: Literal["nothing to do", "exact", "greedy"]
    restores: bool
    reason: str
    documents: tuple[PlannedDocument, ...]
    cost: PlanCost
    full_rebuild: PlanCost
    after: dict[str, float]
    unrestorable: tuple[str, ...] = Field(default=(), description="Measures that stay above their limits")


class MeasureState(_Record):
    """What a check leaves of one measure for the next."""

    level: FreshnessLevel = FreshnessLevel.OK
    streak: int = Field(default=0, description="Checks in a row whose lower bound was above the limit")


class FreshnessState(_Record):
    """What a check leaves for the next. Announcements are kept apart: not everybody who checks also announces."""

    measures: dict[str, MeasureState] = Field(default_factory=dict)
    announced: FreshnessLevel = FreshnessLevel.OK
    announced_at: datetime | None = None


class FreshnessReport(_Record):
    """All that is known of one check."""

    config: str
    index_version: str
    checked_at: str
    level: FreshnessLevel
    breached: bool
    reason: str
    announcement: Literal["flagged", "breached", "recovered"] | None = None
    basis: Basis
    n_retrievals: int
    n_queries: int = Field(description="Distinct; many are estimated")
    n_chunks: int = Field(description="Retrieved, of documents that are live now")
    n_left_out: int = Field(description="Retrieved chunks of documents that are not live any more")
    measures: dict[str, Measure]
    age_days: Ages
    embedded_age_days: Ages
    never_embedded: NeverEmbedded
    statuses: dict[DocumentStatus, int]
    segments: dict[str, SegmentFreshness]
    documents: tuple[ResponsibleDocument, ...] = Field(description="The first 1,000, most retrieved first")
    source_error: str = Field(default="", description="Why the source could not be read; empty: it was")
    plan: FreshnessPlan | None = None
    warnings: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The object that `touchstone freshness check --json` prints."""
        return self.model_dump(mode="json")
