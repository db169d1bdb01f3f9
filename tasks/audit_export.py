"""An export of the ledger for auditors, written whole or not at all; and its verification from the files alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tasks.checkpoints import make_checkpoint, read_checkpoints
from tasks.ledger import Ledger
from tasks.ledger_keys import read_keys
from tasks.signing import verify_signature
from touchstone.audit import CHECKPOINTS, CONTENTS, PAYLOADS, RECORDS, AuditReport, Export, verify_export
from touchstone.audit_proof import Proof, ProofReport, make_proof, verify_proof
from touchstone.checkpoint import SignedCheckpoint
from touchstone.errors import BadInput
from touchstone.ledger import EventKind, Leaf, LedgerEvent, encode_payload
from touchstone.merkle import inclusion_path
from touchstone.settings import Settings

README = "README"
_README = """The ledger of {environment}: {size} events, signed by key {key_id} at {at}.

records.jsonl      one event a line: the canonical JSON (RFC 8785) that is hashed. "previous" is the SHA-256 of the
                   line before (without its line feed), 64 zeros in the first
payloads.jsonl     line i is what event i is about, with a salt; its SHA-256 is "payload_digest" of record i. An empty
                   line was erased, and an event of kind entry.erased says so
contents/<digest>  larger content that events name by their "content_digest": its SHA-256 is the file's name
checkpoints.jsonl  signed statements: the RFC 6962 tree root of the first "size" lines of records.jsonl, and the
                   SHA-256 of the last of them ("head"). The Ed25519 signature is over the canonical JSON of the
                   object without "signature"; "previous" is the SHA-256 of the line before. Keys are in the events
                   of kind key.created and key.rotated

Verify it without any network:  touchstone audit verify FOLDER --key PUBLIC_KEY --anchor ANCHOR_FILE
This README is no evidence; everything else here is.
"""


def export_ledger(settings: Settings, ledger: Ledger, folder: Path) -> SignedCheckpoint:
    """Write everything up to a new checkpoint. Raises BadInput when the folder is there and not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--out {folder}: is there already and not an empty folder; name a new one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            draft, checkpoint = _write_whole(settings, ledger, Path(name))
            draft.replace(folder)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}") from None
    return checkpoint


def verify_folder(
    folder: Path, trusted_key: str | None = None, anchors: Sequence[SignedCheckpoint] | None = None
) -> AuditReport:
    """Verify an export; no ledger, no network. Raises BadInput when the folder is none, or cannot be read."""
    try:
        return _verify_folder(folder, trusted_key, anchors)
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None


def _verify_folder(folder: Path, trusted_key: str | None, anchors: Sequence[SignedCheckpoint] | None) -> AuditReport:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; `touchstone audit export --out DIR` makes one")
    names = {path.name for path in folder.iterdir()}
    evidence = {RECORDS, PAYLOADS, CHECKPOINTS}
    if not names & evidence:
        raise BadInput(f"{folder}: not an export of a ledger (no {RECORDS}); `touchstone audit export` makes one")
    for name in sorted(evidence - names):
        return AuditReport(finding=f"{name}: missing")
    for name in sorted(names - evidence - {CONTENTS, README}):
        return AuditReport(finding=f"{name}: does not belong to an export")
    with ExitStack() as stack:
        records, payloads, checkpoints = (
            stack.enter_context((folder / name).open("rb")) for name in (RECORDS, PAYLOADS, CHECKPOINTS)
        )
        export = Export(records, payloads, checkpoints, _contents(folder / CONTENTS))
        return verify_export(export, verify_signature, trusted_key, anchors)


def prove(settings: Settings, ledger: Ledger, sequence: int) -> Proof:
    """A proof of one event under a new checkpoint. Raises BadInput when there is no such event."""
    checkpoint = make_checkpoint(settings, ledger)
    events = ledger.events(erased=True)[: checkpoint.size]
    if not 1 <= sequence <= len(events):
        raise BadInput(f"--sequence {sequence}: {ledger.environment} has events 1 to {len(events)}")
    path = inclusion_path((event.encoded() for event in events), sequence - 1)
    event = events[sequence - 1]
    return make_proof(Leaf.model_validate(event.model_dump()), _evidence(event), path, checkpoint, read_keys(ledger))


def verify_proof_file(path: Path, trusted_key: str | None = None) -> ProofReport:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return verify_proof(content, verify_signature, trusted_key)


def _write_whole(settings: Settings, ledger: Ledger, parent: Path) -> tuple[Path, SignedCheckpoint]:
    """What is erased while it is written would be missing without a record of it: it is written again, with it."""
    while True:
        draft = Path(tempfile.mkdtemp(dir=parent))
        draft.chmod(0o755)  # mkdtemp's is for this user only; an export is made to be handed on
        checkpoint = make_checkpoint(settings, ledger)
        _write(ledger, checkpoint, draft)
        if not ledger.events(EventKind.ENTRY_ERASED, since=checkpoint.size):
            return draft, checkpoint


def _write(ledger: Ledger, checkpoint: SignedCheckpoint, folder: Path) -> None:
    events = ledger.events(erased=True)[: checkpoint.size]  # others may append meanwhile
    with (folder / RECORDS).open("wb") as records, (folder / PAYLOADS).open("wb") as payloads:
        for event in events:
            records.write(event.encoded() + b"\n")
            payloads.write((_evidence(event) or b"") + b"\n")
    with (folder / CHECKPOINTS).open("wb") as checkpoints:
        for signed in read_checkpoints(ledger):
            if signed.size <= checkpoint.size:
                checkpoints.write(signed.encoded() + b"\n")
    (folder / CONTENTS).mkdir()
    for event in {event.content_digest: event for event in events if event.content_digest}.values():
        with suppress(BadInput):  # erased; were it only missing, the verification would find no record of an erasure
            (folder / CONTENTS / str(event.content_digest)).write_bytes(ledger.content(event))
    (folder / README).write_text(_README.format_map(checkpoint.model_dump()))


def _evidence(event: LedgerEvent) -> bytes | None:
    return None if event.salt is None else encode_payload(event.payload, event.salt)


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            yield path.name, path.read_bytes() if path.is_file() else b""
