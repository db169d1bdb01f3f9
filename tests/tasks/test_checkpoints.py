"""Checkpoints, keys and anchors of a real ledger: what is signed, by whom, and where it is kept."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.anchors import CHECKPOINT_TAG, FileAnchor, MlflowAnchor, anchor, checkpoint_and_anchor, read_anchors
from tasks.audit_export import export_ledger, prove, verify_folder
from tasks.checkpoints import make_checkpoint, read_checkpoints
from tasks.ledger import Ledger
from tasks.ledger_keys import read_keys, rotate
from tasks.signing import KEY_VARIABLE, new_key, read_key_file, verify_signature, write_key_file
from touchstone.audit_proof import verify_proof
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import RELEASE_KINDS, RELEASE_SUBJECT, EventKind, LedgerEvent
from touchstone.merkle import tree_root
from touchstone.settings import Settings

ROOT = Path(__file__).parents[2]
GATE, DECIDED, LOOKED = EventKind.GATE_DECIDED, EventKind.EVAL_DECIDED, EventKind.CANARY_LOOKED
CHECKPOINT_20 = """
import sys
from pathlib import Path
from tasks.checkpoints import make_checkpoint
from tasks.ledger import Ledger
from touchstone.ledger import EventKind
from touchstone.settings import Settings
settings = Settings(root=Path(sys.argv[1]))
ledger = Ledger(settings.ledger, "default")
for number in range(20):
    ledger.append(EventKind.EVAL_DECIDED, "x", {"number": number})
    make_checkpoint(settings, ledger)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return Settings(root=tmp_path, mlflow_tracking_uri="http://127.0.0.1:9")  # nobody answers there


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    return Ledger(settings.ledger, settings.environment)


def decide(ledger: Ledger, count: int) -> None:
    for number in range(count):
        ledger.append(GATE, "gate:b", {"n": number}, content=b"content %d" % number)


def test_the_first_checkpoint_records_its_key_before_it_signs(settings: Settings, ledger: Ledger) -> None:
    decide(ledger, 3)
    made = make_checkpoint(settings, ledger)
    events = ledger.events()
    assert [event.kind for event in events[3:]] == [EventKind.KEY_CREATED]
    assert made.size == 4
    assert made.head == events[-1].digest
    assert made.root == tree_root(event.encoded() for event in events).hex()
    key = events[-1].payload
    assert made.key_id == key["key_id"]
    assert verify_signature(key["public_key"], made.signature, made.statement())


def test_nothing_new_is_signed_once(settings: Settings, ledger: Ledger) -> None:
    made = make_checkpoint(settings, ledger)
    assert make_checkpoint(settings, ledger) == made
    decide(ledger, 1)
    later = make_checkpoint(settings, ledger)
    assert later.previous == made.digest
    assert read_checkpoints(ledger) == [made, later]


def test_a_tree_that_goes_on_has_the_root_of_one_built_anew(settings: Settings, ledger: Ledger) -> None:
    for count in (1, 2, 3, 5):
        decide(ledger, count)
        made = make_checkpoint(settings, ledger)
        assert made.root == tree_root(event.encoded() for event in ledger.events()).hex()


