"""What a step of a release tells others: one flat record per event, for Prefect's triggers and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from touchstone.ledger import EventKind, LedgerEvent
from touchstone.privacy import redact_secrets
from touchstone.release import Deployment, ReleaseState, fold

_NAMES = {
    EventKind.RELEASE_CANDIDATE: "touchstone.release.candidate",
    EventKind.CANARY_STARTED: "touchstone.release.canary",
    EventKind.CANARY_WIDENED: "touchstone.release.canary",
    EventKind.CANARY_HELD: "touchstone.release.held",
    EventKind.CANARY_GRADUATED: "touchstone.release.graduated",
    EventKind.CANARY_STOPPED: "touchstone.release.stopped",
    EventKind.APPROVAL_ASKED: "touchstone.approval.asked",
    EventKind.APPROVAL_GIVEN: "touchstone.release.denied",  # an approval is told by what follows from it
    EventKind.RELEASE_PROMOTED: "touchstone.release.promoted",
    EventKind.RELEASE_ROLLED_BACK: "touchstone.release.rolled_back",
    EventKind.GATE_DECIDED: "touchstone.gate.decided",
}
NEWS_KINDS = frozenset(_NAMES)


class News(BaseModel):
    """One event. Every field is always there, null where it says nothing: a trigger may name any of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str
    step: str  # the ledger's kind, which tells a canary that started from one that widened
    environment: str
    sequence: int  # of the ledger event: with the environment what a receiver tells a repetition by
    at: str
    bundle: str  # whom it is about; of a roll-back the one that leaves
    fingerprint: str
    model: str | None = None
    prompt: str | None = None
    retrieval: str | None = None
    index_version: str | None = None
    champion: str | None = None  # who serves after this event
    champion_fingerprint: str | None = None
    changed: tuple[str, ...] = ()
    dataset: str | None = None
    gate_key: str | None = None
    run_keys: tuple[str, ...] = ()
    verdict: str | None = None
    role: str | None = None
    canary_id: str | None = None
    share: float | None = None
    approval_id: str | None = None
    owner: str | None = None
    required: int | None = None
    approvers: tuple[str, ...] = ()
    expires_at: str | None = None
    what: str | None = None  # of a roll-back: `canary` or `champion`
    by: str | None = None
    reason: str | None = None

    @property
    def headline(self) -> str:
        """One sentence for people."""
        return f"{self.environment}: {_SENTENCES[self.step].format(self=self, share=f'{self.share or 0:.0%}')}"


_SENTENCES = {
    "release.candidate": "{self.bundle} passed the gate and is the candidate",
    "canary.started": "{self.bundle} is on canary with {share} of the traffic",
    "canary.widened": "the canary of {self.bundle} is widened to {share} of the traffic",
    "canary.held": "the canary of {self.bundle} is held: nobody can tell yet, somebody has to look",
    "canary.graduated": "the canary of {self.bundle} has graduated",
    "canary.stopped": "the canary of {self.bundle} was stopped",
    "approval.asked": "{self.bundle} waits for approval until {self.expires_at}",
    "approval.given": "{self.bundle} was denied",
    "release.promoted": "{self.bundle} was promoted and takes all traffic",
    "release.rolled_back": "{self.bundle} was rolled back; {self.champion} takes all traffic",
    "gate.decided": "the gate says {self.verdict} of {self.bundle}",
}


def tell(environment: str, release_events: Sequence[LedgerEvent], event: LedgerEvent) -> News | None:
    """What an event tells, given the environment's release events; None when it is nobody's business.

    The state is that of the event's own time, whatever has happened since.
    """
    if event.kind not in _NAMES or (event.kind is EventKind.APPROVAL_GIVEN and event.payload["decision"] != "deny"):
        return None
    before = fold(environment, (one for one in release_events if one.sequence < event.sequence))
    after = fold(environment, (one for one in release_events if one.sequence <= event.sequence))
    payload = event.payload
    known = {name: payload.get(name) for name in _COPIED if payload.get(name) is not None}
    champion = after.champion.deployment if after.champion else None
    return News.model_validate(
        _about(before, event)
        | known
        | {
            "event": _NAMES[event.kind],
            "step": event.kind.value,
            "environment": environment,
            "sequence": event.sequence,
            "at": event.at,
            "champion": champion.name if champion else None,
            "champion_fingerprint": champion.fingerprint if champion else None,
            "approvers": [approver["name"] for approver in payload.get("approvers", ())],
            "reason": redact_secrets(payload.get("reason") or "") or None,
        }
    )


_COPIED = (
    *("bundle", "fingerprint", "changed", "dataset", "gate_key", "run_keys", "verdict", "role"),
    *("canary_id", "share", "approval_id", "owner", "required", "expires_at", "what", "by"),
)


def _about(before: ReleaseState, event: LedgerEvent) -> dict[str, Any]:
    """The deployment that an event is about, as far as the gate recorded it."""
    if event.kind is EventKind.GATE_DECIDED:
        return {}
    if "deployment" in event.payload:
        deployment = Deployment.model_validate(event.payload["deployment"])
    elif event.payload.get("what") == "champion" and before.champion:
        deployment = before.champion.deployment
    elif before.candidate:
        deployment = before.candidate.deployment
    else:
        return {"bundle": "", "fingerprint": ""}
    definition, canary = deployment.definition, before.canary
    about = {
        "bundle": deployment.name,
        "fingerprint": deployment.fingerprint,
        "model": definition.model or None,
        "prompt": definition.prompt_version or None,
        "retrieval": definition.retrieval_version or None,
        "index_version": definition.index_version or None,
        "changed": deployment.changed,
        "dataset": deployment.dataset,
        "gate_key": deployment.gate_key,
        "run_keys": deployment.run_keys,
    }
    of_canary = {"canary_id": canary.canary_id, "share": canary.share} if canary else {}
    return about | (of_canary if event.kind is not EventKind.RELEASE_CANDIDATE else {})
