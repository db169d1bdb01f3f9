"""The live pointer on a real ledger and real tables: moved by one, rolled back along its way, spared by clean-up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta
from pathlib import Path

import lancedb
import pytest

from tasks.index_retention import remove_before
from tasks.index_table import writer_lock
from tasks.ledger import Ledger
from tasks.live_index import LivePointer, clean_up, live_pointer, pointer_history, promote, way_back
from tests.tasks.index_site import AT_ONCE, Site
from touchstone.errors import BadInput, LedgerConflict, Unmeasurable
from touchstone.index import IndexVersion
from touchstone.ledger import EventKind, index_subject


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_nothing_is_live_until_something_was_promoted(site: Site) -> None:
    index = site.build(1)
    assert live_pointer(site.ledger, "help") is None
    pointer = promote(site.ledger, site.lance, index, after=0, reason="the first", build_key="help-1")
    assert live_pointer(site.ledger, "help") == pointer
    assert (pointer.index, pointer.reason, pointer.build_key) == (index, "the first", "help-1")
    assert live_pointer(site.ledger, "other") is None


def test_of_two_builds_at_once_one_is_promoted_and_the_other_is_told(site: Site) -> None:
    site.promote(site.build(1))
    seen = live_pointer(site.ledger, "help")
    assert seen is not None
    builds = [site.build(2), site.build(3)]

    def attempt(index: IndexVersion) -> str:
        try:
            return promote(site.ledger, site.lance, index, after=seen.sequence, reason="not worse").index.label
        except LedgerConflict as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, builds))
    winner = site.live()
    (loser,) = [index for index in builds if index != winner]
    assert winner in builds
    assert outcomes[builds.index(winner)] == winner.label
    message = outcomes[builds.index(loser)]
    assert f"moved to {winner.label} (not worse) meanwhile" in message
    assert f"{loser.label} stays unpromoted" in message
    assert "touchstone reindex --config help" in message
    assert loser.version not in site.tags(loser)


def test_a_version_that_cannot_be_read_is_not_promoted(site: Site) -> None:
    index = site.build(1)
    site.promote(index)
    with pytest.raises(Unmeasurable, match="@99 cannot be read"):
        site.promote(index.model_copy(update={"version": 99}))
    assert site.live() == index


def test_a_roll_back_goes_to_the_version_before_and_a_second_one_further_back(site: Site) -> None:
    first, second, third = (site.build(number) for number in (1, 2, 3))
    for index in (first, second, third):
        site.promote(index)
    assert site.back() == second
    assert site.back() == first
    with pytest.raises(BadInput, match="no version was live before"):
        site.back()
    assert site.live() == first
    assert [pointer.reason for pointer in pointer_history(site.ledger, "help")][-1] == (
        f"rolled back from {second.label}"
    )


def test_a_roll_back_never_ends_at_a_version_that_was_rolled_back_from(site: Site) -> None:
    good, bad = site.build(1), site.build(2)
    site.promote(good)
    site.promote(bad)
    site.back()
    fixed = site.build(3)
    site.promote(fixed)
    assert site.back() == good


def test_the_way_back_forgets_what_was_left() -> None:
    def pointer(version: int) -> LivePointer:
        index = IndexVersion(
            table="t",
            version=version,
            config_name="help",
            config_version="1.0.0",
            fingerprint="f",
            embedding_model="hashing",
            documents=1,
            chunks=1,
            content_digest="d",
            built_at="2026-11-20T00:00:00+00:00",
        )
        return LivePointer(index, 0, "", "")

    def way(*versions: int) -> list[int]:
        return [index.version for index in way_back([pointer(version) for version in versions])]

    assert way() == []
    assert way(1, 2, 3) == [1, 2, 3]
    assert way(1, 2, 3, 2) == [1, 2]
    assert way(1, 2, 3, 2, 1, 4) == [1, 4]
    assert way(1, 2, 2) == [1, 2]
    assert way(1, 2, 1, 2) == [1, 2]


def test_a_roll_back_can_name_any_version_that_was_live(site: Site) -> None:
    versions = [site.build(number) for number in range(1, 6)]
    for index in versions:
        site.promote(index)
    assert site.tags(versions[0]) == {index.version for index in versions[-3:]}
    assert site.back(to=versions[0].label) == versions[0]
    assert versions[0].version in site.tags(versions[0])
    assert site.back(to=versions[4].label) == versions[4]
    assert site.back() == versions[0]


def test_a_roll_back_without_a_place_to_go_is_bad_input(site: Site) -> None:
    with pytest.raises(BadInput, match=r"no live index; .* reindex --config help"):
        site.back()
    index, other = site.build(1), site.build(2)
    site.promote(index)
    with pytest.raises(BadInput, match=f"{other.label} was never live.*these were: {index.label}"):
        site.back(to=other.label)
    with pytest.raises(BadInput, match="is live already"):
        site.back(to=index.label)
    assert len(pointer_history(site.ledger, "help")) == 1


def test_a_roll_back_to_what_is_gone_or_was_made_anew_leaves_the_pointer(site: Site) -> None:
    first = site.build(1)
    site.promote(first)
    chunked_anew = site.build(1, chunk_size=16, chunk_overlap=0)
    site.promote(chunked_anew)
    assert first.table != chunked_anew.table
    lancedb.connect(site.lance).drop_table(first.table)
    with pytest.raises(Unmeasurable, match=f"{first.label} cannot be read .* {chunked_anew.label} stays live"):
        site.back()
    table = lancedb.connect(site.lance).create_table(first.table, [{"chunk_id": "x"}])
    while table.version < first.version:
        table.add([{"chunk_id": "y"}])
    with pytest.raises(Unmeasurable, match=r"not the 3 that were promoted"):
        site.back()
    assert site.live() == chunked_anew


def test_tags_keep_the_last_three_and_the_one_a_roll_back_goes_to(site: Site) -> None:
    versions = [site.build(number) for number in range(1, 5)]
    for index in versions:
        site.promote(index)
    assert site.tags(versions[0]) == {index.version for index in versions[1:]}
    site.back()
    site.back()
    assert site.live() == versions[1]
    assert site.tags(versions[0]) == {index.version for index in versions}  # the first is the way back again


@pytest.mark.parametrize("name", ["a.b..c", "größe.lock", "日本", "x" * 150])
def test_a_config_of_any_name_can_be_promoted(site: Site, name: str) -> None:
    index = site.build(1, name=name)
    site.promote(index)
    assert site.tags(index) == {index.version}
    assert live_pointer(site.ledger, name) is not None


def test_clean_up_removes_what_nobody_can_go_back_to_and_nothing_else(site: Site) -> None:
    versions = site.build_apart(3, 6)
    for index in versions:
        site.promote(index)
    assert site.clean(older_than=timedelta(hours=1)) == ()  # all too young
    removed = site.clean()
    assert {index.version for index in versions[:3]} <= set(removed)
    assert min(index.version for index in versions[3:]) > max(removed)
    for number, index in list(enumerate(versions, start=1))[3:]:
        assert site.editions(index) == {str(number)}
    with pytest.raises(Unmeasurable, match="cannot be read"):
        site.editions(versions[0])
    assert site.clean() == ()
    assert site.back() == versions[4]


def test_clean_up_keeps_what_another_config_or_environment_points_to(site: Site) -> None:
    shared = site.build(1, name="other", top_k=3)
    site.promote(shared)
    staging = Ledger(site.settings.ledger, "staging")
    second = site.build(2)
    promote(staging, site.lance, second, after=0, reason="tried there")
    versions = [site.build(number) for number in range(3, 8)]
    assert {index.table for index in versions} == {shared.table}
    for index in versions:
        site.promote(index)
    (result,) = clean_up(site.ledger, site.lance, "help", keep=1, older_than=AT_ONCE)
    assert all(version < shared.version for version in result.removed)
    assert result.oldest_tag is not None
    assert "other" in result.oldest_tag
    assert site.editions(shared) == {"1"}
    assert site.editions(second) == {"2"}


def test_a_version_just_before_a_tagged_one_does_not_keep_the_older_ones_on_disk(site: Site) -> None:
    old, tagged = site.build_apart(1, 2)
    site.promote(tagged)
    site.build(3)
    table = lancedb.connect(site.lance).open_table(old.table)
    made = {entry["version"]: entry["timestamp"].astimezone(UTC) for entry in table.list_versions()}
    limit = made[tagged.version]
    remove_before(table, [made[old.version], limit - timedelta(microseconds=1)], limit)
    assert old.version not in {entry["version"] for entry in table.list_versions()}
    assert site.editions(tagged) == {"2"}


def test_the_next_build_after_a_clean_up_embeds_only_what_changed(site: Site) -> None:
    for index in site.build_apart(2, 5):
        site.promote(index)
    assert site.clean()
    assert site.editions(site.live()) == {"5"}
    same = site.build(5)
    assert same.content_digest == site.live().content_digest
    assert site.editions(same) == {"5"}
    assert site.editions(site.build(6)) == {"6"}
    assert site.editions(site.live()) == {"5"}


def test_a_table_that_is_being_built_is_skipped_and_a_promotion_does_not_wait_for_it(site: Site) -> None:
    first, second = site.build(1), site.build(2)
    site.promote(first)
    with writer_lock(site.lance, first.table, wait=False):
        site.promote(second)
        (result,) = clean_up(site.ledger, site.lance, "help", older_than=AT_ONCE)
        assert site.back() == first
    assert result.skipped == "a build of this index is running"
    assert (result.removed, site.editions(second)) == ((), {"2"})


def test_a_pointer_of_a_later_touchstone_is_read_and_one_without_an_index_is_unmeasurable(site: Site) -> None:
    index = site.build(1)
    payload = {"index": index.model_dump() | {"colour": "red"}, "reason": "not worse", "mood": "good"}
    site.ledger.append(EventKind.INDEX_PROMOTED, index_subject("help"), payload)
    assert site.live() == index
    site.ledger.append(EventKind.INDEX_PROMOTED, index_subject("help"), {"index": {"table": "t"}, "reason": ""})
    with pytest.raises(Unmeasurable, match=r"ledger event 2 .*version, config_name.*another version of touchstone"):
        site.live()
