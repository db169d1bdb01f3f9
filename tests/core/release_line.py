"""What tests of releases share: deployments that differ by one number, and an environment's release line in memory."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from touchstone import release_steps as steps
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.index import IndexVersion
from touchstone.ledger import GENESIS, RELEASE_SUBJECT, EventKind, LedgerEvent
from touchstone.prompts import Prompt
from touchstone.release import Deployment, ReleaseState, fold
from touchstone.release_policy import ReleasePolicy
from touchstone.retrieval_config import RetrievalConfig

START = datetime(2026, 11, 2, 9, tzinfo=UTC)


def deployment(
    name: str, retrieval: RetrievalConfig | None = None, index: IndexVersion | None = None, **policy: Any
) -> Deployment:
    """Of a bundle whose prompt says its own name; `policy` are fields of the release policy."""
    bundle = Bundle.model_validate(
        {
            "name": name,
            "model": "openai/gpt-4o-2024-11-20",
            "prompt": f"{name}@1.0.0",
            "retrieval": f"{retrieval.name}@{retrieval.version}" if retrieval else None,
        }
    )
    template = f"{name}: {{question}}" + (" {context}" if retrieval else "")
    definition = Definition(
        bundle=bundle, prompt=Prompt(version="1.0.0", template=template), retrieval=retrieval, index=index
    )
    return Deployment(
        definition=definition,
        fingerprint=definition.fingerprint,
        changed=("prompt",),
        gate_key=f"gate-{name}",
        dataset="support",
        scores={"passed": 0.9},
        run_keys=(f"{name}-run", "champion-run"),
        policy=ReleasePolicy.model_validate(policy),
    )


def without_canary(**approval: Any) -> dict[str, Any]:
    """Policy of a release that needs approvals only; none at all with `required=0`."""
    return {"canary": {"required": False}, "approval": approval}


class Line:
    """Appends events as the ledger would; every event is a minute after the one before."""

    def __init__(self) -> None:
        self.events: list[LedgerEvent] = []
        self.now = START

    @property
    def state(self) -> ReleaseState:
        return fold("default", self.events)

    def take(self, kind: EventKind, payload: dict[str, Any]) -> ReleaseState:
        self.now += timedelta(minutes=1)
        self.events.append(
            LedgerEvent(
                environment="default",
                sequence=len(self.events) + 1,
                at=self.now.isoformat(),
                kind=kind,
                subject=RELEASE_SUBJECT,
                payload=payload,
                salt="00",
                payload_digest="",
                previous=GENESIS,
            )
        )
        return self.state

    def candidate(self, deployed: Deployment) -> ReleaseState:
        return self.take(EventKind.RELEASE_CANDIDATE, steps.candidate(self.state, deployed, "ci", "passed the gate"))

    def canary(self, canary_id: str = "canary-1") -> ReleaseState:
        return self.take(EventKind.CANARY_STARTED, steps.start_canary(self.state, canary_id, "salt", "ci"))

    def widen(self) -> ReleaseState:
        return self.take(EventKind.CANARY_WIDENED, steps.widen_canary(self.state, "not worse so far"))

    def hold(self) -> ReleaseState:
        return self.take(EventKind.CANARY_HELD, steps.hold_canary(self.state, "two hours are over"))

    def graduate(self) -> ReleaseState:
        return self.take(EventKind.CANARY_GRADUATED, steps.graduate_canary(self.state, "not worse"))

    def stop(self) -> ReleaseState:
        return self.take(EventKind.CANARY_STOPPED, steps.stop_canary(self.state, "Ada", "not now"))

    def ask(self, approval_id: str = "approval-1") -> ReleaseState:
        return self.take(EventKind.APPROVAL_ASKED, steps.ask_approval(self.state, approval_id, self.now))

    def give(self, by: str, decision: str = "approve", **changes: Any) -> ReleaseState:
        given = {"approval_id": "approval-1", "via": "command", "now": self.now, **changes}
        return self.take(EventKind.APPROVAL_GIVEN, steps.give_approval(self.state, decision, by, "looks good", **given))

    def promote(self, by: str = "Ada") -> ReleaseState:
        return self.take(EventKind.RELEASE_PROMOTED, steps.promote(self.state, by, "good", self.now))

    def roll_back(self, to: int | None = None) -> ReleaseState:
        return self.take(EventKind.RELEASE_ROLLED_BACK, steps.roll_back(self.state, "Ada", "worse", to))

    def roll_back_canary(self) -> ReleaseState:
        return self.take(EventKind.RELEASE_ROLLED_BACK, steps.roll_back_canary(self.state, "canary", "harm"))

    def release(self, name: str, **policy: Any) -> ReleaseState:
        """All the way, where the policy asks for nothing."""
        self.candidate(deployment(name, **(policy or without_canary(required=0))))
        return self.promote()

    def releases(self, names: Iterable[str]) -> ReleaseState:
        for name in names:
            self.release(name)
        return self.state


def champion(state: ReleaseState) -> str | None:
    return state.champion.deployment.name if state.champion else None


def earlier(state: ReleaseState) -> list[str]:
    return [promotion.deployment.name for promotion in state.previous]
