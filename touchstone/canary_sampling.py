"""Which requests of live traffic are judged, and which champion requests stand beside which canary request.

Chosen before any score is known, by digest of the request id and by time only; whatever is chosen once is used up.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ServedRequest:
    """One request of live traffic that can be used."""

    request_id: str
    trace_id: str
    is_canary: bool
    segment: str
    at: datetime
    answered: bool  # by the bundle's own model, without an error
    feedback: dict[str, float]  # the app's assessments, 0 to 1

    @property
    def digest(self) -> str:
        """Names the request where its id must not be kept."""
        return hashlib.sha256(self.request_id.encode()).hexdigest()[:16]

    @property
    def order(self) -> tuple[datetime, str]:
        return self.at, self.request_id


@dataclass(frozen=True)
class Pairing:
    """A canary request and the champion requests of its segment and time."""

    canary: ServedRequest
    champions: tuple[ServedRequest, ...]


def pair_up(requests: Iterable[ServedRequest], used: Collection[str], *, most: int, block: int) -> list[Pairing]:
    """At most `most` canary requests, each with up to `block` champions, in order of time; `used` holds digests.

    No champion stands beside two: its luck would count twice. Where there are too few for full blocks all blocks of
    the segment shrink, to one champion at least; canary requests beyond that are left for another look.
    """
    by_segment: dict[str, tuple[list[ServedRequest], list[ServedRequest]]] = defaultdict(lambda: ([], []))
    for request in sorted(requests, key=lambda request: request.order):
        if request.digest not in used:
            by_segment[request.segment][0 if request.is_canary else 1].append(request)
    quota = _quotas({name: min(len(canary), len(rest)) for name, (canary, rest) in by_segment.items()}, most)
    pairs = [
        pair
        for segment, (canaries, champions) in by_segment.items()
        for pair in _blocks(_sample(canaries, quota[segment]), champions, block)
    ]
    return sorted(pairs, key=lambda pair: pair.canary.order)


def _quotas(available: dict[str, int], most: int) -> dict[str, int]:
    """Shares of `most` in proportion to what each segment has; what rounding leaves goes to the largest rests."""
    total = sum(available.values())
    if total <= most:
        return available
    exact = {name: most * count / total for name, count in available.items()}
    quota = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: (quota[name] - exact[name], name))[: most - sum(quota.values())]:
        quota[name] += 1
    return quota


def _sample(canaries: Sequence[ServedRequest], count: int) -> list[ServedRequest]:
    """By digest of the id: the same ones whoever looks. In order of time again."""
    chosen = sorted(canaries, key=lambda request: request.digest)[:count]
    return sorted(chosen, key=lambda request: request.order)


def _blocks(canaries: Sequence[ServedRequest], champions: list[ServedRequest], block: int) -> list[Pairing]:
    """The champions nearest in time, as many beside each; both in order of time."""
    if not canaries:
        return []
    size = min(block, len(champions) // len(canaries))
    pairs, free = [], 0  # champions before `free` are used
    for place, canary in enumerate(canaries):
        last = len(champions) - size * (len(canaries) - place)  # start no later, or those after it get none
        start = free
        while start < last and _distance(champions[start + size], canary) < _distance(champions[start], canary):
            start += 1
        pairs.append(Pairing(canary, tuple(champions[start : start + size])))
        free = start + size
    return pairs


def _distance(request: ServedRequest, other: ServedRequest) -> float:
    return abs((request.at - other.at).total_seconds())
