"""Ledger events: what was decided, in an order that nobody can argue about."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class EventKind(StrEnum):
    """What a ledger event records."""

    BASELINE_FROZEN = "baseline.frozen"
    EVAL_DECIDED = "eval.decided"
    INDEX_BUILT = "index.built"
    INDEX_PROMOTED = "index.promoted"  # of one config the latest is the live pointer; a roll-back is one too
    FRESHNESS_CHECKED = "freshness.checked"
    QUERIES_CHECKED = "queries.checked"


class LedgerEvent(BaseModel):
    """One event. Large content lies beside it under its digest, so that it can be erased without breaking the order.

    `sequence` counts from 1 per environment without gaps; `subject` is what the event is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    sequence: int
    at: str
    kind: EventKind
    subject: str
    payload: dict[str, Any]
    content_digest: str | None = None


def content_digest(content: bytes) -> str:
    """SHA-256, as the ledger names content."""
    return hashlib.sha256(content).hexdigest()


def drift_subject(bundle_name: str, bundle_fingerprint: str, dataset_name: str) -> str:
    """What a baseline and its drift state belong to: the same bundle content on the same golden set."""
    return f"{bundle_name}:{bundle_fingerprint}:{dataset_name}"


def index_subject(config_name: str) -> str:
    """What a live pointer, its builds and its freshness belong to: the retrieval config, whatever its version."""
    return f"index:{config_name}"
