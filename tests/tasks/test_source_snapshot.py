"""A source as it is: what can be read, what cannot, and what stops everything."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.sources import SourceSnapshot, read_documents, read_source
from touchstone.errors import BadInput


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def unread(snapshot: SourceSnapshot) -> dict[str | None, str]:
    return {document.id: document.reason for document in snapshot.unreadable}


def test_documents_that_cannot_be_read_are_listed_beside_the_others(tmp_path: Path) -> None:
    write(tmp_path, good_DOT_md="Text", broken_DOT_md="---\ntitle: [\n---\nText", sub__empty_DOT_md="  \n")
    (tmp_path / "binary.txt").write_bytes(b"fine\n\0\1\2")
    (tmp_path / "latin.html").write_bytes("<p>caf\xe9</p>".encode("latin-1"))
    snapshot = read_source(tmp_path)
    assert [document.id for document in snapshot.documents] == ["good"]
    found = {document.id: (document.where, document.reason) for document in snapshot.unreadable}
    assert found.keys() == {"binary", "broken", "latin", "sub/empty"}
    assert found["binary"] == (f"{tmp_path}/binary.txt:2", "binary, not text (NUL at byte 5); save it as UTF-8 text")
    assert found["latin"] == (f"{tmp_path}/latin.html:1", "not UTF-8 text (byte 6); save it as UTF-8")
    assert "front matter is not YAML" in found["broken"][1]
    assert found["sub/empty"][1] == "field `text` is missing or empty"


def test_a_bad_line_is_listed_with_its_id_when_the_line_tells_it(tmp_path: Path) -> None:
    lines = [
        '{"id": "good", "text": "Text"}',
        '{"id": "typo", "text": "Text", "colour": 1}',
        '{"id": "number", "text": 7}',
        '{"_id": "soon", "text": "Text", "updated_at": "soon"}',
        '{"id": "cut", "title": "T", "text": "Te',
        "not even an object",
    ]
    snapshot = read_source(jsonl(tmp_path, *lines))
    assert [document.id for document in snapshot.documents] == ["good"]
    assert list(unread(snapshot)) == ["typo", "number", "soon", "cut", None]
    assert [document.where.rpartition(":")[2] for document in snapshot.unreadable] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a", "text": "x"}{"id": "b", "text": "y"}',  # two lines that ran together
        '{"id": "a", "text": "x{"id": "b", "text": "y"}',
        '{"text": "x", "id": "a", ',  # the id may be another's
        r'{"id": "\u0061", "text": ',
    ],
)
def test_an_id_is_not_guessed(tmp_path: Path, line: str) -> None:
    assert list(unread(read_source(jsonl(tmp_path, '{"id": "good", "text": "Text"}', line)))) == [None]


def test_a_file_that_ends_within_a_line_hides_which_documents_are_missing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"id": "good", "text": "Text"}', '{"id": "last", "text": "Te')
    assert list(unread(read_source(path))) == ["last"]
    path.write_text(path.read_text().rstrip("\n"))
    assert list(unread(read_source(path))) == [None]


def test_a_document_that_is_too_long_is_never_loaded(tmp_path: Path) -> None:
    write(tmp_path / "folder", good_DOT_md="Text")
    with (tmp_path / "folder" / "long.md").open("wb") as file:
        file.truncate(50_000_000)
    path = jsonl(tmp_path, '{"id": "good", "text": "Text"}', json.dumps({"id": "long", "text": "x" * 20_000_000}))
    tracemalloc.start()
    try:
        snapshots = read_source(tmp_path / "folder"), read_source(path, max_document_mb=0.5)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    limits = "10", "0.5"
    for snapshot, limit in zip(snapshots, limits, strict=True):
        assert [document.id for document in snapshot.documents] == ["good"]
        assert unread(snapshot) == {
            "long": f"longer than {limit} MB (`source.max_document_mb`); split it, "
            "or raise the limit in the retrieval config"
        }


def test_a_document_of_just_the_longest_size_is_read(tmp_path: Path) -> None:
    frame = len(json.dumps({"id": "a", "text": ""}))
    for length, ids in ((1_000, ["a", "b"]), (1_001, ["b"]), (1_002, ["b"]), (1_003, ["b"])):
        line = json.dumps({"id": "a", "text": "x" * (length - frame)})
        path = jsonl(tmp_path, line, '{"id": "b", "text": "B"}')
        write(tmp_path / "folder", a_DOT_md="x" * length, b_DOT_md="B")
        for source in (path, tmp_path / "folder"):
            snapshot = read_source(source, max_document_mb=0.001)
            assert [document.id for document in snapshot.documents] == ids


def test_dates_in_the_future_are_refused_and_clocks_may_differ_by_a_day(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    near, far = ((now + timedelta(hours=hours)).isoformat() for hours in (23, 25))
    lines = [json.dumps({"id": id, "text": "Text", "updated_at": at}) for id, at in (("near", near), ("far", far))]
    snapshot = read_source(jsonl(tmp_path, *lines))
    assert [document.id for document in snapshot.documents] == ["near"]
    assert unread(snapshot) == {
        "far": f"field `updated_at`: {far} is in the future; fix the date, or this machine's clock"
    }


def test_without_a_date_it_is_that_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "folder", a_DOT_md="Text", b_DOT_md="---\nupdated_at: 2024-02-03\n---\nText")
    path = jsonl(tmp_path, '{"id": "c", "text": "Text"}', '{"id": "d", "text": "Text", "updated_at": ""}')
    for file in (path, *(tmp_path / "folder").iterdir()):
        os.utime(file, (0, 1_700_000_000))
    documents = (*read_documents(tmp_path / "folder"), *read_documents(path))
    file_date = "2023-11-14T22:13:20+00:00"
    assert [(document.updated_at, document.declares_date) for document in documents] == [
        (file_date, False),
        ("2024-02-03T00:00:00+00:00", True),
        (file_date, False),
        (file_date, False),
    ]


def test_a_file_from_the_future_counts_as_changed_now(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md="Text")
    os.utime(tmp_path / "a.md", (0, datetime.now(UTC).timestamp() + 10**6))
    snapshot = read_source(tmp_path)
    assert snapshot.documents[0].updated_at[:19] == snapshot.read_at[:19]


def test_a_check_out_changes_nothing_and_a_declared_date_does(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md="Text")
    before = read_source(tmp_path).hashes["a"]
    os.utime(tmp_path / "a.md", (0, 0))
    assert read_source(tmp_path).hashes["a"] == before
    write(tmp_path, a_DOT_md="---\nupdated_at: 1970-01-01\n---\nText")
    content, record = read_source(tmp_path).hashes["a"]
    assert (content == before[0], record == before[1]) == (True, False)


def test_the_snapshot_says_when_reading_began(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    snapshot = read_source(write(tmp_path, a_DOT_md="Text"))
    read_at = datetime.fromisoformat(snapshot.read_at)
    assert before <= read_at <= datetime.now(UTC)
    assert read_at.utcoffset() == timedelta(0)


def test_documents_travel_between_processes(tmp_path: Path) -> None:
    snapshot = read_source(write(tmp_path, a_DOT_md="Text"))
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot


def test_a_source_of_which_nothing_can_be_read_stops(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md="", b_DOT_md="")
    with pytest.raises(BadInput, match=r"none of its documents can be read \(2\); the first: .*a\.md:1: field `text`"):
        read_source(tmp_path)


@pytest.mark.parametrize("text", ["Text", ""])
def test_two_documents_with_one_id_stop_also_when_one_cannot_be_read(tmp_path: Path, text: str) -> None:
    write(tmp_path, a_DOT_md=text, a_DOT_txt="Text")
    with pytest.raises(BadInput, match=r"a\.(md|txt):1: field `id`: 'a' is already used by .*a\.(txt|md):1"):
        read_source(tmp_path)


def test_missing_and_empty_sources_stop_the_tolerant_form_too(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such folder or file; fix `source\.path`"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no documents"):
        read_source(tmp_path)
    with pytest.raises(BadInput, match="no documents"):
        read_source(jsonl(tmp_path, "", "  "))


def test_links_that_lead_back_do_not_hang(tmp_path: Path) -> None:
    write(tmp_path, sub__a_DOT_md="Text", real_DOT_txt="Text")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "linked.txt").symlink_to("real.txt")
    (tmp_path / "itself.md").symlink_to("itself.md")
    (tmp_path / "dangling.md").symlink_to("nowhere.md")
    os.mkfifo(tmp_path / "pipe.md")
    snapshot = read_source(tmp_path)
    assert [document.id for document in snapshot.documents] == ["linked", "real", "sub/a"]
    assert unread(snapshot) == {
        "dangling": "cannot be read: No such file or directory",
        "itself": "cannot be read: Too many levels of symbolic links",
    }


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that an ordinary user may enter, and no root user reads past its permissions while the test runs."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def read_as_ordinary_user(folder: Path) -> SourceSnapshot:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        return read_source(folder)
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_listed_and_of_a_folder_no_id_is_known(shared_folder: Path) -> None:
    write(shared_folder, good_DOT_md="Text", secret_DOT_md="Text", closed__a_DOT_md="Text")
    (shared_folder / "secret.md").chmod(0)
    (shared_folder / "closed").chmod(0)
    try:
        snapshot = read_as_ordinary_user(shared_folder)
    finally:
        (shared_folder / "closed").chmod(0o755)
    assert [document.id for document in snapshot.documents] == ["good"]
    assert unread(snapshot) == {
        "secret": "cannot be read: Permission denied",
        None: "cannot be listed: Permission denied",
    }


def test_a_file_whose_name_is_not_text_is_listed(tmp_path: Path) -> None:
    write(tmp_path, good_DOT_md="Text")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("Text")
    snapshot = read_source(tmp_path)
    assert unread(snapshot) == {r"caf\udce9": "its name is not UTF-8; rename it"}
    assert json.dumps([document.model_dump() for document in snapshot.unreadable]).encode()


def test_line_ends_and_a_byte_order_mark_change_no_content(tmp_path: Path) -> None:
    write(tmp_path, a_DOT_md="---\ntitle: T\n---\nOne\n\nTwo\n")
    jsonl(tmp_path, '{"id": "b", "title": "T", "text": "One\\n\\nTwo"}')
    folder, lines = (read_source(path).hashes for path in (tmp_path, tmp_path / "corpus.jsonl"))
    for path in (tmp_path / "a.md", tmp_path / "corpus.jsonl"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert (read_source(tmp_path).hashes, read_source(tmp_path / "corpus.jsonl").hashes) == (folder, lines)
    assert folder["a"][0] == lines["b"][0]


def test_a_page_whose_tags_never_end_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, good_DOT_md="Text", soup_DOT_html="<p>Text</p>\n" + "<a " * 200_000)
    snapshot = read_source(tmp_path)
    assert [document.where.rpartition(":")[2] for document in snapshot.unreadable] == ["2"]
    assert unread(snapshot) == {"soup": "a tag or comment is opened here and never closed"}


def test_aliases_that_stand_for_gigabytes_are_not_written_out(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    for field in ("title", "updated_at"):
        write(tmp_path, good_DOT_md="Text", bomb_DOT_md=f"---\n{bomb}{field}: *a11\n---\nText")
        assert len(unread(read_source(tmp_path))["bomb"]) < 1_000
