"""Validation of a build with real Great Expectations: a sound one passes, and each fault fails its own expectation."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.validation import BuildFacts, chunk_frame, validate_build
from touchstone.index import QuarantinedChunk, Validation

FACTS = BuildFacts(
    expected_dimension=8,
    chunks_before=40,
    max_chunk_change=0.5,
    golden_ids=frozenset({"d1", "d7"}),
    quarantined=(),
    written=40,
)


def sound(rows: int = 40) -> pd.DataFrame:
    """Documents d0, d1 ... of four chunks each."""
    ids = [f"d{row // 4}" for row in range(rows)]
    return pd.DataFrame(
        {
            "chunk_id": [f"{document}#{row % 4}" for row, document in enumerate(ids)],
            "document_id": ids,
            "text_length": 120.0,
            "dimension": 8.0,
            "norm": 1.0004,
            "finite": True,
        }
    )


def corrupted(column: str, *values: Any) -> pd.DataFrame:
    """A sound frame but for the rows from d1#1 on, which have these values in one column."""
    frame = sound()
    frame[column] = frame[column].astype(object)
    frame.loc[range(5, 5 + len(values)), column] = values
    return frame if column == "chunk_id" else frame.astype({column: "float64"})


def failures(validation: Validation) -> dict[str, str]:
    assert validation.passed is (not validation.failures)
    return {expectation.name: expectation.detail for expectation in validation.failures}


def test_a_sound_build_passes_and_says_what_was_checked(tmp_path: Path) -> None:
    validation = validate_build(sound(), FACTS, tmp_path)
    assert validation.passed
    assert {expectation.name: expectation.detail for expectation in validation.expectations} == {
        "chunk_id_unique": "40 chunks",
        "rows_equal_ids": "40 chunks",
        "text_not_empty": "40 chunks",
        "dimension": "40 chunks",
        "vector_finite": "40 chunks",
        "unit_norm": "40 chunks",
        "all_written": "40 chunks",
        "chunk_count": "40 chunks",
        "golden_documents": "2 golden documents indexed",
    }


@pytest.mark.parametrize(
    ("frame", "expectation", "detail"),
    [
        (corrupted("text_length", 0), "text_not_empty", "1 of 40 chunks have no text: d1#1$"),
        (corrupted("dimension", 384, np.nan), "dimension", "1 of 40 .* d1#2; 1 of 40 .* dimension, or none: d1#1$"),
        (corrupted("norm", 1.002, np.nan, 0.998), "unit_norm", "1 of 40 .*: d1#2; 2 of 40 .* or none: d1#1, d1#3$"),
        (corrupted("norm", *[np.nan] * 35), "unit_norm", "35 of 40 chunks .*: d1#1, d1#2, d1#3, d2#0, d2#1$"),
    ],
    ids=["no text", "dimension", "norm", "at most five are named"],
)
def test_a_fault_fails_its_own_expectation_and_names_the_chunks(
    frame: pd.DataFrame, expectation: str, detail: str, tmp_path: Path
) -> None:
    found = failures(validate_build(frame, FACTS, tmp_path))
    assert list(found) == [expectation]
    assert re.match(detail, found[expectation])


def test_infinite_numbers_in_a_vector_are_found(tmp_path: Path) -> None:
    frame = sound()
    frame.loc[[8, 9], "finite"] = False
    found = failures(validate_build(frame, FACTS, tmp_path))
    assert found == {"vector_finite": "2 of 40 chunks have a vector with NaN or infinity, or none: d2#0, d2#1"}


def test_doubled_and_missing_ids_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    doubled = failures(validate_build(corrupted("chunk_id", "d0#0"), FACTS, tmp_path / "doubled"))
    assert doubled == {
        "chunk_id_unique": "2 of 40 chunks share their id with another, or have none: d0#0",
        "rows_equal_ids": "39 distinct chunk ids, expected 40",
    }
    missing = failures(validate_build(corrupted("chunk_id", None), FACTS, tmp_path / "missing"))
    assert missing["chunk_id_unique"].startswith("1 of 40 chunks")
    assert missing["rows_equal_ids"] == "39 distinct chunk ids, expected 40"


@pytest.mark.parametrize(
    ("rows", "limits"), [(16, "16 chunks, expected 20 to 60"), (64, "64 chunks, expected 20 to 60")]
)
def test_a_number_of_chunks_beyond_the_allowed_change_fails(rows: int, limits: str, tmp_path: Path) -> None:
    facts = replace(FACTS, golden_ids=frozenset(), written=0)
    found = failures(validate_build(sound(rows), facts, tmp_path))
    assert list(found) == ["chunk_count"]
    assert found["chunk_count"].startswith(limits)
    assert "gate.max_chunk_change" in found["chunk_count"]


def test_a_first_build_may_have_any_number_of_chunks(tmp_path: Path) -> None:
    assert validate_build(sound(400), replace(FACTS, chunks_before=None), tmp_path).passed


def test_fewer_rows_than_were_written_fail(tmp_path: Path) -> None:
    assert failures(validate_build(sound(), replace(FACTS, written=41), tmp_path)) == {
        "all_written": "40 chunks, expected at least 41"
    }


