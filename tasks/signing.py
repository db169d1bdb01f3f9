"""Ed25519 keys: an environment's signing key, and the signatures of checkpoints, rotations and approvals.

The private key never leaves this file's objects: it is in no setting, no ledger event and no message. A signature and
a public key are lower-case hexadecimal, and nothing else is accepted for one.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import rfc8785

from touchstone.checkpoint import key_id_of
from touchstone.errors import BadInput
from touchstone.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "TOUCHSTONE_SIGNING_KEY"  # in the environment only: a setting could be written to a file and committed


@dataclass(frozen=True)
class SigningKey:
    """A private key with its public name."""

    public_key: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def key_id(self) -> str:
        return key_id_of(self.public_key)

    def sign(self, message: bytes) -> str:
        return self.private.sign(message).hex()

    def pem(self) -> bytes:
        from cryptography.hazmat.primitives import serialization

        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def verify_signature(public_key: str, signature: str, message: bytes) -> bool:
    """Did the owner of this key sign exactly these bytes? False for anything that is no key or no signature."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not re.fullmatch(r"[0-9a-f]{64}", public_key) or not re.fullmatch(r"[0-9a-f]{128}", signature):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_key() -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return _signing_key(Ed25519PrivateKey.generate())


def read_key(pem: bytes, where: str) -> SigningKey:
    """A private key in PEM. Raises BadInput that names `where` it was read and never what was read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise BadInput(
            f"{where}: no Ed25519 private key in PEM without a password; `openssl genpkey -algorithm ed25519` makes one"
        )
    return _signing_key(private)


def read_key_file(path: Path) -> SigningKey:
    try:
        return read_key(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; it should hold an Ed25519 private key in PEM") from None


def read_public_key(given: str) -> str:
    """64 hexadecimal digits, or a file that holds them, a public key in PEM, or a private one (its public half)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if re.fullmatch(r"[0-9a-fA-F]{64}", given.strip()):
        return given.strip().lower()
    try:
        content = Path(given).read_bytes()
    except OSError as error:
        raise BadInput(f"--key {given}: neither 64 hexadecimal digits nor a file ({error.strerror})") from None
    text = content.decode(errors="replace").strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return text.lower()
    if b"PRIVATE KEY" in content:
        return read_key(content, f"--key {given}").public_key
    try:
        public = serialization.load_pem_public_key(content)
    except Exception:  # what a foreign file makes of a parser is not listed anywhere
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise BadInput(f"--key {given}: holds no Ed25519 public key (64 hexadecimal digits, or PEM)")
    return public.public_bytes_raw().hex()


def key_folder(settings: Settings) -> Path:
    return settings.state / "keys"


def key_in_environment() -> SigningKey | None:
    """The key of TOUCHSTONE_SIGNING_KEY (PEM; `\\n` may stand for the line ends), if it is set."""
    pem = os.environ.get(KEY_VARIABLE, "")
    return read_key(pem.replace("\\n", "\n").encode(), KEY_VARIABLE) if pem.strip() else None


def create_key_file(settings: Settings) -> SigningKey:
    """`<state>/keys/<environment>.pem`, made when it is not there; of two processes one makes it, both read it."""
    path = key_folder(settings) / f"{settings.environment}.pem"
    if not path.exists():
        write_key_file(path, new_key())
    return read_key_file(path)


def write_key_file(path: Path, key: SigningKey) -> None:
    """Whole or not at all, readable by its owner only; a file that is there already stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.pem())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it replaces nothing
    finally:
        draft.unlink(missing_ok=True)


def sign_approval(pem_path: Path, approval_id: str, fingerprint: str, decision: str) -> str:
    """An approver's signature of one decision on one bundle. Raises BadInput when the file holds no key."""
    return read_key_file(pem_path).sign(_approval(approval_id, fingerprint, decision))


def verify_approval(public_key: str, signature: str, approval_id: str, fingerprint: str, decision: str) -> bool:
    """Did the owner of this key (hexadecimal) take this decision on this bundle, for this request?"""
    return verify_signature(public_key, signature, _approval(approval_id, fingerprint, decision))


def _approval(approval_id: str, fingerprint: str, decision: str) -> bytes:
    return rfc8785.dumps({"approval_id": approval_id, "decision": decision, "fingerprint": fingerprint})


def _signing_key(private: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(private.public_key().public_bytes_raw().hex(), private)
