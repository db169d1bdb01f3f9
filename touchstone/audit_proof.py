"""A proof that one event is in a signed ledger: its leaf, its path up the tree, the signed root, and the key's descent.

It needs nothing but a public key: no ledger, no export, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from touchstone.checkpoint import Hex64, KeyHistory, Rotation, SignedCheckpoint, Tampered, Verify, key_id_of
from touchstone.ledger import Leaf, content_digest
from touchstone.merkle import verify_inclusion


class Proof(BaseModel):
    """One event of the log that `checkpoint` signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    leaf: Leaf
    evidence: str | None = Field(description="The canonical JSON of payload and salt; None: it was erased")
    path: tuple[Hex64, ...] = Field(description="Siblings from the leaf up to the root")
    checkpoint: SignedCheckpoint
    public_key: Hex64 = Field(description="That signs the checkpoint")
    rotations: tuple[Rotation, ...] = Field(description="How that key descends from older ones, oldest first")

    def encoded(self) -> bytes:
        """Canonical JSON and a line feed: the bytes of the file."""
        return rfc8785.dumps(self.model_dump(mode="json")) + b"\n"


@dataclass(frozen=True)
class ProofReport:
    """What a proof shows. Verified: `finding` is None."""

    finding: str | None
    proof: Proof | None = None
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        return self.finding is None


def make_proof(
    leaf: Leaf, evidence: bytes | None, path: Sequence[bytes], checkpoint: SignedCheckpoint, keys: KeyHistory
) -> Proof:
    """The current key of `keys` has signed the checkpoint."""
    line = keys.lineage()
    return Proof(
        leaf=leaf,
        evidence=None if evidence is None else evidence.decode(),
        path=tuple(node.hex() for node in path),
        checkpoint=checkpoint,
        public_key=line[-1].public_key,
        rotations=tuple(entry.rotation for entry in line if entry.rotation),
    )


def verify_proof(content: bytes, verify: Verify, trusted_key: str | None = None) -> ProofReport:
    """Everything that a proof's file says, down to its last byte. `trusted_key`: in hexadecimal, from elsewhere."""
    try:
        proof = _read(content)
        _check_leaf(proof)
        _check_keys(proof, verify, trusted_key)
    except Tampered as tampered:
        return ProofReport(str(tampered))
    notes: list[str] = []
    if trusted_key is None:
        notes.append(f"no key was given, so key {proof.checkpoint.key_id} was taken from the proof itself")
    if proof.evidence is None:
        notes.append("what the event was about was erased; the proof is of its place, kind, subject and digests")
    return ProofReport(None, proof, tuple(notes))


def _read(content: bytes) -> Proof:
    try:
        proof = Proof.model_validate_json(content)
        canonical = proof.encoded() == content
    except (ValidationError, ValueError, RecursionError):
        canonical, proof = False, None
    if proof is None or not canonical:
        raise Tampered("not a proof as `touchstone audit prove` writes it: another file, or one that was changed")
    return proof


def _check_leaf(proof: Proof) -> None:
    leaf, checkpoint = proof.leaf, proof.checkpoint
    path, root = [bytes.fromhex(node) for node in proof.path], bytes.fromhex(checkpoint.root)
    if not verify_inclusion(leaf.encoded(), leaf.sequence - 1, checkpoint.size, path, root):
        raise Tampered(f"event {leaf.sequence} is not in the log that was signed")
    if leaf.environment != checkpoint.environment:
        raise Tampered("the event and the checkpoint are of different environments")
    if leaf.sequence == checkpoint.size and leaf.digest != checkpoint.head:
        raise Tampered(f"event {leaf.sequence} is not the last one that was signed")
    if proof.evidence is not None and content_digest(proof.evidence.encode()) != leaf.payload_digest:
        raise Tampered(f"the payload is not the one of event {leaf.sequence}")


def _check_keys(proof: Proof, verify: Verify, trusted_key: str | None) -> None:
    line = [rotation.previous_key for rotation in proof.rotations] + [proof.public_key]
    for rotation, following in zip(proof.rotations, line[1:], strict=True):
        if rotation.public_key != following or rotation.environment != proof.leaf.environment:
            raise Tampered("the rotations of keys do not lead to the key that signed")
        if not rotation.holds(verify):
            raise Tampered("a rotation of keys is not signed by the key before it")
    checkpoint = proof.checkpoint
    if key_id_of(proof.public_key) != checkpoint.key_id:
        raise Tampered(f"the key in the proof is not key {checkpoint.key_id}, which signed")
    if not verify(proof.public_key, checkpoint.signature, checkpoint.statement()):
        raise Tampered(f"the signature is not of key {checkpoint.key_id}")
    if trusted_key is not None and trusted_key not in line:
        raise Tampered(
            f"signed by key {checkpoint.key_id}, which does not descend from the key that was given "
            f"({key_id_of(trusted_key)}): the wrong key, or a log that somebody else has written"
        )