def test_a_golden_document_that_is_gone_is_named_and_a_quarantined_one_says_why(tmp_path: Path) -> None:
    held = QuarantinedChunk(chunk_id="evil#2", document_id="evil", rules=("override", "role_marker"))
    facts = replace(FACTS, golden_ids=frozenset({"d1", "gone", "evil"}), quarantined=(held,))
    assert failures(validate_build(sound(), facts, tmp_path)) == {
        "golden_documents": "golden document evil was quarantined for override, role_marker; allow it in scan.allow or "
        "remove it from the golden set; golden document gone is not in the index; restore it in the source or remove "
        "it from the golden set"
    }


def test_many_missing_golden_documents_are_counted(tmp_path: Path) -> None:
    facts = replace(FACTS, golden_ids=frozenset(f"gone{n}" for n in range(12)))
    detail = failures(validate_build(sound(), facts, tmp_path))["golden_documents"]
    assert detail.count("is not in the index") == 5
    assert detail.endswith("; and 7 more")


def test_the_data_docs_are_small_replaced_by_the_next_run_and_all_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.chdir(home)
    for _ in range(2):
        validation = validate_build(corrupted("norm", 7.5), FACTS, tmp_path / "builds" / "b1")
    site = tmp_path / "builds" / "b1"
    assert validation.report_path is not None
    index = (site / validation.report_path).read_text()
    pages = sorted(site.rglob("validations/**/*.html"))
    assert [page.name for page in pages] == ["chunks-chunks.html", "golden-golden.html"]
    assert all(str(page.relative_to(site)) in index for page in pages)
    assert "7.5" in pages[0].read_text()
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 300_000
    assert list(home.iterdir()) == []
    assert capfd.readouterr().out == ""


def table_of(folder: Path, rows: list[dict[str, Any]]) -> Any:
    """A LanceDB table, with whatever vectors LanceDB lets in: it refuses NaN, and takes none and infinity."""
    texts = [pa.field(name, pa.string()) for name in ("chunk_id", "document_id", "text")]
    schema = pa.schema([*texts, pa.field("vector", pa.list_(pa.float32(), 8))])
    table = lancedb.connect(folder / "lance").create_table("t", schema=schema)
    if rows:
        table.add(pa.Table.from_pylist(rows, schema=schema), on_bad_vectors="null")
    return table


def test_the_frame_of_a_real_table_shows_what_is_wrong_with_it(tmp_path: Path) -> None:
    unit = np.eye(8, dtype=np.float32)
    rows = [
        {"chunk_id": "a#0", "document_id": "a", "text": " Grüße ", "vector": unit[0].tolist()},
        {"chunk_id": "a#1", "document_id": "a", "text": "\n \t", "vector": (3 * unit[1]).tolist()},
        {"chunk_id": "b#0", "document_id": "b", "text": None, "vector": [float("inf")] + [0.0] * 7},
        {"chunk_id": "b#1", "document_id": "b", "text": "text", "vector": None},
    ]
    frame = chunk_frame(table_of(tmp_path, rows)).sort_values("chunk_id", ignore_index=True)
    assert frame["document_id"].tolist() == ["a", "a", "b", "b"]
    assert frame["text_length"].fillna(-1).tolist() == [5, 0, -1, 4]
    assert frame["norm"].fillna(-1).tolist() == [1, 3, np.inf, -1]
    assert frame["finite"].tolist() == [True, True, False, False]
    assert frame["dimension"].fillna(-1).tolist() == [8, 8, 8, -1]
    found = failures(validate_build(frame, replace(FACTS, golden_ids=frozenset(), written=4), tmp_path / "docs"))
    named = {name: set(re.findall(r"\w#\d", detail)) for name, detail in found.items()}
    assert named["text_not_empty"] == {"a#1", "b#0"}
    assert named["vector_finite"] == {"b#0", "b#1"}
    assert named["unit_norm"] == {"a#1", "b#0", "b#1"}
    assert named["dimension"] == {"b#1"}


def test_an_empty_table_has_an_empty_frame_and_fails(tmp_path: Path) -> None:
    frame = chunk_frame(table_of(tmp_path, []))
    assert len(frame) == 0
    found = failures(validate_build(frame, replace(FACTS, chunks_before=None), tmp_path / "docs"))
    assert set(found) == {"all_written", "chunk_count", "golden_documents"}


def test_large_tables_are_read_in_batches(tmp_path: Path) -> None:
    rows = 20_000
    flat = pa.array(np.tile(np.eye(1, 8, dtype=np.float32).ravel(), rows))
    columns = {name: [f"{name}{row}" for row in range(rows)] for name in ("chunk_id", "document_id", "text")}
    data = pa.table({**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, 8)})
    frame = chunk_frame(lancedb.connect(tmp_path / "lance").create_table("t", data))
    assert frame["chunk_id"].is_unique
    assert len(frame) == rows
    assert (frame["norm"] == 1).all()
    assert frame["finite"].all()
