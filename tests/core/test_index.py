"""What became of a source since it was indexed: added, changed, touched, deleted, renamed, unreadable."""

from __future__ import annotations

import pytest

from touchstone.errors import BadInput
from touchstone.index import IndexedDocument, SourceChanges, UnreadableDocument, check_shrink, compare_source


def indexed(**contents: str) -> list[IndexedDocument]:
    """Documents of an index by id; a record's hash is that of its id and content."""
    return [
        IndexedDocument(id=id, content_hash=content, record_hash=f"{id} {content}", embedded_at="2026-01-01", chunks=1)
        for id, content in contents.items()
    ]


def source(**contents: str) -> dict[str, tuple[str, str]]:
    return {id: (content, f"{id} {content}") for id, content in contents.items()}


def unreadable(id: str | None, where: str = "corpus/a.md:1") -> UnreadableDocument:
    return UnreadableDocument(where=where, id=id, reason="binary")


def test_an_equal_source_changes_nothing() -> None:
    changes = compare_source(indexed(a="1", b="2"), source(b="2", a="1"))
    assert (changes.is_empty, changes.unchanged) == (True, 2)


def test_added_changed_and_deleted_documents_are_told_apart() -> None:
    changes = compare_source(indexed(b="2", a="1", gone="3"), source(a="1", b="two", z="5", new="4"))
    assert (changes.added, changes.changed, changes.deleted) == (("new", "z"), ("b",), ("gone",))
    assert (changes.unchanged, changes.is_empty) == (1, False)


def test_a_new_date_touches_a_document_without_changing_it() -> None:
    changes = compare_source(indexed(a="1"), {"a": ("1", "another record")})
    assert (changes.touched, changes.changed, changes.unchanged, changes.is_empty) == (("a",), (), 0, False)


def test_the_same_content_under_a_new_id_is_renamed() -> None:
    changes = compare_source(indexed(old="1", b="2"), source(new="1", b="2"))
    assert changes.renamed == (("old", "new"),)
    assert (changes.added, changes.deleted) == ((), ())


def test_equal_documents_that_moved_together_are_all_renamed_in_order() -> None:
    changes = compare_source(indexed(old_a="stub", old_b="stub"), source(new_b="stub", new_a="stub"))
    assert changes.renamed == (("old_a", "new_a"), ("old_b", "new_b"))
    assert changes.deleted == ()


def test_a_copy_of_a_renamed_document_is_added() -> None:
    changes = compare_source(indexed(old="1"), source(first="1", second="1"))
    assert (changes.renamed, changes.added) == ((("old", "first"),), ("second",))


def test_a_copy_beside_its_original_is_added_and_not_renamed() -> None:
    changes = compare_source(indexed(a="1"), source(a="1", copy="1"))
    assert (changes.renamed, changes.added, changes.unchanged) == ((), ("copy",), 1)


def test_a_renamed_and_edited_document_is_deleted_and_added() -> None:
    changes = compare_source(indexed(old="1"), source(new="2"))
    assert (changes.renamed, changes.added, changes.deleted) == ((), ("new",), ("old",))


def test_two_documents_that_swapped_their_contents_are_both_changed() -> None:
    changes = compare_source(indexed(a="1", b="2"), source(a="2", b="1"))
    assert (changes.changed, changes.renamed) == (("a", "b"), ())


def test_an_unreadable_document_is_kept_and_what_else_is_missing_deleted() -> None:
    changes = compare_source(indexed(a="1", b="2", c="3"), source(c="3"), [unreadable("a")])
    assert (changes.kept, changes.deleted) == (("a",), ("b",))


def test_an_unreadable_document_that_was_never_indexed_is_only_reported() -> None:
    changes = compare_source(indexed(a="1"), source(a="1"), [unreadable("new")])
    assert (changes.kept, changes.is_empty) == ((), True)
    assert [document.id for document in changes.unreadable] == ["new"]


def test_nothing_is_deleted_while_one_document_cannot_say_its_id() -> None:
    changes = compare_source(indexed(a="1", b="2", c="3"), source(c="3"), [unreadable("a"), unreadable(None)])
    assert (changes.kept, changes.deleted) == (("a", "b"), ())


def test_a_kept_document_is_not_taken_for_one_that_was_renamed() -> None:
    changes = compare_source(indexed(a="1"), source(b="1"), [unreadable("a")])
    assert (changes.kept, changes.renamed, changes.added) == (("a",), (), ("b",))


def test_unreadable_documents_are_listed_in_order_of_their_place() -> None:
    changes = compare_source([], {}, [unreadable("b", "b.md:1"), unreadable("a", "a.md:1")])
    assert [document.where for document in changes.unreadable] == ["a.md:1", "b.md:1"]


def test_everything_is_new_to_an_empty_index() -> None:
    assert compare_source([], source(b="2", a="1")).added == ("a", "b")


def test_a_source_that_lost_more_than_its_share_stops_the_build() -> None:
    changes = SourceChanges(deleted=("a", "b", "c", "d"))
    with pytest.raises(BadInput, match=r"lost 4 of 10 documents \(40%.*30%.*a, b, c first.*--allow-shrink"):
        check_shrink(changes, indexed=10, max_shrink=0.30)


def test_a_source_may_lose_exactly_its_share() -> None:
    check_shrink(SourceChanges(deleted=("a", "b", "c")), indexed=10, max_shrink=0.30)


def test_renamed_and_kept_documents_are_not_lost() -> None:
    held = indexed(a="1", b="2", c="3", d="4")
    changes = compare_source(held, source(z="1", y="2"), [unreadable("c"), unreadable("d")])
    check_shrink(changes, indexed=4, max_shrink=0.0)


def test_the_first_build_has_nothing_to_lose() -> None:
    check_shrink(SourceChanges(), indexed=0, max_shrink=0.0)
