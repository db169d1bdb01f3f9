"""What housekeeping did: one line for each kind of thing that grows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Cleaned(BaseModel):
    """One kind of thing, after it was looked through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    days: float | None = Field(default=None, description="Older ones go")
    kept: int | None = Field(default=None, description="None: not counted")
    removed: int = Field(default=0, description="In a dry run: that would be removed")
    bytes_freed: int | None = Field(default=None, description="None: not known")
    needed: dict[str, int] = Field(default_factory=dict, description="Old ones that stay, by why")
    note: str = ""
    error: str = Field(default="", description="Why it, or some of it, could not be cleaned")


class HousekeepingReport(BaseModel):
    """All of them, in the order in which they were cleaned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dry_run: bool
    at: str
    items: tuple[Cleaned, ...]
    wall_s: float

    @property
    def failed(self) -> tuple[Cleaned, ...]:
        return tuple(item for item in self.items if item.error)

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.failed:
            return "could not be cleaned: " + "; ".join(f"{item.what}: {item.error}" for item in self.failed)
        removed = [f"{item.removed} {item.what}" for item in self.items if item.removed]
        done = "would remove" if self.dry_run else "removed"
        return f"{done} {', '.join(removed)}" if removed else "nothing is too old"

    def summary(self) -> dict[str, Any]:
        return self.model_dump(mode="json") | {"failed": [item.what for item in self.failed]}
