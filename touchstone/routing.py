"""Which bundle answers a request: sticky per request key, decided in the app from what the gateway serves.

Pure, and needs pydantic alone, so that any app can import it. What the gateway serves holds whole definitions
(model, prompt, retrieval config, index version): an app needs no files of the project.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.definition import Definition
from touchstone.errors import Unmeasurable

if TYPE_CHECKING:  # at run time it would bring numpy and rfc8785 along
    from touchstone.release import Deployment, ReleaseState

Arm = Literal["champion", "canary"]
_STEPS = 2**53  # as finely as a float can tell shares apart


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Served(_Record):
    """A bundle that answers requests, with everything it needs."""

    bundle: str
    fingerprint: str
    definition: Definition
    pins_index: bool = Field(
        default=False, description="Retrieval is what changed: as a canary it searches exactly its own index version"
    )


class PublishedCanary(_Record):
    """A candidate on a share of the traffic; held or graduated it serves that share on."""

    canary_id: str
    share: float = Field(ge=0, le=1)
    salt: str = Field(description="Decides, with the request key, who sees it; the same at every share")
    status: str
    served: Served


class Parity(StrEnum):
    """Whether a fall-back may answer in another bundle's place."""

    PASSED = "passed"  # the gate passed it against the champion of now
    STALE = "stale"  # against another champion
    MISSING = "missing"  # never, or the gate failed it


class PublishedFallback(_Record):
    """A bundle of another vendor, for when the routed one's vendor is away."""

    bundle: str
    parity: Parity
    reason: str = Field(description="Which gate decision it rests on, or what is missing")
    served: Served | None = Field(default=None, description="As the gate measured it; null when no gate did")


class PublishedRelease(_Record):
    """What an environment serves now: the gateway's answer."""

    environment: str
    sequence: int = Field(description="Of the release event that led here")
    champion: Served | None
    promoted_at: str | None = None
    promoted_by: str | None = None
    index_version: str = Field(default="", description="That the champion was promoted with; empty: no retrieval")
    canary: PublishedCanary | None = None
    fallbacks: tuple[PublishedFallback, ...] = ()

    def fallbacks_of(self, served: Served, *, allow_ungated: bool = False) -> tuple[PublishedFallback, ...]:
        """Those that may answer in a bundle's place, in its order; `allow_ungated`: whatever the gate says."""
        known = {fallback.bundle: fallback for fallback in self.fallbacks}
        named = [known[name] for name in served.definition.bundle.fallbacks if name in known]
        return tuple(fallback for fallback in named if allow_ungated or fallback.parity is Parity.PASSED)


class Route(_Record):
    """Who answers one request key."""

    arm: Arm
    bundle: str
    fingerprint: str
    canary_id: str | None = Field(default=None, description="The canary that runs, whichever arm this is")
    served: Served


def route(release: PublishedRelease | ReleaseState, request_key: str) -> Route:
    """The same key always gets the same arm, and who saw the canary sees it on when its share grows.

    Raises Unmeasurable when nothing was promoted yet.
    """
    published = release if isinstance(release, PublishedRelease) else publish(release)
    if published.champion is None:
        raise Unmeasurable(
            f"{published.environment} has no champion yet, so nothing can answer; `touchstone promote` makes the first"
        )
    canary = published.canary
    is_canary = canary is not None and place(canary.salt, request_key) < canary.share
    served = canary.served if canary is not None and is_canary else published.champion
    return Route(
        arm="canary" if is_canary else "champion",
        bundle=served.bundle,
        fingerprint=served.fingerprint,
        canary_id=canary.canary_id if canary else None,
        served=served,
    )


def place(salt: str, request_key: str) -> float:
    """Where a request key lies in [0, 1): below the share it is the canary's."""
    digest = hashlib.sha256(f"{salt}:{request_key}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / _STEPS


def publish(state: ReleaseState, fallbacks: tuple[PublishedFallback, ...] = ()) -> PublishedRelease:
    """A release state as apps see it: nothing of gates and approvals, all that is needed to answer."""
    champion, candidate, canary = state.champion, state.candidate, state.canary
    return PublishedRelease(
        environment=state.environment,
        sequence=state.sequence,
        champion=_served(champion.deployment) if champion else None,
        promoted_at=champion.promoted_at if champion else None,
        promoted_by=champion.promoted_by if champion else None,
        index_version=champion.deployment.definition.index_version if champion else "",
        canary=PublishedCanary(
            canary_id=canary.canary_id,
            share=canary.share,
            salt=canary.salt,
            status=canary.status.value,
            served=_served(candidate.deployment),
        )
        if candidate and canary
        else None,
        fallbacks=fallbacks,
    )


def fallback_names(state: ReleaseState) -> tuple[str, ...]:
    """Bundles that are named to stand in for the champion or the canary, each once."""
    serving = [state.champion.deployment] if state.champion else []
    if state.candidate and state.canary:
        serving.append(state.candidate.deployment)
    return tuple(dict.fromkeys(name for one in serving for name in one.definition.bundle.fallbacks))


def _served(deployment: Deployment) -> Served:
    return Served(
        bundle=deployment.name,
        fingerprint=deployment.fingerprint,
        definition=deployment.definition,
        pins_index="retrieval" in deployment.changed,
    )
