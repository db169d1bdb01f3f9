"""Chunks: within their size, cut where the author would cut, nothing lost, the same every time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from touchstone.chunking import split_markdown


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def paragraph(topic: str, sentences: int) -> str:
    return " ".join(f"Sentence {number} is about {topic}." for number in range(sentences))


MANUAL = f"""# Manual

{paragraph("nothing", 6)}

## Refunds

{paragraph("refunds", 6)}

### Exceptions

{paragraph("exceptions", 6)}

## Shipping

{paragraph("shipping", 6)}
"""


def test_a_document_that_fits_is_one_chunk() -> None:
    (chunk,) = split_markdown("# Title\n\nShort text.\n", words, size=100)
    assert (chunk.ordinal, chunk.text, chunk.heading) == (0, "# Title\n\nShort text.", "Title")


def test_a_document_without_words_has_no_chunk() -> None:
    assert split_markdown(" \n", words, size=10) == []


def test_no_chunk_is_larger_than_its_size() -> None:
    chunks = split_markdown(MANUAL, words, size=50, overlap=10)
    assert len(chunks) > 1
    assert max(len(words(chunk.text)) for chunk in chunks) <= 50


def test_a_chunk_ends_before_a_heading_when_one_is_near() -> None:
    chunks = split_markdown(MANUAL, words, size=60)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == [
        "# Manual",
        "## Refunds",
        "### Exceptions",
        "## Shipping",
    ]


def test_a_chunk_knows_the_path_of_its_headings() -> None:
    chunks = split_markdown(MANUAL, words, size=60)
    assert [chunk.heading for chunk in chunks] == [
        "Manual",
        "Manual > Refunds",
        "Manual > Refunds > Exceptions",
        "Manual > Shipping",
    ]


def test_a_comment_in_a_code_fence_is_no_heading() -> None:
    text = f"# Setup\n\n```sh\n# install\nmake\n```\n\n{paragraph('setup', 10)}"
    assert {chunk.heading for chunk in split_markdown(text, words, size=30)} == {"Setup"}


def test_the_overlap_starts_with_a_sentence() -> None:
    first, second, *_ = split_markdown(paragraph("one long paragraph", 20), words, size=40, overlap=16)
    assert second.text.startswith("Sentence")
    repeated = first.text[first.text.rindex(second.text[:40]) :]
    assert 0 < len(words(repeated)) <= 16


def test_a_section_that_starts_with_its_heading_repeats_nothing() -> None:
    chunks = split_markdown(MANUAL, words, size=60, overlap=20)
    assert sum(chunk.text.count("about nothing") for chunk in chunks) == 6


def test_a_text_without_any_good_cut_is_still_cut() -> None:
    def letters(text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(text))]

    chunks = split_markdown("x" * 100, letters, size=30, overlap=29)
    assert max(len(chunk.text) for chunk in chunks) <= 30
    assert chunks[-1].text.endswith("x")


def test_an_edit_in_one_section_leaves_the_chunks_of_others_as_they_were() -> None:
    before = {chunk.text for chunk in split_markdown(MANUAL, words, size=60, overlap=10)}
    edited = MANUAL.replace("Sentence 2 is about refunds.", "Sentence 2 was edited.")
    after = {chunk.text for chunk in split_markdown(edited, words, size=60, overlap=10)}
    assert len(before - after) == 1


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_sizes_that_cannot_be_are_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        split_markdown("text", words, size, overlap)


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["word", "Stop.", "\n", "\n\n", "# Head\n", "```\n", "é", "#", " "]), max_size=120
    ).map(" ".join),
    size=st.integers(1, 20),
    data=st.data(),
)
def test_every_word_is_in_some_chunk_in_order_and_within_size(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    chunks = split_markdown(text, words, size, overlap)
    covered = 0
    for chunk in chunks:
        assert 0 < len(words(chunk.text)) <= size
        assert text[chunk.start :].startswith(chunk.text)
        assert not words(text[covered : chunk.start])
        covered = chunk.start + len(chunk.text)
    assert not words(text[covered:])