def test_two_processes_that_append_and_sign_at_once_leave_one_history(settings: Settings, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHECKPOINT_20, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in started:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors.decode()
    ledger = Ledger(settings.ledger, "default")
    export_ledger(settings, ledger, tmp_path / "out")
    report = verify_folder(tmp_path / "out")
    assert report.finding is None
    assert report.records == 41
    assert len(report.keys) == 1


def test_a_rotation_keeps_old_checkpoints_valid_and_both_keys_are_trusted(settings: Settings, ledger: Ledger) -> None:
    decide(ledger, 1)
    old = make_checkpoint(settings, ledger)
    new = rotate(settings, ledger)
    made = make_checkpoint(settings, ledger)
    assert made.key_id == new.key_id != old.key_id
    folder = settings.state / "keys"
    assert read_key_file(folder / "default.pem").public_key == new.public_key
    assert read_key_file(folder / f"default.{old.key_id}.pem").key_id == old.key_id
    assert len(list(folder.iterdir())) == 3
    export_ledger(settings, ledger, settings.root / "out")
    first = read_keys(ledger).entries[0].public_key
    for key in (first, new.public_key):
        assert verify_folder(settings.root / "out", key).finding is None
        assert verify_proof(prove(settings, ledger, 1).encoded(), verify_signature, key).verified


def test_a_rotation_that_was_recorded_and_then_interrupted_is_finished_by_the_next_use(
    settings: Settings, ledger: Ledger
) -> None:
    make_checkpoint(settings, ledger)
    folder = settings.state / "keys"
    shutil.copy(folder / "default.pem", settings.root / "old.pem")
    new = rotate(settings, ledger)
    (folder / "default.pem").unlink()
    shutil.copy(settings.root / "old.pem", folder / "default.pem")  # as they lie before they are settled
    assert make_checkpoint(settings, ledger).key_id == new.key_id
    assert read_key_file(folder / "default.pem").public_key == new.public_key


def test_who_rotates_at_once_loses_no_key_and_leaves_none_unrecorded(settings: Settings, ledger: Ledger) -> None:
    make_checkpoint(settings, ledger)

    def change(number: int) -> str | None:
        try:
            return rotate(settings, Ledger(settings.ledger, "default")).key_id
        except LedgerConflict:
            return None

    with ThreadPoolExecutor(3) as pool:
        made = [key_id for key_id in pool.map(change, range(3)) if key_id]
    keys = read_keys(ledger)
    assert sorted(entry.key_id for entry in keys.entries[1:]) == sorted(made)
    assert make_checkpoint(settings, ledger).key_id == keys.entries[-1].key_id
    names = {file.name for file in (settings.state / "keys").iterdir()}
    assert names == {"default.pem", *(f"default.{entry.key_id}.pem" for entry in keys.entries)}


def test_a_key_in_the_environment_signs_and_is_rotated_by_a_file(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = new_key(), new_key()
    monkeypatch.setenv(KEY_VARIABLE, first.pem().decode())
    assert make_checkpoint(settings, ledger).key_id == first.key_id
    assert not (settings.state / "keys").exists()
    with pytest.raises(BadInput, match="give the new one by --new-key"):
        rotate(settings, ledger)
    write_key_file(tmp_path / "new.pem", second)
    rotate(settings, ledger, tmp_path / "new.pem")
    decide(ledger, 1)
    with pytest.raises(BadInput, match=f"holds key {first.key_id}, but .* is signed by {second.key_id}"):
        make_checkpoint(settings, ledger)
    monkeypatch.setenv(KEY_VARIABLE, second.pem().decode())
    assert make_checkpoint(settings, ledger).key_id == second.key_id


def test_a_machine_without_the_key_signs_nothing_and_a_lost_key_begins_a_new_line(
    settings: Settings, ledger: Ledger
) -> None:
    lost = make_checkpoint(settings, ledger)
    decide(ledger, 1)
    shutil.rmtree(settings.state / "keys")
    with pytest.raises(BadInput, match=f"signed by key {lost.key_id}, which is not on this machine"):
        make_checkpoint(settings, ledger)
    new = rotate(settings, ledger, lost=True)
    assert make_checkpoint(settings, ledger).key_id == new.key_id
    export_ledger(settings, ledger, settings.root / "out")
    assert verify_folder(settings.root / "out", new.public_key).verified
    old = read_keys(ledger).entries[0].public_key
    assert "does not descend" in str(verify_folder(settings.root / "out", old).finding)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET subject = 'other' WHERE sequence = 3",
        "UPDATE events SET previous = digest WHERE sequence = 3",
        "DELETE FROM events WHERE sequence = 3",
    ],
)
def test_a_database_that_somebody_changed_is_not_signed(settings: Settings, ledger: Ledger, change: str) -> None:
    make_checkpoint(settings, ledger)
    decide(ledger, 3)
    with sqlite3.connect(settings.state / "ledger.db") as database:
        database.execute(change)
    with pytest.raises(BadInput, match="does not follow the one before it: somebody changed the database"):
        make_checkpoint(settings, ledger)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET payload = '{\"n\": 9}' WHERE sequence = 2",
        "UPDATE events SET subject = 'other' WHERE sequence = 2",
        "UPDATE events SET payload = '{}', salt = NULL WHERE sequence = 2",
        "DELETE FROM events WHERE sequence = 4",
        "DELETE FROM contents WHERE digest = (SELECT content_digest FROM events WHERE sequence = 2)",
    ],
)
def test_what_was_changed_after_it_was_signed_is_found_in_the_export(
    settings: Settings, ledger: Ledger, change: str
) -> None:
    decide(ledger, 3)
    make_checkpoint(settings, ledger)
    with sqlite3.connect(settings.state / "ledger.db") as database:
        database.execute(change)
    export_ledger(settings, ledger, settings.root / "out")
    assert not verify_folder(settings.root / "out").verified


def test_an_erased_event_leaves_no_byte_and_the_proof_stands(settings: Settings, ledger: Ledger) -> None:
    secret = "unmistakable-personal-text"
    event = ledger.append(GATE, "gate:b", {"who": secret}, content=(secret + " in full").encode())
    shared = ledger.append(GATE, "gate:b", {"n": 2}, content=b"shared")
    ledger.append(GATE, "gate:c", {"n": 3}, content=b"shared")
    make_checkpoint(settings, ledger)
    record = ledger.erase(event.sequence, "asked for", "ada")
    assert record.payload["content_digest"] == event.content_digest
    assert ledger.erase(shared.sequence, "asked for", "ada").payload["content_digest"] is None
    assert [found.sequence for found in ledger.events(GATE)] == [3]
    assert [found.sequence for found in ledger.events(GATE, erased=True)] == [1, 2, 3]
    ledger.close()
    for file in settings.state.glob("ledger.db*"):
        assert secret.encode() not in file.read_bytes()
    export_ledger(settings, ledger, settings.root / "out")
    report = verify_folder(settings.root / "out")
    assert report.finding is None
    assert (report.erased_payloads, report.erased_contents, report.contents) == (2, 1, 1)
    assert verify_proof(prove(settings, ledger, event.sequence).encoded(), verify_signature).verified


