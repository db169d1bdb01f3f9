"""Ledger events: what was decided, in an order that nobody can argue about and nobody can change unseen.

Each event is a leaf: canonical JSON (RFC 8785) that names its place, its subject, the digests of its payload and
content, and the digest of the leaf before it. A leaf holds digests only, so that payload and content can be erased
without breaking the chain; a salt keeps an erased payload from being guessed.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

GENESIS = "0" * 64  # what the first leaf of an environment names as the one before it


class EventKind(StrEnum):
    """What a ledger event records."""

    BASELINE_FROZEN = "baseline.frozen"
    EVAL_DECIDED = "eval.decided"
    INDEX_BUILT = "index.built"
    INDEX_PROMOTED = "index.promoted"  # of one config the latest is the live pointer; a roll-back is one too
    FRESHNESS_CHECKED = "freshness.checked"
    QUERIES_CHECKED = "queries.checked"
    GATE_DECIDED = "gate.decided"
    RELEASE_CANDIDATE = "release.candidate"
    CANARY_STARTED = "canary.started"
    CANARY_LOOKED = "canary.looked"  # its content is the state of the tests, so that no restart loses evidence
    CANARY_WIDENED = "canary.widened"
    CANARY_HELD = "canary.held"
    CANARY_GRADUATED = "canary.graduated"
    CANARY_STOPPED = "canary.stopped"
    APPROVAL_ASKED = "approval.asked"
    APPROVAL_GIVEN = "approval.given"  # approve or deny
    RELEASE_PROMOTED = "release.promoted"
    RELEASE_ROLLED_BACK = "release.rolled_back"
    ATTRIBUTION_DECIDED = "attribution.decided"
    PROBE_CHECKED = "probe.checked"
    ALARM_RAISED = "alarm.raised"  # something stands until it is cleared; raised again to remind
    ALARM_CLEARED = "alarm.cleared"
    LABELS_SAMPLED = "labels.sampled"
    LABELS_IMPORTED = "labels.imported"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    ENTRY_ERASED = "entry.erased"  # what makes an erased payload or content something else than a missing one


RELEASE_SUBJECT = "release"
# What the release state is the fold of. All are of RELEASE_SUBJECT, and compare-and-swap is over all of them.
RELEASE_KINDS = (
    EventKind.RELEASE_CANDIDATE,
    EventKind.CANARY_STARTED,
    EventKind.CANARY_WIDENED,
    EventKind.CANARY_HELD,
    EventKind.CANARY_GRADUATED,
    EventKind.CANARY_STOPPED,
    EventKind.APPROVAL_ASKED,
    EventKind.APPROVAL_GIVEN,
    EventKind.RELEASE_PROMOTED,
    EventKind.RELEASE_ROLLED_BACK,
)


class Leaf(BaseModel):
    """What the chain holds of one event. `sequence` counts from 1 per environment without gaps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    sequence: int
    at: str
    kind: EventKind
    subject: str
    payload_digest: str
    content_digest: str | None = None
    previous: str = Field(description="Digest of the leaf before, GENESIS for the first")

    def encoded(self) -> bytes:
        """Canonical JSON: the bytes that are hashed."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()


class LedgerEvent(Leaf):
    """A leaf with what it is about. Large content lies beside it under its digest."""

    payload: dict[str, Any] = Field(exclude=True)
    salt: str | None = Field(default=None, exclude=True, description="None: the payload was erased")

    @property
    def is_erased(self) -> bool:
        return self.salt is None


def content_digest(content: bytes) -> str:
    """SHA-256, as the ledger names content."""
    return hashlib.sha256(content).hexdigest()


def encode_payload(payload: dict[str, Any], salt: str) -> bytes:
    """Canonical JSON of a payload with its salt: the bytes whose digest the leaf holds."""
    return rfc8785.dumps({"payload": payload, "salt": salt})


def drift_subject(bundle_name: str, bundle_fingerprint: str, dataset_name: str) -> str:
    """What a baseline and its drift state belong to: the same bundle content on the same golden set."""
    return f"{bundle_name}:{bundle_fingerprint}:{dataset_name}"


def index_subject(config_name: str) -> str:
    """What a live pointer, its builds and its freshness belong to: the retrieval config, whatever its version."""
    return f"index:{config_name}"


def gate_subject(bundle_name: str) -> str:
    """What the gate's decisions on a bundle belong to."""
    return f"gate:{bundle_name}"


def canary_subject(canary_id: str) -> str:
    """What the looks at one canary belong to."""
    return f"canary:{canary_id}"


def probe_subject(bundle_name: str, fingerprint: str) -> str:
    """What the probes of a vendor belong to: `fingerprint` is of the model and the probes, not of the prompt."""
    return f"probe:{bundle_name}:{fingerprint}"


def alarm_subject(alarm: str) -> str:
    """What an alarm's raising and clearing belong to; `alarm` is such as suite-silent:support:support."""
    return f"alarm:{alarm}"
