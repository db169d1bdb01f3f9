"""The key that signs an environment's checkpoints: recorded in the chain, found on this machine, rotated."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tasks.ledger import Ledger
from tasks.signing import (
    KEY_VARIABLE,
    SigningKey,
    create_key_file,
    key_folder,
    key_in_environment,
    new_key,
    read_key_file,
    verify_signature,
    write_key_file,
)
from touchstone.checkpoint import (
    KEY_KINDS,
    KEY_SUBJECT,
    KeyEntry,
    KeyHistory,
    Rotation,
    Tampered,
    key_history,
    rotation_statement,
)
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import EventKind
from touchstone.settings import Settings


def read_keys(ledger: Ledger) -> KeyHistory:
    """The keys that the chain holds. Raises BadInput when their history does not hold together."""
    events = [(event.sequence, event.kind.value, event.payload) for event in ledger.events(subject=KEY_SUBJECT)]
    try:
        return key_history(ledger.environment, events, verify_signature)
    except Tampered as tampered:
        raise BadInput(f"the ledger of {ledger.environment} was changed: {tampered}") from None


def signing_key(settings: Settings, ledger: Ledger) -> SigningKey:
    """The environment's key; its first use makes one and records it. Raises BadInput when it is not on this machine."""
    current = read_keys(ledger).current
    if current is None:
        key = key_in_environment() or create_key_file(settings)
        with suppress(LedgerConflict):  # somebody recorded a key meanwhile: theirs counts
            _record_first(ledger, key, after=0)
        current = read_keys(ledger).current
        assert current is not None
    return _find(settings, current)


def rotate(settings: Settings, ledger: Ledger, new_file: Path | None = None, *, lost: bool = False) -> SigningKey:
    """Record a new key, signed by the old one, and use it from now on; each stays as <environment>.<id>.pem.

    `new_file`: a key in PEM instead of one made here. `lost`: the old key is gone, so nothing vouches for the new one,
    and whoever verifies has to be told of it. Raises BadInput, or LedgerConflict when somebody else rotated.
    """
    current = read_keys(ledger).current
    if current is None:
        return signing_key(settings, ledger)
    old = None if lost else _find(settings, current)
    given = key_in_environment()
    if given and not lost and new_file is None:
        raise BadInput(f"{KEY_VARIABLE} holds the key: give the new one by --new-key FILE, then set it there")
    new = read_key_file(new_file) if new_file else given if lost and given else new_key()
    if new.public_key == current.public_key:
        raise BadInput(f"key {new.key_id} is the current one already")
    keep = None if given else _file(settings, new.key_id)
    if keep:
        write_key_file(keep, new)  # before it is recorded: a recorded key is never lost to a crash
    try:
        _record_next(ledger, old, new, after=current.sequence)
    except LedgerConflict:
        if keep:
            keep.unlink()
        raise
    if keep:
        _settle(settings, new.key_id)
    return new


def _record_first(ledger: Ledger, key: SigningKey, after: int) -> None:
    payload = {"key_id": key.key_id, "public_key": key.public_key}
    ledger.append(EventKind.KEY_CREATED, KEY_SUBJECT, payload, after=after, watched=KEY_KINDS)


def _record_next(ledger: Ledger, old: SigningKey | None, new: SigningKey, after: int) -> None:
    if old is None:
        return _record_first(ledger, new, after)
    rotation = Rotation(
        environment=ledger.environment,
        previous_key=old.public_key,
        public_key=new.public_key,
        signature=old.sign(rotation_statement(ledger.environment, old.public_key, new.public_key)),
    )
    ledger.append(EventKind.KEY_ROTATED, KEY_SUBJECT, rotation.model_dump(), after=after, watched=KEY_KINDS)


def _find(settings: Settings, wanted: KeyEntry) -> SigningKey:
    """The private half of the key that the chain holds now."""
    given = key_in_environment()
    if given:
        if given.public_key == wanted.public_key:
            return given
        raise BadInput(
            f"{KEY_VARIABLE} holds key {given.key_id}, but the ledger of {settings.environment} is signed by "
            f"{wanted.key_id}; `touchstone audit rotate` goes from one key to the next"
        )
    path = key_folder(settings) / f"{settings.environment}.pem"
    if path.exists() and (key := read_key_file(path)).public_key == wanted.public_key:
        return key
    if _file(settings, wanted.key_id).exists():  # a rotation that was recorded, then interrupted
        _settle(settings, wanted.key_id)
        return read_key_file(path)
    raise BadInput(
        f"the ledger of {settings.environment} is signed by key {wanted.key_id}, which is not on this machine: bring "
        f"{path} here or set {KEY_VARIABLE}; if that key is lost, `touchstone audit rotate --lost`"
    )


def _file(settings: Settings, key_id: str) -> Path:
    return key_folder(settings) / f"{settings.environment}.{key_id}.pem"


def _settle(settings: Settings, key_id: str) -> None:
    """<environment>.pem becomes a further name of <environment>.<key id>.pem.

    Every key keeps the name with its id: two that rotate at once may take each other's place here, but no key is lost.
    """
    path = key_folder(settings) / f"{settings.environment}.pem"
    if path.exists():
        with suppress(FileExistsError):
            os.link(path, _file(settings, read_key_file(path).key_id))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.link(_file(settings, key_id), draft)
    os.replace(draft, path)
    draft.unlink(missing_ok=True)  # where both are one file already, a rename leaves both names
