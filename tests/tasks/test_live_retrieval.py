"""Readers of the live index: they follow the pointer, answer from one version, and outlive an outage of the ledger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.retrieval import LiveRetriever
from tests.tasks.index_site import Site, editions
from touchstone.errors import Unmeasurable
from touchstone.ledger import EventKind, index_subject


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Warnings of our logger, which does not propagate once the command line has run."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("touchstone")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_without_a_live_index_the_error_names_the_command_that_makes_one(site: Site) -> None:
    live = site.reader()
    with pytest.raises(Unmeasurable, match=r"help has no live index; run `touchstone reindex --config help`"):
        live.search("edition")
    first = site.build(1)
    site.promote(first)
    assert live.search("edition").index_version == first.label
    assert live.index == first


def test_a_promotion_and_a_roll_back_are_followed_without_a_restart(site: Site) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    live, lazy = site.reader(), site.reader(poll_s=60)
    assert (editions(live.search("edition")), editions(lazy.search("edition"))) == ({"1"}, {"1"})
    site.promote(second)
    assert editions(live.search("edition")) == {"2"}
    assert [editions(found) for found in live.search_many(["edition", "chapter"])] == [{"2"}, {"2"}]
    assert live.index == second
    assert editions(lazy.search("edition")) == {"1"}  # it looks once a minute
    site.back()
    assert editions(live.search("edition")) == {"1"}


def test_questions_are_embedded_as_the_live_chunks_were_and_searched_as_the_config_says(site: Site) -> None:
    site.promote(site.build(1))
    changed = site.config.model_copy(update={"embedding_model": "openai/text-embedding-3-small", "top_k": 1})
    found = LiveRetriever(site.settings, changed, site.ledger).search("edition")
    assert (found.embedding_model, len(found.chunks)) == ("hashing", 1)


def test_while_the_ledger_is_down_readers_are_served_on_and_warned_once(site: Site, warned: list[str]) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    live = site.reader()
    assert live.search("edition").index_version == first.label
    site.sql("ALTER TABLE events RENAME TO lost")
    assert [live.search("edition").index_version for _ in range(3)] == [first.label] * 3
    assert len(warned) == 1
    assert f"serving {first.label} on" in warned[0]
    site.sql("ALTER TABLE lost RENAME TO events")
    site.promote(second)
    assert live.search("edition").index_version == second.label
    site.sql("ALTER TABLE events RENAME TO lost")
    live.search("edition")
    assert len(warned) == 2


def test_a_reader_that_starts_while_the_ledger_is_down_says_so(site: Site) -> None:
    site.promote(site.build(1))
    site.sql("ALTER TABLE events RENAME TO lost")
    with pytest.raises(Unmeasurable, match="ledger cannot say which index of help is live: no such table"):
        site.reader().search("edition")


def test_a_pointer_to_what_cannot_be_opened_is_not_followed(site: Site, warned: list[str]) -> None:
    first = site.build(1)
    site.promote(first)
    live = site.reader()
    live.search("edition")
    payload = {"index": first.model_dump() | {"table": "nowhere"}, "reason": "by hand"}
    site.ledger.append(EventKind.INDEX_PROMOTED, index_subject("help"), payload)
    assert [editions(live.search("edition")) for _ in range(3)] == [{"1"}] * 3
    assert [f"serving {first.label} on: index nowhere@" in message for message in warned] == [True]
    with pytest.raises(Unmeasurable, match="nowhere@"):
        site.reader().search("edition")


def test_a_reader_in_a_loop_sees_neither_an_error_nor_two_versions_in_one_answer(site: Site) -> None:
    first, second = site.build(1), site.build(2)
    versions = {first.label: "1", second.label: "2"}
    site.promote(first)
    live = site.reader()
    stopped = threading.Event()

    def read() -> list[tuple[set[str], set[str]]]:
        seen = []
        while not stopped.is_set():
            for found in live.search_many(["edition", "chapter edition"]):
                seen.append((editions(found), {versions[found.index_version]}))
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for _ in range(10):
                site.promote(second)
                site.back()
        finally:
            stopped.set()
        answers = [answer for reader in readers for answer in reader.result()]
    assert all(found == expected for found, expected in answers)
    assert {edition for found, _ in answers for edition in found} == {"1", "2"}
