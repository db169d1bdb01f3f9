"""`touchstone audit` as people and CI call it: what it writes, what it says, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks.ledger import Ledger
from tasks.signing import KEY_VARIABLE, new_key
from touchstone.ledger import EventKind
from touchstone.settings import Settings

ROOT = Path(__file__).parents[2]
VERIFY_ALONE = """
import socket, sys
def refuse(*_): raise AssertionError("opens a connection")
socket.socket.connect = refuse
from cli.main import main
sys.argv = ["touchstone", "audit", "verify", *sys.argv[1:]]
try:
    main()
finally:
    assert "sqlalchemy.dialects.sqlite" not in sys.modules, "opens a database"
    assert "mlflow" not in sys.modules
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three decisions in its ledger, and no MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    settings = Settings()
    with closing(Ledger(settings.ledger, "default")) as ledger:
        for number in range(3):
            ledger.append(EventKind.GATE_DECIDED, "gate:b", {"n": number}, content=b"content %d" % number)
    return tmp_path


@pytest.fixture
def export(root: Path, touchstone: Any) -> dict[str, Any]:
    code, made = touchstone("audit", "export", "--out", "out", "--json")
    assert code == 0
    return made


def test_an_export_verifies_with_the_key_and_the_anchor(root: Path, touchstone: Any, export: dict[str, Any]) -> None:
    assert {path.name for path in (root / "out").iterdir()} == {
        "README",
        "checkpoints.jsonl",
        "contents",
        "payloads.jsonl",
        "records.jsonl",
    }
    code, report = touchstone(
        "audit",
        "verify",
        "out",
        "--key",
        export["public_key"],
        "--anchor",
        ".touchstone/anchors/default.jsonl",
        "--json",
    )
    assert code == 0
    assert report["verified"] is True
    assert report["finding"] is None
    assert (report["records"], report["contents"], report["anchored_to"]) == (4, 3, 4)
    assert (report["head"], report["root"]) == (export["head"], export["root"])
    assert report["keys"] == [export["public_key"]]
    code, text = touchstone("audit", "verify", "out")
    assert code == 0
    for said in ("VERIFIED", "4 records of default", export["root"], "nobody vouches", "no anchor was given"):
        assert said in text


def test_verification_needs_the_files_and_the_key_only(root: Path, export: dict[str, Any], tmp_path: Path) -> None:
    alone = tmp_path / "auditor"
    alone.mkdir()
    (root / "out").rename(alone / "export")
    command = [sys.executable, "-c", VERIFY_ALONE, "export", "--key", export["public_key"]]
    done = subprocess.run(command, cwd=alone, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "VERIFIED" in done.stdout
    assert [path.name for path in alone.iterdir()] == ["export"]


def test_a_tampered_export_is_exit_1_and_names_the_place(root: Path, touchstone: Any, export: dict[str, Any]) -> None:
    payloads = root / "out" / "payloads.jsonl"
    payloads.write_bytes(payloads.read_bytes().replace(b'"n":1', b'"n":2'))
    code, report = touchstone("audit", "verify", "out", "--key", export["public_key"], "--json")
    assert (code, report["verified"]) == (1, False)
    assert report["finding"] == "payloads.jsonl:2: not what record 2 was made of"
    payloads.unlink()
    code, text = touchstone("audit", "verify", "out")
    assert (code, text) == (1, "TAMPERED  payloads.jsonl: missing\n")
    payloads.write_bytes(b"")
    (root / "out" / "more.txt").write_text("")
    assert touchstone("audit", "verify", "out") == (1, "TAMPERED  more.txt: does not belong to an export\n")


def test_the_wrong_key_is_exit_1_and_both_are_named(touchstone: Any, export: dict[str, Any]) -> None:
    stranger = new_key()
    code, text = touchstone("audit", "verify", "out", "--key", stranger.public_key)
    assert code == 1
    assert export["key_id"] in text
    assert stranger.key_id in text


def test_bad_input_is_exit_2_and_says_what_to_do(root: Path, touchstone: Any, export: dict[str, Any]) -> None:
    (root / "empty").mkdir()
    (root / "no-key.pem").write_text("what is this?")
    for arguments, complaint in [
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["verify", "empty"], "not an export of a ledger"),
        (["verify", "out", "--key", "abc"], "neither 64 hexadecimal digits nor a file"),
        (["verify", "out", "--key", "no-key.pem"], "holds no Ed25519 public key"),
        (["verify", "out", "--anchor", "nowhere"], "No such file"),
        (["verify", "out", "--anchor", "no-key.pem"], "holds no signed checkpoint"),
        (["export", "--out", "out"], "is there already"),
        (["export", "--out", "no-key.pem/out"], "--out no-key.pem/out: "),
        (["prove", "--sequence", "2", "--out", "empty"], "--out empty: Is a directory"),
        (["prove", "--sequence", "99"], "has events 1 to 4"),
        (["erase", "--sequence", "1", "--reason", " "], "an erasure needs one"),
        (["erase", "--sequence", "4", "--reason", "x"], "stays: the proof needs"),
        (["rotate", "--new-key", "no-key.pem"], "no Ed25519 private key"),
    ]:
        code, said = touchstone("audit", *arguments, "--json")
        assert code == 2, (arguments, said)
        assert complaint in said["error"]
    assert len(list((root / "out").iterdir())) == 5


