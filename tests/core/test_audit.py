"""Verification of an export, attacked: flips, deletions, insertions, reorderings, cuts, forgeries, wrong keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import pytest

from tasks.signing import SigningKey, new_key, verify_signature
from touchstone.audit import AuditReport, Export, verify_export
from touchstone.audit_proof import Proof, make_proof, verify_proof
from touchstone.checkpoint import Checkpoint, KeyEntry, KeyHistory, Rotation, SignedCheckpoint, rotation_statement
from touchstone.ledger import GENESIS, EventKind, Leaf, content_digest, encode_payload
from touchstone.merkle import inclusion_path, tree_root

KEY, OTHER = new_key(), new_key()


@dataclass
class Log:
    """An export as it is being written, by somebody who has the keys."""

    key: SigningKey = KEY
    leaves: list[Leaf] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    checkpoints: list[SignedCheckpoint] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def append(self, kind: EventKind, payload: dict[str, Any], content: bytes | None = None) -> Log:
        evidence = encode_payload(payload, "5a1t")
        digest = None if content is None else content_digest(content)
        if digest and content is not None:
            self.contents[digest] = content
        leaf = Leaf(
            environment="default",
            sequence=len(self.leaves) + 1,
            at="2026-11-28T00:00:00+00:00",
            kind=kind,
            subject='a "quoted" grüß\n subject',
            payload_digest=content_digest(evidence),
            content_digest=digest,
            previous=self.leaves[-1].digest if self.leaves else GENESIS,
        )
        self.leaves.append(leaf)
        self.payloads.append(evidence)
        return self

    def created(self) -> Log:
        return self.append(EventKind.KEY_CREATED, {"public_key": self.key.public_key, "key_id": self.key.key_id})

    def rotated(self, new: SigningKey, signer: SigningKey | None = None) -> Log:
        statement = rotation_statement("default", self.key.public_key, new.public_key)
        rotation = Rotation(
            environment="default",
            previous_key=self.key.public_key,
            public_key=new.public_key,
            signature=(signer or self.key).sign(statement),
        )
        self.append(EventKind.KEY_ROTATED, rotation.model_dump())
        self.key = new
        return self

    def decided(self, count: int) -> Log:
        for number in range(count):
            self.append(EventKind.GATE_DECIDED, {"n": number, "text": "grüß \u2028"}, b"content %d" % (number % 3))
        return self

    def erased(self, sequence: int) -> Log:
        leaf = self.leaves[sequence - 1]
        named = [other.sequence for other in self.leaves if other.content_digest == leaf.content_digest]
        gone = leaf.content_digest if named == [sequence] else None
        if gone:
            del self.contents[gone]
        self.payloads[sequence - 1] = b""
        payload = {"sequence": sequence, "content_digest": gone, "reason": "asked for", "by": "ada"}
        return self.append(EventKind.ENTRY_ERASED, payload)

    def signed(self, by: SigningKey | None = None) -> Log:
        key = by or self.key
        checkpoint = Checkpoint(
            environment="default",
            size=len(self.leaves),
            root=tree_root(leaf.encoded() for leaf in self.leaves).hex(),
            head=self.leaves[-1].digest,
            at="2026-11-28T00:00:00+00:00",
            key_id=key.key_id,
            previous=self.checkpoints[-1].digest if self.checkpoints else GENESIS,
        )
        self.checkpoints.append(checkpoint.sign(key.sign))
        return self

    def files(self) -> dict[str, bytes]:
        """Name -> bytes, as an export's folder has them."""
        lines = {
            "records": [leaf.encoded() for leaf in self.leaves],
            "payloads": self.payloads,
            "checkpoints": [checkpoint.encoded() for checkpoint in self.checkpoints],
        }
        return {name: b"".join(line + b"\n" for line in of) for name, of in lines.items()} | self.contents


def full() -> Log:
    """Two keys, three checkpoints, contents, an erasure."""
    log = Log().created().decided(4).signed().rotated(OTHER).decided(1).signed()
    return log.append(EventKind.ATTRIBUTION_DECIDED, {"who": "x"}, b"only here").erased(8).signed()


def verify(
    files: dict[str, bytes], key: str | None = None, anchors: Sequence[SignedCheckpoint] | None = None
) -> AuditReport:
    contents = [(name, body) for name, body in files.items() if len(name) == 64]
    lines = [_lines(files[name]) for name in ("records", "payloads", "checkpoints")]
    return verify_export(Export(*lines, contents), verify_signature, key, anchors)


def _lines(content: bytes) -> list[bytes]:
    """As a file gives them: ended by line feeds only."""
    parts = content.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_what_was_exported_verifies_and_is_counted() -> None:
    log = full()
    report = verify(log.files(), KEY.public_key, log.checkpoints)
    assert report.finding is None
    assert (report.records, report.checkpoints, report.contents) == (9, 3, 3)
    assert (report.erased_payloads, report.erased_contents) == (1, 1)
    assert report.keys == (KEY.public_key, OTHER.public_key)
    assert report.head == log.leaves[-1].digest
    assert report.root == tree_root(leaf.encoded() for leaf in log.leaves).hex()
    assert report.anchored_to == 9
    assert report.notes == ()


