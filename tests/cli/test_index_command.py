"""`touchstone index`: what was live and what was not promoted, the way back, a look into the live index, clean-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.index_table import writer_lock
from tests.tasks.index_site import Site
from touchstone.index import IndexVersion
from touchstone.ledger import EventKind, index_subject

CONFIG = {"name": "help", "version": "1.0.0", "source": {"path": "corpus.jsonl"}, "embedding_model": "hashing"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The current directory is a project with one retrieval config, and three versions of its index."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retrieval_configs").mkdir()
    (tmp_path / "retrieval_configs" / "help.yaml").write_text(json.dumps(CONFIG | {"top_k": 3}))
    (tmp_path / "corpus.jsonl").write_text("")
    return Site(tmp_path)


def built(site: Site, index: IndexVersion | None, *, promoted: bool, reason: str, key: str) -> None:
    """As a finished build records itself."""
    payload = {
        "build_key": key,
        "promoted": promoted,
        "reason": reason,
        "index_version": index.label if index else None,
        "documents": 3,
        "chunks": 3,
    }
    site.ledger.append(EventKind.INDEX_BUILT, index_subject("help"), payload)


def test_the_list_has_what_was_live_and_what_was_not_promoted_the_latest_first(site: Site, touchstone: Any) -> None:
    first, second, bad = (site.build(edition) for edition in (1, 2, 3))
    site.promote(first)
    built(site, first, promoted=True, reason="the first", key="help-1")
    site.promote(second, reason="ndcg not inferior")
    built(site, second, promoted=True, reason="ndcg not inferior", key="help-2")
    built(site, bad, promoted=False, reason="recall fell", key="help-3")
    built(site, None, promoted=False, reason="the source lost 9 of 10 documents", key="help-4")
    code, listed = touchstone("index", "list", "--config", "help", "--json")
    assert code == 0
    assert (listed["config"], listed["live"]) == ("help", second.label)
    rows = listed["versions"]
    assert [row["label"] for row in rows] == [None, bad.label, second.label, first.label]
    assert [row["live"] for row in rows] == [False, False, True, False]
    assert [row["promoted"] for row in rows] == [False, False, True, True]
    assert [row["reason"] for row in rows][:3] == [
        "the source lost 9 of 10 documents",
        "recall fell",
        "ndcg not inferior",
    ]
    assert (rows[2]["documents"], rows[2]["chunks"], rows[2]["built_at"]) == (3, 3, second.built_at)
    assert (rows[1]["promoted_at"], rows[1]["build_key"]) == (None, "help-3")

    code, text = touchstone("index", "list", "--config", "help")
    assert code == 0
    assert text.index("no version") < text.index(bad.label) < text.index(second.label) < text.index(first.label)
    assert f"{second.label}  live  built" in text
    assert "3 documents, 3 chunks: recall fell" in text


def test_a_roll_back_moves_the_mark_and_the_list_says_why(site: Site, touchstone: Any) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    site.promote(second)
    code, answer = touchstone("index", "rollback", "--config", "retrieval_configs/help.yaml", "--json")
    assert (code, answer["live"], answer["rolled_back_from"]) == (0, first.label, second.label)
    _, listed = touchstone("index", "list", "--config", "help", "--json")
    assert [(row["label"], row["live"]) for row in listed["versions"]] == [(first.label, True), (second.label, False)]
    assert listed["versions"][0]["reason"] == f"rolled back from {second.label}"
    code, text = touchstone("index", "rollback", "--config", "help", "--to", second.label)
    assert (code, site.live()) == (0, second)
    assert second.label in text


def test_a_roll_back_needs_no_source(site: Site, touchstone: Any) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    site.promote(second)
    (site.folder / "corpus.jsonl").unlink()  # the share it is on is not mounted
    code, answer = touchstone("index", "rollback", "--config", "help", "--json")
    assert (code, answer["live"]) == (0, first.label)


def test_a_roll_back_without_a_place_to_go_is_exit_code_2(site: Site, touchstone: Any) -> None:
    assert touchstone("index", "rollback", "--config", "help", "--json")[0] == 2
    first = site.build(1)
    site.promote(first)
    code, answer = touchstone("index", "rollback", "--config", "help", "--json")
    assert (code, "no version was live before" in answer["error"]) == (2, True)
    code, answer = touchstone("index", "rollback", "--config", "help", "--to", "nowhere@7", "--json")
    assert (code, first.label in answer["error"]) == (2, True)
    code, answer = touchstone("index", "list", "--config", "unknown", "--json")
    assert (code, "unknown" in answer["error"]) == (2, True)


def test_search_shows_what_the_live_index_finds_and_logs_only_when_asked(site: Site, touchstone: Any) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    code, found = touchstone("index", "search", "--config", "help", "which edition?", "--json")
    assert (code, found["index_version"], found["logged"]) == (0, first.label, False)
    assert [chunk["rank"] for chunk in found["chunks"]] == [1, 2, 3]
    assert all({"score", "document_id", "heading", "text"} <= chunk.keys() for chunk in found["chunks"])
    assert not (site.settings.state / "retrievals").exists()

    site.promote(second)
    code, text = touchstone("index", "search", "--config", "help", "which edition?", "--log")
    assert code == 0
    assert second.label in text
    assert "Edition 2 of chapter 0." in text
    (day,) = (site.settings.state / "retrievals").glob("*.jsonl")
    record = json.loads(day.read_text())
    assert (record["run_key"], record["config"], record["query"]) == (None, "help", "which edition?")
    assert record["index_version"] == second.label


def test_a_search_without_a_live_index_is_exit_code_3(site: Site, touchstone: Any) -> None:
    code, answer = touchstone("index", "search", "--config", "help", "anything", "--json")
    assert code == 3
    assert "touchstone reindex --config help" in answer["error"]


def test_clean_up_says_what_it_removed_and_when_it_could_not(site: Site, touchstone: Any) -> None:
    assert touchstone("index", "cleanup", "--config", "help", "--json") == (0, {"config": "help", "tables": []})
    versions = site.build_apart(3, 5)
    for index in versions:
        site.promote(index)
    code, young = touchstone("index", "cleanup", "--config", "help", "--json")
    assert (code, young["tables"][0]["removed"], young["tables"][0]["skipped"]) == (0, [], None)

    at_once = ("index", "cleanup", "--config", "help", "--keep", "2", "--older-than-hours", "0")
    with writer_lock(site.lance, versions[0].table, wait=False):
        code, busy = touchstone(*at_once, "--json")
        assert (code, busy["tables"][0]["skipped"]) == (3, "a build of this index is running")
        assert "not cleaned" in touchstone(*at_once)[1]
    code, cleaned = touchstone(*at_once, "--json")
    assert code == 0
    assert set(cleaned["tables"][0]["removed"]) >= {index.version for index in versions[:3]}
    assert site.editions(site.live()) == {"5"}
    code, text = touchstone(*at_once)
    assert (code, "0 versions removed" in text) == (0, True)
    assert touchstone("index", "rollback", "--config", "help", "--json")[1]["live"] == versions[3].label
    code, gone = touchstone("index", "rollback", "--config", "help", "--to", versions[0].label, "--json")
    assert (code, "cannot be read" in gone["error"], site.live()) == (3, True, versions[3])