def test_what_is_erased_while_an_export_is_written_is_no_tampering(settings: Settings, ledger: Ledger) -> None:
    decide(ledger, 3)

    class Erasing(Ledger):
        """Somebody erases event 2 as soon as the export begins to read contents."""

        def content(self, event: LedgerEvent) -> bytes:
            if not self.events(EventKind.ENTRY_ERASED):
                self.erase(2, "asked for", "ada")
            return super().content(event)

    export_ledger(settings, Erasing(settings.ledger, "default"), settings.root / "out")
    report = verify_folder(settings.root / "out")
    assert report.finding is None
    assert (report.erased_payloads, report.erased_contents) == (1, 1)
    assert [path.name for path in settings.root.iterdir() if path.name.startswith(".out")] == []


def test_what_others_need_is_not_erased(settings: Settings, ledger: Ledger) -> None:
    make_checkpoint(settings, ledger)
    needed = [ledger.append(kind, RELEASE_SUBJECT, {}).sequence for kind in RELEASE_KINDS]
    for sequence in needed:
        with pytest.raises(BadInput, match="what is served is worked out from the events of releases"):
            ledger.erase(sequence, "asked for", "ada")
    with pytest.raises(BadInput, match=r"event 1 \(key\.created\) stays: the proof needs"):
        ledger.erase(1, "asked for", "ada")
    state, after = (ledger.append(LOOKED, "canary:c1", {}).sequence for _ in range(2))
    with pytest.raises(BadInput, match="the newest of canary:c1, from which the next run goes on"):
        ledger.erase(after, "asked for", "ada")
    record = ledger.erase(state, "asked for", "ada")
    for sequence, complaint in ((state, "erased already"), (record.sequence, "the proof"), (99, "has no event 99")):
        with pytest.raises(BadInput, match=complaint):
            ledger.erase(sequence, "asked for", "ada")
    assert len(ledger.events(erased=True)) == record.sequence


def test_content_of_another_environment_is_not_erased(settings: Settings, ledger: Ledger) -> None:
    staging = Ledger(settings.ledger, "staging")
    theirs = staging.append(GATE, "gate:b", {}, content=b"shared")
    ledger.append(GATE, "gate:b", {}, content=b"shared")
    ledger.erase(1, "asked for", "ada")
    assert staging.content(theirs) == b"shared"
    staging.erase(1, "asked for", "ada")
    with pytest.raises(BadInput, match="erased"):
        staging.content(theirs)


def test_the_file_keeps_each_checkpoint_once_and_begins_anew_after_a_torn_line(
    settings: Settings, ledger: Ledger
) -> None:
    place = FileAnchor(settings.root / "elsewhere" / "anchors.jsonl")
    first = make_checkpoint(settings, ledger)
    assert anchor(settings, first, [place]) == anchor(settings, first, [place]) == []
    with place.path.open("ab") as file:
        file.write(first.encoded()[:50])
    decide(ledger, 1)
    second = make_checkpoint(settings, ledger)
    place.keep(second)
    assert read_anchors(place.path) == [first, second]


def test_a_place_that_is_away_is_a_warning_and_the_others_keep_the_checkpoint(
    settings: Settings, ledger: Ledger
) -> None:
    warnings = checkpoint_and_anchor(settings, ledger)
    assert len(warnings) == 1
    assert "anchor in MLflow: 1 records not anchored: MLflow at http://127.0.0.1:9" in warnings[0]
    assert read_anchors(settings.state / "anchors" / "default.jsonl") == read_checkpoints(ledger)
    decide(ledger, 1)
    shutil.rmtree(settings.state / "keys")
    assert "no checkpoint of the ledger" in checkpoint_and_anchor(settings, ledger)[0]


def test_mlflow_keeps_the_newest_checkpoint_as_a_tag(
    settings: Settings, ledger: Ledger, mlflow_database: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    place = MlflowAnchor(settings.model_copy(update={"mlflow_tracking_uri": uri}))
    older = make_checkpoint(settings, ledger)
    place.keep(older)
    decide(ledger, 2)
    newer = make_checkpoint(settings, ledger)
    place.keep(newer)
    place.keep(older)  # a slow process does not take it back
    found = MlflowClient(uri).get_experiment_by_name("touchstone/release/default")
    assert found is not None
    (tmp_path / "tag.json").write_text(found.tags[CHECKPOINT_TAG])
    assert read_anchors(tmp_path / "tag.json") == [newer]