def test_every_flip_of_every_bit_is_found() -> None:
    """Hexadecimal case, white space, line ends and all; the whole verification each time."""
    log = Log().created().append(EventKind.GATE_DECIDED, {"n": 1}, b"content").erased(2)
    log.append(EventKind.GATE_DECIDED, {"n": 2}, b"content").signed()
    files = log.files()
    flips = 0
    for name, content in files.items():
        for position in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[position] ^= 1 << bit
                flips += 1
                assert not verify(files | {name: bytes(flipped)}).verified, (name, position, bit)
    assert flips == 8 * sum(map(len, files.values())) > 15_000


@pytest.mark.parametrize("name", ["records", "payloads", "checkpoints"])
def test_every_line_that_is_deleted_doubled_or_moved_is_found(name: str) -> None:
    files = full().files()
    lines = _lines(files[name])
    for at, line in enumerate(lines):
        rest = lines[:at] + lines[at + 1 :]
        variants = [rest, [*lines[:at], line, *lines[at:]]]
        variants += [[*rest[:to], line, *rest[to:]] for to in range(len(lines)) if to != at]
        for variant in variants:
            assert not verify(files | {name: b"".join(variant)}).verified


def test_a_record_that_goes_or_moves_together_with_its_payload_is_found() -> None:
    log = full()
    for at in range(len(log.leaves)):
        for to in range(len(log.leaves)):
            leaves, payloads = list(log.leaves), list(log.payloads)
            leaf, payload = leaves.pop(at), payloads.pop(at)
            if to != at:
                leaves.insert(to, leaf)
                payloads.insert(to, payload)
            assert not verify(replace(log, leaves=leaves, payloads=payloads).files()).verified


def test_contents_that_are_missing_renamed_or_added_are_found() -> None:
    files = full().files()
    name = next(name for name in files if len(name) == 64)
    without = {other: body for other, body in files.items() if other != name}
    assert "missing, and no record says that it was erased" in str(verify(without).finding)
    assert "no record names it" in str(verify(files | {"0" * 64: b"more"}).finding)
    assert "no record names it" in str(verify(without | {"0" * 64: files[name]}).finding)


def test_an_erased_payload_is_one_that_a_record_says_was_erased() -> None:
    log = full()
    log.payloads[2] = b""
    assert verify(log.files()).finding == "payloads.jsonl:3: missing, and no record says that it was erased"
    log = full()
    log.payloads[0] = b""
    assert verify(log.files()).finding == "payloads.jsonl:1: missing, and of a kind that is never erased"


def test_a_cut_after_an_anchor_is_found_with_the_anchor_and_said_to_be_invisible_without() -> None:
    log = full()
    for kept in (1, 2):
        size = log.checkpoints[kept - 1].size
        contents = {n: b for n, b in log.contents.items() if n in {leaf.content_digest for leaf in log.leaves[:size]}}
        leaves, payloads = log.leaves[:size], log.payloads[:size]
        cut = replace(log, leaves=leaves, payloads=payloads, checkpoints=log.checkpoints[:kept], contents=contents)
        without = verify(cut.files(), KEY.public_key)
        assert without.verified
        assert without.notes == (
            "no anchor was given: a log that was cut off after any of its checkpoints would look like this",
        )
        found = verify(cut.files(), KEY.public_key, log.checkpoints).finding
        assert f"ends at {size}, but" in str(found)
        assert verify(cut.files(), KEY.public_key, log.checkpoints[:1]).anchored_to == 5


def test_a_cut_between_checkpoints_needs_no_anchor() -> None:
    log = full()
    cut = replace(log, leaves=log.leaves[:7], payloads=log.payloads[:7], checkpoints=log.checkpoints[:1])
    assert "covered by no signed checkpoint" in str(verify(cut.files()).finding)
    cut = replace(log, leaves=log.leaves[:7], payloads=log.payloads[:7])
    assert "7 records, but 9 were signed" in str(verify(cut.files()).finding)


def test_a_log_that_was_rewritten_since_the_anchor_is_found_even_when_the_key_was_stolen() -> None:
    anchors = Log().created().decided(2).signed().checkpoints
    other = Log().created().decided(3).signed()
    assert verify(other.files(), KEY.public_key).verified
    assert "not the log that was anchored" in str(
        verify(other.append(EventKind.GATE_DECIDED, {}).signed().files(), KEY.public_key, anchors).finding
    )


def test_an_anchor_of_another_environment_or_an_older_one_says_so() -> None:
    log = full()
    elsewhere = [log.checkpoints[0].model_copy(update={"environment": "staging"})]
    assert verify(log.files(), None, elsewhere).notes == ("the anchor holds nothing of default",)
    older = verify(log.files(), None, log.checkpoints[:1])
    assert older.verified
    assert older.notes == ("4 records are newer than the anchor",)


