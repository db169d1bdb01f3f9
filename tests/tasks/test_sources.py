"""Documents from folders and JSONL files; what is broken is named by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.sources import read_documents
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


def test_markdown_has_front_matter_and_an_id_from_its_path(tmp_path: Path) -> None:
    text = "---\ntitle: Refund window\nupdated_at: 2025-03-01\ntopic: refunds\n---\n# Refunds\n\nFourteen days.\n"
    (document,) = read_documents(write(tmp_path, billing__refunds_DOT_md=text))
    assert (document.id, document.title) == ("billing/refunds", "Refund window")
    assert document.updated_at == "2025-03-01T00:00:00+00:00"
    assert document.text == "# Refunds\n\nFourteen days."
    assert document.source == "billing/refunds.md"


def test_without_front_matter_the_first_heading_is_the_title(tmp_path: Path) -> None:
    (document,) = read_documents(write(tmp_path, a_DOT_md="# Opening hours ##\n\nNine to five."))
    assert document.title == "Opening hours"


def test_html_becomes_text_with_its_headings(tmp_path: Path) -> None:
    page = (
        "<html><head><title>Help &amp; hours</title><style>p {color: red}</style></head>"
        "<body><script>alert(1)</script><h2>Opening\n hours</h2><p>Nine to <b>five</b>.</p>"
        "<ul><li>Monday<li>Friday</ul>"
    )
    (document,) = read_documents(write(tmp_path, a_DOT_html=page))
    assert document.title == "Help & hours"
    assert document.text == "## Opening hours\n\nNine to five.\n\nMonday\nFriday"


def test_a_folder_is_read_in_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, b_DOT_txt="B", a_DOT_md="A", image_DOT_png="no text")
    write(tmp_path / ".git", c_DOT_md="hidden")
    assert [document.id for document in read_documents(tmp_path)] == ["a", "b"]


def test_jsonl_gives_ids_titles_dates_and_urls(tmp_path: Path) -> None:
    line = '{"id": "a", "title": "T", "text": "Text", "updated_at": "2025-03-01T12:00:00Z", "url": "https://example.com/a"}'
    (document,) = read_documents(jsonl(tmp_path, line))
    assert (document.id, document.title, document.source) == ("a", "T", "https://example.com/a")
    assert document.updated_at == "2025-03-01T12:00:00+00:00"


def test_the_layout_of_beir_is_read_too(tmp_path: Path) -> None:
    (document,) = read_documents(jsonl(tmp_path, '{"_id": "4983", "title": "", "text": "Text", "metadata": {}}'))
    assert document.id == "4983"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"corpus\.jsonl:2: not JSON"),
        ("[1]", r"corpus\.jsonl:2: a document is a JSON object, not list"),
        ('{"text": "x"}', r"corpus\.jsonl:2: field `id` is missing"),
        ('{"id": "b"}', r"corpus\.jsonl:2: field `text` is missing"),
        ('{"id": "b", "text": "  "}', r"corpus\.jsonl:2: field `text` is missing or empty"),
        ('{"id": "b", "text": 7}', r"corpus\.jsonl:2: field `text` must be text, not int"),
        ('{"id": "b", "text": "\\ud800"}', r"corpus\.jsonl:2: field `text` has half of a surrogate pair"),
        ('{"id": "b", "text": "\\u0000"}', r"corpus\.jsonl:2: field `text` has a NUL character"),
        ('{"id": "b", "text": ' + "7" * 5_000 + "}", r"corpus\.jsonl:2: not JSON that can be read"),
        ("[" * 20_000, r"corpus\.jsonl:2: not JSON that can be read"),
        ('{"id": "b", "text": "x", "colour": 1}', r"corpus\.jsonl:2: unknown field 'colour'"),
        (
            '{"id": "b", "text": "x", "updated_at": "soon"}',
            r"corpus\.jsonl:2: field `updated_at`: 'soon' is not an ISO",
        ),
        ('{"id": "a", "text": "x"}', r"corpus\.jsonl:2: field `id`: 'a' is already used by .*corpus\.jsonl:1"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_documents(jsonl(tmp_path, '{"id": "a", "text": "A"}', line))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\ntitle: [open\n---\nText", r"a\.md:\d: front matter is not YAML"),
        ("---\ntitle: x\n\nText", r"a\.md:1: front matter is opened by --- and never closed"),
        ("---\n- one\n---\nText", r"a\.md:2: front matter must be"),
        ("---\ntitle: 7\n---\nText", r"a\.md:1: field `title` must be text, not int"),
        ("---\r\ntitle: x\r\n\r\nText", r"a\.md:1: front matter is opened by --- and never closed"),
        ("---\nupdated_at: yesterday\n---\nText", r"a\.md:1: field `updated_at`"),
        ("---\nupdated_at: 2025-02-30\n---\nText", r"a\.md:2: front matter has a value .* day is out of range"),
        ("---\nupdated_at: [2025-01-01]\n---\nText", r"a\.md:1: field `updated_at`: list is not an ISO date"),
        ("---\ntitle: !!bool neither\n---\nText", r"a\.md:2: front matter has a value that cannot be read"),
        ("---\ntitle: " + "[" * 20_000 + "\n---\nText", r"a\.md:2: front matter has a value that cannot be read"),
        ("---\ntitle: x\n---\n", r"a\.md:1: field `text` is missing or empty"),
    ],
)
def test_broken_front_matter_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_documents(write(tmp_path, a_DOT_md=text))


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.txt:1: field `id`: 'a' is already used by .*a\.md:1"):
        read_documents(write(tmp_path, a_DOT_md="one", a_DOT_txt="two"))


def test_a_file_that_is_not_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nfine\n\xff\xfe")
    with pytest.raises(BadInput, match=r"a\.txt:3: not UTF-8"):
        read_documents(tmp_path)


def test_missing_and_empty_sources_say_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder or file"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no documents"):
        read_documents(tmp_path)


def test_the_meta_tag_of_a_page_is_its_date(tmp_path: Path) -> None:
    page = '<meta property="article:modified_time" content="2025-03-01T10:00:00Z"><p>Text</p>'
    (document,) = read_documents(write(tmp_path, a_DOT_html=page))
    assert (document.updated_at, document.declares_date) == ("2025-03-01T10:00:00+00:00", True)
