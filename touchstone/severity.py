"""How much something that is told matters."""

from __future__ import annotations

from enum import StrEnum


class Severity(StrEnum):
    """Info is good to know, warning wants a look today, critical wants somebody now."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)