def test_the_wrong_key_is_named_and_so_is_the_one_that_signed() -> None:
    stranger = new_key()
    finding = verify(full().files(), stranger.public_key).finding
    assert finding is not None
    assert f"signed by key {OTHER.key_id}, which does not descend from the key that was given" in finding
    assert stranger.key_id in finding
    assert "the wrong key, or a log that somebody else has written" in finding


def test_any_key_that_the_current_one_descends_from_is_trusted_and_no_later_one() -> None:
    before = Log().created().decided(1).signed()
    assert verify(before.files(), OTHER.public_key).finding is not None
    after = before.rotated(OTHER).signed()
    assert verify(after.files(), KEY.public_key).verified
    assert verify(after.files(), OTHER.public_key).verified


def test_a_rotation_that_the_old_key_did_not_sign_is_found() -> None:
    thief = new_key()
    log = Log().created().decided(1).signed().rotated(thief, signer=thief).signed()
    assert verify(log.files(), KEY.public_key).finding == "record 3: the new key is not signed by the key before it"


def test_a_rotated_key_signs_no_more() -> None:
    log = Log().created().signed().rotated(OTHER).signed(by=KEY)
    assert f"key {KEY.key_id} is not the one that the chain holds for its time" in str(verify(log.files()).finding)


def test_a_new_line_of_keys_is_not_trusted_by_the_old_key() -> None:
    log = Log().created().signed()
    log.key = OTHER
    log.created().signed()
    assert verify(log.files(), OTHER.public_key).verified
    assert "does not descend" in str(verify(log.files(), KEY.public_key).finding)


def test_a_signature_of_another_key_under_the_right_name_is_found() -> None:
    log = Log().created().decided(1)
    log.key = KEY
    log.signed()
    forged = log.checkpoints[0].model_copy(update={"signature": OTHER.sign(log.checkpoints[0].statement())})
    log.checkpoints = [forged]
    assert verify(log.files()).finding == f"checkpoints.jsonl:1: the signature is not of key {KEY.key_id}"


def test_nothing_signed_or_nothing_at_all_is_no_pass() -> None:
    assert "no checkpoint" in str(verify(replace(full(), checkpoints=[]).files()).finding)
    assert not verify({"records": b"", "payloads": b"", "checkpoints": b""}).verified


def proof_of(log: Log, sequence: int) -> Proof:
    keys = [KeyEntry(1, KEY.public_key)]
    for leaf, payload in zip(log.leaves, log.payloads, strict=True):
        if leaf.kind is EventKind.KEY_ROTATED:
            rotation = Rotation.model_validate(json.loads(payload)["payload"])
            keys.append(KeyEntry(leaf.sequence, rotation.public_key, rotation))
    path = inclusion_path((leaf.encoded() for leaf in log.leaves), sequence - 1)
    evidence = log.payloads[sequence - 1] or None
    return make_proof(log.leaves[sequence - 1], evidence, path, log.checkpoints[-1], KeyHistory(tuple(keys)))


def test_an_event_is_proved_alone_under_each_key_of_the_line() -> None:
    log = full()
    for sequence in range(1, 10):
        proof = proof_of(log, sequence)
        for key in (None, KEY.public_key, OTHER.public_key):
            assert verify_proof(proof.encoded(), verify_signature, key).finding is None
    assert "does not descend" in str(verify_proof(proof.encoded(), verify_signature, new_key().public_key).finding)
    assert verify_proof(proof_of(log, 8).encoded(), verify_signature, KEY.public_key).notes == (
        "what the event was about was erased; the proof is of its place, kind, subject and digests",
    )


def test_every_flip_of_every_bit_of_a_proof_is_found() -> None:
    content = proof_of(full(), 3).encoded()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            assert not verify_proof(bytes(flipped), verify_signature).verified, (position, bit)


Change = Callable[[Proof, Log], dict[str, Any]]


@pytest.mark.parametrize(
    "change",
    [
        lambda proof, log: {"leaf": log.leaves[3]},
        lambda proof, log: {"path": proof.path[:-1]},
        lambda proof, log: {"path": tuple(reversed(proof.path))},
        lambda proof, log: {"evidence": '{"payload":{"n":7},"salt":"5a1t"}'},
        lambda proof, log: {"checkpoint": log.checkpoints[0]},
        lambda proof, log: {"public_key": KEY.public_key},
        lambda proof, log: {"rotations": ()},
    ],
)
def test_a_proof_with_a_part_from_elsewhere_proves_nothing(change: Change) -> None:
    log = full()
    proof = proof_of(log, 3)
    changed = proof.model_copy(update=change(proof, log))
    assert not verify_proof(changed.encoded(), verify_signature, KEY.public_key).verified


def test_the_digest_of_a_leaf_is_of_the_line_that_is_exported() -> None:
    log = full()
    first = log.files()["records"].split(b"\n")[0]
    assert log.leaves[1].previous == sha256(first).hexdigest()
