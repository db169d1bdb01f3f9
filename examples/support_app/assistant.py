"""One question answered: routed, retrieved for, asked of vendors in order, and told to MLflow afterwards."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from examples.support_app.release_client import ReleaseClient
from examples.support_app.retrieval import Retrievers
from tasks.failover import Answered, Candidate, Failover
from tasks.plan import load_definition
from tasks.targets import render_context
from tasks.tracking_traffic import LiveAnswer, TrafficSender
from tasks.vendor_chat import Messages
from touchstone.definition import Definition
from touchstone.errors import BadInput, TouchstoneError
from touchstone.results import Failure, FailureKind, Retrieval
from touchstone.routing import PublishedFallback, PublishedRelease, Route, route
from touchstone.settings import Settings

OWN_BUNDLES = Path(__file__).parent / "bundles"


@dataclass(frozen=True)
class Reply:
    """An answer with where it comes from, or the failure in its place."""

    request_id: str
    routed: Route
    answered: Answered
    retrieval: Retrieval | None

    @property
    def failure(self) -> Failure | None:
        return self.answered.failure

    @property
    def is_fallback(self) -> bool:
        return self.answered.candidate is not None and self.answered.candidate.is_fallback

    @property
    def served_by(self) -> str | None:
        return self.answered.candidate.endpoint.model if self.answered.candidate else None


class Assistant:
    """Answers by whatever the gateway says is served. It belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        releases: ReleaseClient,
        sender: TrafficSender,
        failover: Failover,
        *,
        allow_ungated_fallback: bool = False,
    ) -> None:
        self.failover = failover
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._releases = releases
        self._sender = sender
        self._retrievers = Retrievers(settings)
        self._allow_ungated = allow_ungated_fallback
        self._from_files: dict[str, Definition | None] = {}

    async def ask(self, question: str, key: str, segment: str | None = None) -> Reply:
        """Raises Unmeasurable when nothing is released. Every other failure is traffic: the canary must see it."""
        started_at, started = time.time(), time.perf_counter()
        release = self._releases.current()
        routed = route(release, key)
        candidates = [Candidate(routed.served.definition), *await self._fallbacks(release, routed)]
        found: dict[tuple[str, bool], Retrieval | None] = {}  # by config: bundles that share one share the search

        async def build(candidate: Candidate) -> Messages:
            key = _searched(routed, candidate)
            if key not in found:
                found[key] = await asyncio.to_thread(
                    self._retrievers.search, candidate.definition, question, pinned=key[1]
                )
            return _messages(candidate.definition, question, found[key])

        try:
            answered = await self.failover.answer(candidates, build)
        except Exception as error:  # an index that cannot be searched, whatever Lance says of it
            what = str(error) if isinstance(error, TouchstoneError) else type(error).__name__
            answered = Answered((), failure=Failure(kind=FailureKind.INVALID, reason=f"no contexts: {what}"))
        served = answered.candidate or candidates[0]
        retrieval = found.get(_searched(routed, served))
        reply = Reply(uuid.uuid4().hex, routed, answered, retrieval)
        self._count(reply)
        config = served.definition.retrieval
        self._sender.offer(
            LiveAnswer(
                request_id=reply.request_id,
                environment=release.environment,
                bundle=routed.bundle,
                fingerprint=routed.fingerprint,
                arm=routed.arm,
                canary_id=routed.canary_id,
                segment=segment,
                question=question,
                answer=answered.text,
                retrieval=retrieval,
                retrieval_config=config.name if config else "",
                calls=answered.calls,
                attempts=answered.attempts,
                failure=answered.failure,
                served_by=reply.served_by,
                is_fallback=reply.is_fallback,
                started_at=started_at,
                seconds=time.perf_counter() - started,
            )
        )
        return reply

    def close(self) -> None:
        self._retrievers.close()

    async def _fallbacks(self, release: PublishedRelease, routed: Route) -> list[Candidate]:
        """Those that passed the gate; with the setting, those that did not, too."""
        allowed = release.fallbacks_of(routed.served, allow_ungated=self._allow_ungated)
        definitions = [await self._definition(fallback) for fallback in allowed]
        return [Candidate(definition, is_fallback=True) for definition in definitions if definition]

    async def _definition(self, fallback: PublishedFallback) -> Definition | None:
        """As the gate measured it; one that no gate has seen, from the project's files."""
        if fallback.served is not None:
            return fallback.served.definition
        if fallback.bundle not in self._from_files:
            self._from_files[fallback.bundle] = await asyncio.to_thread(self._load, fallback.bundle)
        return self._from_files[fallback.bundle]

    def _load(self, name: str) -> Definition | None:
        for reference in (name, str(OWN_BUNDLES / f"{name}.yaml")):
            try:
                return load_definition(self._settings, reference)
            except TouchstoneError:
                continue
        return None

    def _count(self, reply: Reply) -> None:
        self.counts["failed" if reply.failure else "answered"] += 1
        self.counts[f"arm_{reply.routed.arm}"] += 1
        self.counts["fallback"] += reply.is_fallback


def _searched(routed: Route, candidate: Candidate) -> tuple[str, bool]:
    """(retrieval config, whether the index is the release's own): only a canary of another retrieval pins it."""
    config = candidate.definition.retrieval
    pinned = routed.served.pins_index and routed.arm == "canary" and not candidate.is_fallback
    return (config.fingerprint if config else "", pinned)


def _messages(definition: Definition, question: str, retrieval: Retrieval | None) -> Messages:
    if definition.prompt is None:
        raise BadInput(f"{definition.bundle.name} is an app of its own, which this app cannot serve")
    values = {"question": question}
    if retrieval is not None:
        values["context"] = render_context(retrieval.chunks)
    return definition.prompt.messages(**values)
