"""Index tables on object storage by URI: builds, pinned readers, the live pointer and clean-up on a local S3 server."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tasks.embedding import load_embedder
from tasks.index_table import commit, open_latest, open_table, writer_lock
from tasks.indexing import BuildPlan, embed_block, plan_build
from tasks.live_index import clean_up
from tasks.retrieval import Retriever
from tasks.sources import read_source
from tests.tasks.index_site import Site, editions
from touchstone.errors import LedgerConflict, Unmeasurable


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with one bucket, `indexes`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"{url}/indexes", method="PUT"), timeout=10):
        pass
    yield url
    server.stop()


@pytest.fixture
def site(tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("TOUCHSTONE_LANCE_URI", f"s3://indexes/{tmp_path.name}/lance")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # holds the writer's lock
    return Site(tmp_path)


def test_a_change_makes_a_version_that_a_pinned_reader_does_not_see(site: Site) -> None:
    first = site.build(1)
    reader = Retriever.open(site.config, first, site.lance)
    second = site.build(2)
    assert site.lance.startswith("s3://")
    assert (second.table, second.chunks, second.version > first.version) == (first.table, 3, True)
    assert editions(reader.search("chapter")) == {"1"}
    assert site.editions(first) == {"1"}
    assert site.editions(second) == {"2"}
    assert site.build(2) == second  # nothing changed: no version is made
    assert not list(site.folder.rglob("*.lance"))


def test_readers_follow_the_pointer_and_a_roll_back(site: Site) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    reader = site.reader()
    assert editions(reader.search("chapter")) == {"1"}
    site.promote(second)
    assert editions(reader.search("chapter")) == {"2"}
    assert site.tags(first) == {first.version, second.version}
    assert site.back() == first
    assert editions(reader.search("chapter")) == {"1"}


def test_clean_up_removes_what_nobody_can_go_back_to(site: Site) -> None:
    versions = [site.build(number) for number in range(1, 6)]
    for index in versions:
        site.promote(index)
    time.sleep(0.3)
    removed = site.clean()
    assert {index.version for index in versions[:2]} <= set(removed)
    for number, index in list(enumerate(versions, start=1))[2:]:
        assert site.editions(index) == {str(number)}
    with pytest.raises(Unmeasurable, match="cannot be read"):
        site.editions(versions[0])
    assert site.back() == versions[3]


def test_two_machines_that_build_at_once_leave_every_chunk_once(site: Site) -> None:
    """Each has a lock file of its own, so only Lance's commit keeps them apart: the later one replaces documents."""
    name = site.build(1).table
    tables = [open_latest(site.lance, name) for _ in range(2)]
    plans = [planned(site, edition) for edition in (2, 3)]
    for table, plan in zip(tables, plans, strict=True):
        assert table is not None
        commit(table, site.config, plan.scanned.pieces, plan.vectors, plan.gone)
    latest = open_latest(site.lance, name)
    assert latest is not None
    rows = latest.to_arrow()
    assert sorted(rows["document_id"].to_pylist()) == ["d0", "d1", "d2"]
    assert {text.split()[1] for text in rows["text"].to_pylist()} == {"3"}


def planned(site: Site, edition: int) -> BuildPlan:
    """A build that is ready to be committed."""
    lines = [f'{{"id": "d{n}", "text": "Edition {edition} of chapter {n}."}}' for n in range(3)]
    (site.folder / "corpus.jsonl").write_text("\n".join(lines))
    embedder = load_embedder("hashing")
    plan = plan_build(site.config, read_source(site.folder / "corpus.jsonl"), site.lance, lambda: embedder, None)
    for block in plan.blocks:
        plan.vectors |= embed_block(block, embedder, None)
    return plan


def test_a_second_build_on_this_machine_is_told_that_one_is_running(site: Site) -> None:
    index = site.build(1)
    with (
        writer_lock(site.lance, index.table, wait=False),
        pytest.raises(LedgerConflict, match="another build"),
        writer_lock(site.lance, index.table, wait=False),
    ):
        pass


def test_what_is_not_there_is_named(site: Site) -> None:
    index = site.build(1)
    assert open_latest(site.lance, "nothing") is None
    with pytest.raises(Unmeasurable, match=rf"index nothing@1 cannot be read from {site.lance}.*build it again"):
        open_table(site.lance, "nothing", 1)
    with pytest.raises(Unmeasurable, match=rf"index {index.table}@99 cannot be read.*99 no longer exists"):
        open_table(site.lance, index.table, 99)


def test_a_bucket_that_is_not_there_is_no_empty_index(site: Site) -> None:
    index = site.build(1)
    site.promote(index)
    site.lance = "s3://elsewhere/lance"
    with pytest.raises(Unmeasurable, match=r"cannot be read from s3://elsewhere/lance: .*NoSuchBucket"):
        site.build(2)
    (result,) = clean_up(site.ledger, site.lance, "help")
    assert "NoSuchBucket" in (result.skipped or "")
    assert site.live() == index
