"""Checkpoints: a signed statement of how far a ledger goes and what it holds; and whose keys may sign one.

Keys are recorded in the chain itself: the first by KEY_CREATED, each later one by KEY_ROTATED, signed by the key before
it. So whoever trusts one key can follow to the later ones, and a checkpoint counts only under the key of its time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from touchstone.ledger import EventKind

KEY_SUBJECT = "key"
KEY_KINDS = (EventKind.KEY_CREATED, EventKind.KEY_ROTATED)

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex128 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Verify = Callable[[str, str, bytes], bool]  # (public key, signature, message), the first two in hexadecimal


class Tampered(Exception):
    """Evidence that does not hold; the message names file, line and what is wrong with it."""


class Checkpoint(BaseModel):
    """What is signed: the first `size` events of an environment, by their tree's root and their last leaf's digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    size: int = Field(ge=1)
    root: Hex64
    head: Hex64
    at: str
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    previous: Hex64 = Field(description="Digest of the signed checkpoint before, GENESIS for the first")

    def statement(self) -> bytes:
        """The bytes that are signed."""
        return rfc8785.dumps({name: getattr(self, name) for name in Checkpoint.model_fields})

    def sign(self, sign: Callable[[bytes], str]) -> SignedCheckpoint:
        return SignedCheckpoint(**self.model_dump(), signature=sign(self.statement()))


class SignedCheckpoint(Checkpoint):
    signature: Hex128

    def encoded(self) -> bytes:
        """Canonical JSON: one line of an export, of an anchor, and what the next checkpoint names as `previous`."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()


def read_checkpoint(line: bytes) -> SignedCheckpoint:
    """Raises ValueError unless these are exactly the bytes that `encoded` gives."""
    try:
        checkpoint = SignedCheckpoint.model_validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(" ".join([*map(str, first["loc"]), first["msg"]])) from None
    if checkpoint.encoded() != line:
        raise ValueError("not in canonical form")
    return checkpoint


def key_id_of(public_key: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


class Rotation(BaseModel):
    """From one key to the next, signed by the one before. A payload of KEY_ROTATED."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    previous_key: Hex64
    public_key: Hex64
    signature: Hex128

    def holds(self, verify: Verify) -> bool:
        statement = rotation_statement(self.environment, self.previous_key, self.public_key)
        return verify(self.previous_key, self.signature, statement)


def rotation_statement(environment: str, previous_key: str, public_key: str) -> bytes:
    """What the old key signs."""
    statement = {"environment": environment, "previous_key": previous_key, "public_key": public_key}
    return rfc8785.dumps(statement)


@dataclass(frozen=True)
class KeyEntry:
    """A key from the event on that recorded it. No rotation: it begins a line of keys."""

    sequence: int
    public_key: str
    rotation: Rotation | None = None

    @property
    def key_id(self) -> str:
        return key_id_of(self.public_key)


@dataclass(frozen=True)
class KeyHistory:
    """The keys of an environment, in the order of its chain."""

    entries: tuple[KeyEntry, ...] = ()

    @property
    def current(self) -> KeyEntry | None:
        return self.entries[-1] if self.entries else None

    def at(self, size: int) -> KeyEntry | None:
        """The key that may sign a checkpoint of this size."""
        for entry in reversed(self.entries):
            if entry.sequence <= size:
                return entry
        return None

    def lineage(self) -> tuple[KeyEntry, ...]:
        """The current key and those it descends from by rotations, oldest first."""
        line: list[KeyEntry] = []
        for entry in reversed(self.entries):
            line.append(entry)
            if entry.rotation is None:
                break
        return tuple(reversed(line))


def key_history(environment: str, events: Sequence[tuple[int, str, dict[str, Any]]], verify: Verify) -> KeyHistory:
    """From (sequence, kind, payload) of the key events. Raises Tampered for one that its elder did not sign."""
    entries: list[KeyEntry] = []
    for sequence, kind, payload in events:
        if kind == EventKind.KEY_CREATED:
            entries.append(KeyEntry(sequence, _public_key(payload, sequence)))
            continue
        try:
            rotation = Rotation.model_validate(payload)
        except ValidationError:
            raise Tampered(f"record {sequence}: a rotation of keys that cannot be read") from None
        known = entries[-1].public_key if entries else None
        if rotation.previous_key != known or rotation.environment != environment or not rotation.holds(verify):
            raise Tampered(f"record {sequence}: the new key is not signed by the key before it")
        entries.append(KeyEntry(sequence, rotation.public_key, rotation))
    return KeyHistory(tuple(entries))


def _public_key(payload: dict[str, Any], sequence: int) -> str:
    key = payload.get("public_key")
    if not isinstance(key, str) or len(key) != 64 or set(key) - set("0123456789abcdef"):
        raise Tampered(f"record {sequence}: a key that cannot be read ({json.dumps(key)[:80]})")
    return key
