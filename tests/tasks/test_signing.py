"""Signing keys on disk and in the environment, and signatures that hold for exactly what was signed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.signing import (
    KEY_VARIABLE,
    create_key_file,
    key_in_environment,
    new_key,
    read_key_file,
    read_public_key,
    sign_approval,
    verify_approval,
    verify_signature,
    write_key_file,
)
from touchstone.errors import BadInput
from touchstone.settings import Settings

ROOT = Path(__file__).parents[2]
CREATE = """
import sys
from pathlib import Path
from tasks.signing import create_key_file
from touchstone.settings import Settings
print(create_key_file(Settings(root=Path(sys.argv[1]))).public_key)
"""


def test_a_new_key_file_is_for_its_owner_only_and_stays_the_same(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path, environment="staging")
    key = create_key_file(settings)
    path = tmp_path / ".touchstone" / "keys" / "staging.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert create_key_file(settings).public_key == key.public_key
    assert [file.name for file in path.parent.iterdir()] == ["staging.pem"]


def test_two_processes_that_need_a_key_at_once_get_the_same_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    keys = {process.communicate(timeout=60)[0] for process in started}
    assert len(keys) == 1
    assert keys != {b""}


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    first = new_key()
    write_key_file(tmp_path / "a.pem", first)
    write_key_file(tmp_path / "a.pem", new_key())
    assert read_key_file(tmp_path / "a.pem").public_key == first.public_key


def test_the_environment_gives_a_key_and_one_line_may_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    for pem in (key.pem().decode(), key.pem().decode().replace("\n", "\\n")):
        monkeypatch.setenv(KEY_VARIABLE, pem)
        found = key_in_environment()
        assert found is not None
        assert found.public_key == key.public_key
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert key_in_environment() is None


def test_what_is_no_key_is_bad_input_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "hunter2")
    with pytest.raises(BadInput, match=f"{KEY_VARIABLE}: no Ed25519 private key") as caught:
        key_in_environment()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadInput, match=r"nowhere\.pem: No such file"):
        read_key_file(tmp_path / "nowhere.pem")


def test_a_private_key_never_shows_itself() -> None:
    key = new_key()
    assert key.private.private_bytes_raw().hex() not in repr(key)
    assert repr(key) == f"SigningKey(public_key={key.public_key!r})"


def test_a_public_key_is_read_from_digits_from_pem_and_from_the_private_file(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = new_key()
    write_key_file(tmp_path / "private.pem", key)
    public = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "digits").write_text(key.public_key + "\n")
    files = [str(tmp_path / name) for name in ("private.pem", "public.pem", "digits")]
    assert {read_public_key(given) for given in [key.public_key, key.public_key.upper(), *files]} == {key.public_key}
    (tmp_path / "other").write_text("ssh-rsa AAAA")
    with pytest.raises(BadInput, match="holds no Ed25519 public key"):
        read_public_key(str(tmp_path / "other"))
    with pytest.raises(BadInput, match="neither 64 hexadecimal digits nor a file"):
        read_public_key("abc")


def test_a_signature_holds_for_its_bytes_its_key_and_in_lower_case_only() -> None:
    key = new_key()
    signature = key.sign(b"what was decided")
    assert verify_signature(key.public_key, signature, b"what was decided")
    assert not verify_signature(key.public_key, signature, b"what was decided ")
    assert not verify_signature(new_key().public_key, signature, b"what was decided")
    assert not verify_signature(key.public_key, signature.upper(), b"what was decided")
    assert not verify_signature(key.public_key, signature + "\n", b"what was decided")
    assert not verify_signature("", "", b"what was decided")


def test_an_approval_is_signed_for_one_request_one_bundle_and_one_decision(tmp_path: Path) -> None:
    key = new_key()
    write_key_file(tmp_path / "ada.pem", key)
    signature = sign_approval(tmp_path / "ada.pem", "ap-1", "f1", "approve")
    assert verify_approval(key.public_key, signature, "ap-1", "f1", "approve")
    for changed in (("ap-2", "f1", "approve"), ("ap-1", "f2", "approve"), ("ap-1", "f1", "deny")):
        assert not verify_approval(key.public_key, signature, *changed)