def test_a_proof_is_written_verified_and_found_out_when_it_was_changed(
    root: Path, touchstone: Any, export: dict[str, Any]
) -> None:
    assert touchstone("audit", "prove", "--sequence", "2", "--out", "proof.json")[0] == 0
    code, text = touchstone("audit", "verify", "proof.json", "--key", export["public_key"])
    assert code == 0
    assert "event 2 of 4 in default" in text
    assert '"n":1' in text
    code, printed = touchstone("audit", "prove", "--sequence", "2")
    assert json.loads(printed) == json.loads((root / "proof.json").read_text())
    assert touchstone("audit", "verify", "proof.json", "--key", new_key().public_key)[0] == 1
    (root / "proof.json").write_text((root / "proof.json").read_text().replace("gate:b", "gate:c"))
    code, report = touchstone("audit", "verify", "proof.json", "--json")
    assert code == 1
    assert report["finding"] == "event 2 is not in the log that was signed"
    assert touchstone("audit", "verify", "proof.json", "--anchor", "x")[0] == 2


def test_an_erasure_is_recorded_and_counted(root: Path, touchstone: Any) -> None:
    code, done = touchstone(
        "audit", "erase", "--sequence", "2", "--reason", "asked by ada@example.com", "--by", "Ada", "--json"
    )
    assert code == 0
    assert (done["sequence"], done["event"], done["reason"]) == (2, 4, "asked by [email]")
    assert touchstone("audit", "export", "--out", "out")[0] == 0
    code, report = touchstone("audit", "verify", "out", "--json")
    assert (code, report["erased_payloads"], report["erased_contents"], report["contents"]) == (0, 1, 1, 2)


def test_a_rotation_signs_at_once_with_the_new_key(root: Path, touchstone: Any, export: dict[str, Any]) -> None:
    code, made = touchstone("audit", "rotate", "--json")
    assert code == 0
    code, shown = touchstone("audit", "key", "--json")
    assert [key["public_key"] for key in shown["keys"]] == [export["public_key"], made["public_key"]]
    code, signed = touchstone("audit", "checkpoint", "--json")
    assert (code, signed["key_id"], signed["size"]) == (0, made["key_id"], 5)
    assert "not anchored" in signed["warnings"][0]
    assert touchstone("audit", "export", "--out", "later")[0] == 0
    for key in (export["public_key"], made["public_key"]):
        assert touchstone("audit", "verify", "later", "--key", key)[0] == 0
    code, report = touchstone("audit", "verify", "out", "--anchor", ".touchstone/anchors/default.jsonl", "--json")
    assert code == 1
    assert "this is an older export than the anchor" in report["finding"]


def test_no_private_key_is_ever_shown(root: Path, touchstone: Any) -> None:
    seen = touchstone("audit", "key")[1] + touchstone("audit", "export", "--out", "out")[1]
    pem = (root / ".touchstone" / "keys" / "default.pem").read_text().splitlines()[1]
    seen += "".join(path.read_text() for path in (root / "out").glob("*") if path.is_file())
    assert pem not in seen
