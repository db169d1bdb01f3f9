"""`touchstone promote | approve | deny | rollback | release`: what they print, record, and exit with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tasks.ledger import Ledger
from tasks.releases import append_release, read_release
from tests.conftest import ROOT
from tests.core.release_line import deployment, without_canary
from touchstone import release_steps as steps
from touchstone.ledger import EventKind
from touchstone.settings import Settings


class Line:
    """A project's release line; candidates are written to it as a gate would."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(root=root)
        self.ledger = Ledger(self.settings.ledger, "default")

    def candidate(self, name: str, **approval: Any) -> None:
        state = read_release(self.ledger)
        payload = steps.candidate(state, deployment(name, **without_canary(**approval)), "ci", "passed")
        append_release(self.ledger, state, EventKind.RELEASE_CANDIDATE, payload)

    def events(self) -> int:
        return len(self.ledger.events())


@pytest.fixture
def line(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".touchstone").mkdir()
    shutil.copy(mlflow_database, tmp_path / ".touchstone" / "mlflow.db")
    return Line(tmp_path)


def test_a_release_goes_out_is_shown_and_comes_back(line: Line, touchstone: Any) -> None:
    line.candidate("one", required=0)
    code, done = touchstone("promote", "--by", "Ada", "--reason", "the first", "--json")
    assert (code, done["kind"], done["champion"]["bundle"]) == (0, "release.promoted", "one")
    line.candidate("two", required=2)
    code, asked = touchstone("promote", "--json")
    assert (code, asked["promoted"], asked["approval"]["required"]) == (3, False, 2)
    code, first = touchstone("approve", "--by", "Ada", "--reason", "fine", "--json")
    assert (code, first["promoted"]) == (0, False)
    assert first["open"].startswith("1 of 2 approvals")
    code, shown = touchstone("release", "show", "--json")
    assert code == 0
    assert (shown["champion"]["bundle"], shown["candidate"]["bundle"], shown["canary"]) == ("one", "two", None)
    assert [given["by"] for given in shown["approval"]["given"]] == ["Ada"]
    code, second = touchstone("approve", "--by", "Grace", "--reason", "fine", "--json")
    assert (code, second["promoted"], second["champion"]["promoted_by"]) == (0, True, "Ada, Grace")
    code, back = touchstone("rollback", "--reason", "worse", "--json")
    assert (code, back["what"], back["champion"]["bundle"]) == (0, "champion", "one")
    code, history = touchstone("release", "history", "--json")
    kinds = [event["kind"] for event in history["events"]]
    assert (code, kinds[0], kinds.count("approval.given")) == (0, "release.rolled_back", 2)


def test_the_record_of_what_is_served_is_whole(line: Line, touchstone: Any) -> None:
    line.candidate("one", required=0)
    touchstone("promote", "--by", "Ada", "--reason", "the first", "--json")
    champion = touchstone("release", "show", "--json")[1]["champion"]
    assert champion.pop("promoted_at")
    assert champion.pop("fingerprint")
    assert champion == {
        "bundle": "one",
        "model": "openai/gpt-4o-2024-11-20",
        "prompt_version": "one@1.0.0",
        "retrieval_config_version": None,
        "index_version": None,
        "changed": ["prompt"],
        "dataset": "support",
        "scores": {"passed": 0.9},
        "evidence_run_keys": ["one-run", "champion-run"],
        "gate_key": "gate-one",
        "sequence": 2,
        "promoted_by": "Ada",
        "reason": "the first",
    }


def test_people_read_it_as_text_and_a_reason_is_no_markup(line: Line, touchstone: Any) -> None:
    line.candidate("one", required=0)
    assert "PROMOTED  one takes all traffic (event 2)" in touchstone("promote", "--reason", "[bold]first")[1]
    line.candidate("two", approvers=["Ada"], owner="Ada")
    assert "ASKED" in touchstone("promote")[1]
    text = touchstone("release", "show")[1]
    assert "[bold]first" in text
    assert "0 of 1 approvals" in text
    assert "may approve: Ada" in text
    assert "DENIED" in touchstone("deny", "--by", "Ada", "--reason", "no")[1]
    assert "release.promoted" in touchstone("release", "history")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("approve", "--by", "Mallory", "--reason", "x"), "Mallory may not approve"),
        (("approve", "--by", "Ada", "--reason", " "), "your name and a reason"),
        (("approve", "--by", "Ada", "--reason", "x", "--key", "nowhere.pem"), "nowhere.pem"),
        (("rollback", "--reason", "x"), "no champion, so there is nothing"),
        (("rollback",), "--reason WHY"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    line: Line, touchstone: Any, arguments: tuple[str, ...], message: str
) -> None:
    line.candidate("one", approvers=["Ada"])
    touchstone("promote", "--json")
    before = line.events()
    code, answer = touchstone(*arguments, "--json")
    assert (code, line.events()) == (2, before)
    assert message in answer["error"]


@pytest.mark.parametrize("key", [None, "mallory.pem"])
def test_a_forged_approval_changes_nothing(line: Line, touchstone: Any, tmp_path: Path, key: str | None) -> None:
    keys = {name: Ed25519PrivateKey.generate() for name in ("grace.pem", "mallory.pem")}
    for name, made in keys.items():
        (tmp_path / name).write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = keys["grace.pem"].public_key().public_bytes_raw().hex()
    line.candidate("one", approvers=[{"name": "Grace", "public_key": public}])
    touchstone("promote", "--json")
    before = line.events()
    approve = ("approve", "--by", "Grace", "--reason", "x", "--json")
    code, answer = touchstone(*approve, *(("--key", key) if key else ()))
    assert (code, line.events()) == (2, before)
    assert "not signed by the key that the policy names" in answer["error"]
    assert touchstone(*approve, "--key", "grace.pem")[1]["promoted"]


def test_an_expired_approval_changes_nothing_and_says_who_asks_again(line: Line, touchstone: Any) -> None:
    line.candidate("one", expires_hours=1e-9)
    assert "1 approval is needed" in touchstone("promote")[1]
    before = line.events()
    code, answer = touchstone("approve", "--by", "Ada", "--reason", "x", "--json")
    assert (code, line.events()) == (2, before)
    assert "expired at" in answer["error"]
    assert "`touchstone promote` asks again" in answer["error"]


def test_without_a_candidate_every_command_says_what_makes_one(line: Line, touchstone: Any) -> None:
    for command in (("promote",), ("approve", "--reason", "x"), ("deny", "--reason", "x")):
        code, answer = touchstone(*command, "--json")
        assert code == 2
        assert "`touchstone gate --bundle B`" in answer["error"]
    assert "serves nothing yet" in touchstone("release", "show")[1]
    assert "nothing was ever released" in touchstone("release", "history")[1]
    assert touchstone("rollback", "--repair", "--json")[1] == {
        "champion": "nobody",
        "index_version": None,
        "repaired": False,
    }


def test_a_roll_back_loads_nothing_heavy_before_it_is_in_effect() -> None:
    program = (
        "import sys, cli.main, cli.release, tasks.loading, tasks.promotions, tasks.ledger; "
        "heavy = ('numpy', 'scipy', 'pandas', 'mlflow', 'litellm', 'lancedb', 'prefect'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr
