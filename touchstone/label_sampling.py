"""Which live answers of a week people are asked to label: a stratified sample that anybody can draw again.

Strata are segment x arm and bundle x band (the judge's score where there is one, else refused or answered). Every
stratum gives at least one answer; what is left of the week's number is shared in proportion to size. Within a stratum
the choice is uniform, by digest of week and trace id, so that the same traffic gives the same sample. Each answer
carries its weight, the inverse of its chance to be chosen: weighted means are unbiased for the whole week (Horvitz &
Thompson 1952), whatever the allocation.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from touchstone.errors import BadInput

_LOW, _HIGH = 0.5, 0.75  # bands of judge scores that were mapped to 0..1


@dataclass(frozen=True)
class Week:
    """An ISO week in UTC, [start, end)."""

    name: str
    start: datetime
    end: datetime

    @classmethod
    def parse(cls, name: str) -> Week:
        """`2026-W48`. Raises BadInput for what is no ISO week."""
        match = re.fullmatch(r"(\d{4})-W(\d{2})", name)
        try:
            if match is None:
                raise ValueError
            start = datetime.fromisocalendar(int(match[1]), int(match[2]), 1).replace(tzinfo=UTC)
        except ValueError:
            raise BadInput(f"--week {name}: not an ISO week; write it as 2026-W48") from None
        return cls(name, start, start + timedelta(days=7))

    @classmethod
    def of(cls, when: datetime) -> Week:
        year, week, _ = when.astimezone(UTC).isocalendar()
        return cls.parse(f"{year:04}-W{week:02}")

    @classmethod
    def before(cls, now: datetime) -> Week:
        """The last week that is over."""
        return cls.of(now - timedelta(days=7))


@dataclass(frozen=True)
class Candidate:
    """One live answer that could be labelled. `judge_score` is 0 to 1."""

    trace_id: str
    segment: str
    arm: str
    bundle: str
    refused: bool
    judge_score: float | None = None

    @property
    def stratum(self) -> str:
        """Such as `billing / champion support / refused`."""
        return f"{self.segment} / {self.arm} {self.bundle} / {self.band}"

    @property
    def band(self) -> str:
        if self.judge_score is None:
            return "refused" if self.refused else "answered"
        return (
            "judged low" if self.judge_score < _LOW else "judged middle" if self.judge_score < _HIGH else "judged high"
        )


@dataclass(frozen=True)
class Chosen:
    """An answer of the sample. `weight`: so many answers of its stratum it stands for, itself among them."""

    candidate: Candidate
    weight: float


@dataclass(frozen=True)
class Sample:
    """A week's sample; `sizes` are the strata's, chosen from or not."""

    chosen: tuple[Chosen, ...]
    sizes: Mapping[str, int]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """By stratum: how many were chosen, of how many."""
        found = dict.fromkeys(self.sizes, 0)
        for one in self.chosen:
            found[one.candidate.stratum] += 1
        return {name: (found[name], size) for name, size in self.sizes.items()}


def draw(candidates: Iterable[Candidate], most: int, minimum: int, seed: str) -> Sample:
    """Choose `most` answers, or all where there are no more; one of each stratum even where that makes more."""
    strata: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for candidate in candidates:
        strata[candidate.stratum][candidate.trace_id] = candidate
    sizes = {name: len(strata[name]) for name in sorted(strata)}
    chosen: list[Chosen] = []
    for name, quota in _quotas(sizes, most, minimum).items():
        ranked = sorted(strata[name].values(), key=lambda one: _rank(seed, one.trace_id))
        chosen += [Chosen(one, sizes[name] / quota) for one in ranked[:quota]]
    return Sample(tuple(chosen), sizes)


def sample_digest(trace_ids: Iterable[str]) -> str:
    """SHA-256 of which answers were chosen."""
    return hashlib.sha256("\n".join(sorted(trace_ids)).encode()).hexdigest()


def _rank(seed: str, trace_id: str) -> str:
    return hashlib.sha256(f"{seed}\n{trace_id}".encode()).hexdigest()


def _quotas(sizes: Mapping[str, int], most: int, minimum: int) -> dict[str, int]:
    """The minimum of each stratum, then the rest in proportion to what is left of it (largest remainders)."""
    while minimum > 1 and sum(min(minimum, size) for size in sizes.values()) > most:
        minimum -= 1
    quota = {name: min(minimum, size) for name, size in sizes.items()}
    left = {name: size - quota[name] for name, size in sizes.items()}
    total = sum(left.values())
    spare = min(most - sum(quota.values()), total)
    if spare <= 0:
        return quota
    shares = {name: spare * count / total for name, count in left.items()}
    for name, share in shares.items():
        quota[name] += int(share)
    rest = spare - sum(int(share) for share in shares.values())
    for name in sorted(shares, key=lambda name: (int(shares[name]) - shares[name], name))[:rest]:
        quota[name] += 1
    return quota
