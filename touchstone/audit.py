"""Verification of an exported ledger: every byte of evidence is as it was signed, or the first that is not is named.

One pass over records and payloads follows the hash chain and builds the Merkle tree; then every signed checkpoint must
have the root and the last digest that were found, under the key of its time; then the contents. Nothing here reads a
file or knows an algorithm of signatures: the caller passes lines, with their line ends, and a function that verifies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import zip_longest
from typing import Any

from pydantic import ValidationError

from touchstone.checkpoint import (
    KEY_KINDS,
    KeyHistory,
    SignedCheckpoint,
    Tampered,
    Verify,
    key_history,
    key_id_of,
    read_checkpoint,
)
from touchstone.erasure import Erasure
from touchstone.ledger import GENESIS, EventKind
from touchstone.merkle import Frontier

RECORDS, PAYLOADS, CHECKPOINTS, CONTENTS = "records.jsonl", "payloads.jsonl", "checkpoints.jsonl", "contents"

# A leaf in canonical form, with its line end: names in order, no white space. Far faster than parsing and encoding it
# again, and as strict, since the chain holds the digest of exactly these bytes.
_RECORD = re.compile(
    rb'\{"at":"[^"\\]*","content_digest":(null|"[0-9a-f]{64}"),"environment":"([^"\\]+)","kind":"([a-z_.]+)",'
    rb'"payload_digest":"([0-9a-f]{64})","previous":"([0-9a-f]{64})","sequence":([1-9][0-9]*),'
    rb'"subject":"(?:[^"\\]|\\.)*"\}\n'
)
_NEEDED = frozenset(kind.value.encode() for kind in (*KEY_KINDS, EventKind.ENTRY_ERASED))


@dataclass(frozen=True)
class Export:
    """What is verified. Lines end in a line feed; contents are (name, body)."""

    records: Iterable[bytes]
    payloads: Iterable[bytes]
    checkpoints: Iterable[bytes]
    contents: Iterable[tuple[str, bytes]]


@dataclass(frozen=True)
class AuditReport:
    """What was found. Verified: `finding` is None; else it is the first thing that does not hold."""

    finding: str | None = None
    environment: str | None = None
    records: int = 0
    head: str | None = None
    root: str | None = None
    checkpoints: int = 0
    keys: tuple[str, ...] = ()
    key_given: bool = False
    erased_payloads: int = 0
    erased_contents: int = 0
    contents: int = 0
    anchored_to: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        return self.finding is None


@dataclass
class Chain:
    """The records that were followed so far. `marks`: root and head at each of the `sizes` that checkpoints name."""

    sizes: frozenset[int] = frozenset()
    environment: bytes = b""
    head: bytes = GENESIS.encode()
    tree: Frontier = field(default_factory=Frontier)
    marks: dict[int, tuple[str, str]] = field(default_factory=dict)
    needed: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    contents: dict[str, int] = field(default_factory=dict)  # digest -> the first record that names it
    blanks: list[int] = field(default_factory=list)

    def follow(self, records: Iterable[bytes], payloads: Iterable[bytes]) -> None:
        """Go on with these lines. Raises Tampered at the first that does not fit, and is of no use after that."""
        match, tree, sizes = _RECORD.fullmatch, self.tree, self.sizes
        head, size, environment = self.head, tree.size, self.environment
        for line, payload in zip_longest(records, payloads):
            size += 1
            found = match(line) if line else None
            if found is None:
                raise Tampered(_no_record(size, line))
            content, name, kind, payload_digest, previous, sequence = found.groups()
            if previous != head or sequence != b"%d" % size:
                raise Tampered(f"{RECORDS}:{size}: does not follow the record before it")
            if name != environment:
                if environment:
                    raise Tampered(f"{RECORDS}:{size}: of another environment than the records before")
                environment = name
            encoded = line[:-1]
            head = sha256(encoded).hexdigest().encode()
            tree.add(encoded)
            if not payload or payload[-1] != 10:
                raise Tampered(f"{PAYLOADS}:{size}: missing, or without its line end")
            if len(payload) == 1:
                self.blanks.append(size)
            elif sha256(payload[:-1]).hexdigest().encode() != payload_digest:
                raise Tampered(f"{PAYLOADS}:{size}: not what record {size} was made of")
            if content != b"null":
                self.contents.setdefault(content[1:-1].decode(), size)
            if kind in _NEEDED:
                self.needed.append((size, kind.decode(), _payload(payload, size)))
            if size in sizes:
                self.marks[size] = (tree.root().hex(), head.decode())
        self.head, self.environment = head, environment

    @property
    def name(self) -> str:
        return self.environment.decode(errors="replace")

    def keys(self, verify: Verify) -> KeyHistory:
        events = [event for event in self.needed if event[1] != EventKind.ENTRY_ERASED]
        return key_history(self.name, events, verify)

    def erasures(self) -> list[Erasure]:
        try:
            erased = [e for e in self.needed if e[1] == EventKind.ENTRY_ERASED]
            return [Erasure.model_validate(payload) for _, _, payload in erased]
        except ValidationError:
            raise Tampered("a record of an erasure that cannot be read") from None


def verify_export(
    export: Export, verify: Verify, trusted_key: str | None = None, anchors: Sequence[SignedCheckpoint] | None = None
) -> AuditReport:
    """Everything about an export. `trusted_key`: a public key in hexadecimal that the auditor has from elsewhere."""
    chain = Chain()
    try:
        checkpoints = read_checkpoints(export.checkpoints)
        chain = Chain(frozenset(checkpoint.size for checkpoint in checkpoints))
        chain.follow(export.records, export.payloads)
        return conclude(chain, checkpoints, export.contents, verify, trusted_key, anchors)
    except Tampered as tampered:
        return AuditReport(finding=str(tampered), environment=chain.name or None)


def conclude(
    chain: Chain,
    checkpoints: Sequence[SignedCheckpoint],
    contents: Iterable[tuple[str, bytes]],
    verify: Verify,
    trusted_key: str | None = None,
    anchors: Sequence[SignedCheckpoint] | None = None,
) -> AuditReport:
    """What is left to check once all records were followed. Raises Tampered."""
    keys = chain.keys(verify)
    _check_signatures(chain, checkpoints, keys, verify)
    _check_trust(keys, trusted_key)
    erasures = chain.erasures()
    _check_blanks(chain.blanks, {erasure.sequence for erasure in erasures})
    present = _check_contents(contents, chain.contents, {erasure.content_digest for erasure in erasures})
    anchored, notes = _check_anchors(checkpoints, anchors)
    return AuditReport(
        environment=chain.name,
        records=chain.tree.size,
        head=chain.head.decode(),
        root=chain.tree.root().hex(),
        checkpoints=len(checkpoints),
        keys=tuple(entry.public_key for entry in keys.entries),
        key_given=trusted_key is not None,
        erased_payloads=len(chain.blanks),
        erased_contents=len(chain.contents) - present,
        contents=present,
        anchored_to=anchored,
        notes=tuple(notes),
    )


def read_checkpoints(lines: Iterable[bytes]) -> list[SignedCheckpoint]:
    """Raises Tampered unless each is in canonical form, names the one before, and covers more than it."""
    found: list[SignedCheckpoint] = []
    previous = GENESIS
    for number, line in enumerate(lines, start=1):
        try:
            checkpoint = read_checkpoint(line.removesuffix(b"\n"))
        except ValueError as error:
            raise Tampered(f"{CHECKPOINTS}:{number}: {error}") from None
        if not line.endswith(b"\n") or checkpoint.previous != previous:
            raise Tampered(f"{CHECKPOINTS}:{number}: does not follow the checkpoint before it")
        if found and checkpoint.size <= found[-1].size:
            raise Tampered(f"{CHECKPOINTS}:{number}: covers no more than the checkpoint before it")
        found.append(checkpoint)
        previous = checkpoint.digest
    if not found:
        raise Tampered(f"{CHECKPOINTS}: no checkpoint, so nothing is signed")
    return found


def _check_signatures(chain: Chain, checkpoints: Sequence[SignedCheckpoint], keys: KeyHistory, verify: Verify) -> None:
    size, last = chain.tree.size, checkpoints[-1].size
    if last > size:
        raise Tampered(f"{RECORDS}: {size} records, but {last} were signed")
    if last < size:
        raise Tampered(f"{RECORDS}: the records after {last} are covered by no signed checkpoint")
    for number, checkpoint in enumerate(checkpoints, start=1):
        where = f"{CHECKPOINTS}:{number}"
        if (checkpoint.root, checkpoint.head) != chain.marks[checkpoint.size]:
            raise Tampered(f"{where}: the records up to {checkpoint.size} are not the ones that were signed")
        if checkpoint.environment != chain.name:
            raise Tampered(f"{where}: of another environment than the records")
        key = keys.at(checkpoint.size)
        if key is None or key.key_id != checkpoint.key_id:
            raise Tampered(f"{where}: key {checkpoint.key_id} is not the one that the chain holds for its time")
        if not verify(key.public_key, checkpoint.signature, checkpoint.statement()):
            raise Tampered(f"{where}: the signature is not of key {key.key_id}")


def _check_trust(keys: KeyHistory, trusted_key: str | None) -> None:
    current = keys.current
    if trusted_key is None or current is None:
        return
    if trusted_key not in {entry.public_key for entry in keys.lineage()}:
        raise Tampered(
            f"signed by key {current.key_id}, which does not descend from the key that was given "
            f"({key_id_of(trusted_key)}): the wrong key, or a log that somebody else has written"
        )


def _check_blanks(blanks: Sequence[int], erased: set[int]) -> None:
    for sequence in blanks:
        if sequence not in erased:
            raise Tampered(f"{PAYLOADS}:{sequence}: missing, and no record says that it was erased")


def _check_contents(contents: Iterable[tuple[str, bytes]], named: dict[str, int], erased: set[str | None]) -> int:
    """How many there are."""
    present: set[str] = set()
    for name, body in contents:
        if name not in named:
            raise Tampered(f"{CONTENTS}/{name}: no record names it")
        if sha256(body).hexdigest() != name:
            raise Tampered(f"{CONTENTS}/{name}: not what record {named[name]} names")
        present.add(name)
    for name, sequence in named.items():
        if name not in present and name not in erased:
            raise Tampered(f"{CONTENTS}/{name}: missing, and no record says that it was erased (record {sequence})")
    return len(present)


def _check_anchors(
    checkpoints: Sequence[SignedCheckpoint], anchors: Sequence[SignedCheckpoint] | None
) -> tuple[int | None, list[str]]:
    if anchors is None:
        return None, ["no anchor was given: a log that was cut off after any of its checkpoints would look like this"]
    last, known = checkpoints[-1], {checkpoint.digest for checkpoint in checkpoints}
    mine = [anchor for anchor in anchors if anchor.environment == last.environment]
    for anchor in mine:
        if anchor.size > last.size:
            raise Tampered(
                f"{RECORDS}: ends at {last.size}, but {anchor.size} records were anchored at {anchor.at}: "
                "the rest was cut off, or this is an older export than the anchor"
            )
        if anchor.digest not in known:
            raise Tampered(f"{CHECKPOINTS}: not the log that was anchored at {anchor.at} ({anchor.size} records)")
    if not mine:
        return None, [f"the anchor holds nothing of {last.environment}"]
    reached = max(anchor.size for anchor in mine)
    return reached, [f"{last.size - reached} records are newer than the anchor"] if reached < last.size else []


def _payload(line: bytes, sequence: int) -> dict[str, Any]:
    if len(line) == 1:
        raise Tampered(f"{PAYLOADS}:{sequence}: missing, and of a kind that is never erased")
    try:
        payload = json.loads(line)["payload"]
    except (ValueError, LookupError, TypeError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise Tampered(f"{PAYLOADS}:{sequence}: cannot be read")
    return payload


def _no_record(number: int, line: bytes | None) -> str:
    if not line:
        return f"{PAYLOADS}:{number}: more payloads than records"
    return f"{RECORDS}:{number}: not a record in canonical form"
