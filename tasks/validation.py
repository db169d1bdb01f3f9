"""Validate a build before readers are switched to it: Great Expectations on what the new index version holds.

The suites read one row of scalars per chunk, never the vectors. Null and NaN pass most of GX's expectations, so each
column is also expected to have a value. The data docs are a folder of 100 KB a build; nothing is written elsewhere.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from touchstone.index import Expectation, QuarantinedChunk, Validation

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from lancedb.table import Table

_NORM_TOLERANCE = 1e-3
_NAMED = 5  # offenders that a detail names
_ROWS_AT_ONCE = 8192
_SCALARS = ("chunk_id", "document_id", "text_length", "dimension", "norm", "finite")


@dataclass(frozen=True)
class BuildFacts:
    """What is known of a build apart from its chunks."""

    expected_dimension: int
    chunks_before: int | None  # of the live version; None on a first build
    max_chunk_change: float  # relative to that
    golden_ids: frozenset[str]  # documents that the golden set's `relevant_ids` name
    quarantined: tuple[QuarantinedChunk, ...]
    written: int  # chunks that this build put in; those that were there already are not counted


def chunk_frame(table: Table) -> pd.DataFrame:
    """One row of scalars per chunk of a checked-out table: chunk_id, document_id, text_length, dimension, norm, finite.

    `text_length` is without white space at the ends, `norm` is Euclidean. A missing vector or text is NaN. Read in
    batches: memory is that of the scalars.
    """
    import pandas as pd

    columns = ["chunk_id", "document_id", "text", "vector"]
    batches = table.search().select(columns).limit(None).to_batches(_ROWS_AT_ONCE)
    frames = [_scalars(batch) for batch in batches]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=pd.Index(_SCALARS))


def _scalars(batch: pa.RecordBatch) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.compute as pc

    vectors = batch["vector"]
    given = vectors.is_valid().to_numpy(zero_copy_only=False)
    matrix = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    lengths = pc.call_function("utf8_length", [pc.call_function("utf8_trim_whitespace", [batch["text"]])])
    norm, finite = np.full(len(batch), np.nan), np.zeros(len(batch), dtype=bool)
    norm[given] = np.linalg.norm(matrix, axis=1)
    finite[given] = np.isfinite(matrix).all(axis=1)
    return pd.DataFrame(
        {
            # Copied: a view of one column would keep the whole batch in memory, vectors and all.
            "chunk_id": batch["chunk_id"].to_pylist(),
            "document_id": batch["document_id"].to_pylist(),
            "text_length": lengths.to_pandas(),
            "dimension": np.where(given, float(vectors.type.list_size), np.nan),
            "norm": norm,
            "finite": finite,
        }
    )


def validate_build(chunks: pd.DataFrame, facts: BuildFacts, report_folder: Path) -> Validation:
    """Check a build's chunks, as `chunk_frame` gives them; a failed expectation names at most five offenders.

    GX's data docs replace those in `report_folder`, and `report_path` is their first page, relative to that folder.
    """
    import pandas as pd

    docs = _DataDocs(report_folder)
    found = docs.run("chunks", _chunk_suite(facts, len(chunks)), chunks.reset_index(drop=True))
    expectations = [_judged(name, results, chunks["chunk_id"]) for name, results in found.items()]
    golden = pd.DataFrame(_golden_states(chunks, facts).items(), columns=["document_id", "state"])
    looked = docs.run("golden", _golden_suite(), golden)["golden_documents"] if len(golden) else []
    expectations.append(_golden_expectation(golden, looked))
    docs.slim()
    passed = all(expectation.passed for expectation in expectations)
    return Validation(passed=passed, expectations=tuple(expectations), report_path="index.html")


def _chunk_suite(facts: BuildFacts, rows: int) -> dict[str, list[Any]]:
    """GX expectations by the name of ours, which holds when all of them do."""
    gx = _expectations()
    before, change = facts.chunks_before, facts.max_chunk_change
    fewest = 1 if before is None else max(1, math.ceil(before * (1 - change)))
    most = None if before is None else max(1, math.floor(before * (1 + change)))
    low, high = 1 - _NORM_TOLERANCE, 1 + _NORM_TOLERANCE
    return {
        "chunk_id_unique": [_has("chunk_id"), gx.ExpectColumnValuesToBeUnique(column="chunk_id")],
        "rows_equal_ids": [
            gx.ExpectColumnUniqueValueCountToBeBetween(column="chunk_id", min_value=rows, max_value=rows)
        ],
        "text_not_empty": [_has("text_length"), gx.ExpectColumnValuesToBeBetween(column="text_length", min_value=1)],
        "dimension": [
            _has("dimension"),
            gx.ExpectColumnValuesToBeInSet(column="dimension", value_set=[facts.expected_dimension]),
        ],
        "vector_finite": [_has("finite"), gx.ExpectColumnValuesToBeInSet(column="finite", value_set=[True])],
        "unit_norm": [
            _has("norm"),
            gx.ExpectColumnValuesToBeBetween(column="norm", min_value=low, max_value=high),
        ],
        "all_written": [gx.ExpectTableRowCountToBeBetween(min_value=facts.written)],
        "chunk_count": [gx.ExpectTableRowCountToBeBetween(min_value=fewest, max_value=most)],
    }


def _expectations() -> Any:
    """GX's module of expectations; GX 1.24 does not mark its names as exported, so a type checker refuses them."""
    from great_expectations import expectations

    return expectations


def _has(column: str) -> Any:
    return _expectations().ExpectColumnValuesToNotBeNull(column=column)


_OFFENCES = {  # of the chunks that a failed expectation names
    "chunk_id_unique": "share their id with another, or have none",
    "text_not_empty": "have no text",
    "dimension": "have a vector of another dimension, or none",
    "vector_finite": "have a vector with NaN or infinity, or none",
    "unit_norm": "have a vector whose norm is not 1, or none",
}
_FIXES = {"chunk_count": "; set gate.max_chunk_change higher when such a change is meant"}


def _judged(name: str, results: Sequence[Any], ids: pd.Series) -> Expectation:
    failed = [result for result in results if not result.success]
    if not failed:
        return Expectation(name=name, passed=True, detail=f"{len(ids):,} chunks")
    return Expectation(name=name, passed=False, detail="; ".join(_failure(name, result, ids) for result in failed))


def _failure(name: str, result: Any, ids: pd.Series) -> str:
    found, asked = result.result, result.expectation_config.kwargs
    if "observed_value" in found:
        what = "distinct chunk ids" if asked.get("column") else "chunks"
        return f"{found['observed_value']:,} {what}, expected {_limits(asked)}{_FIXES.get(name, '')}"
    if "unexpected_count" in found:
        named = dict.fromkeys(str(ids.iloc[row]) for row in found.get("partial_unexpected_index_list", ()))
        count = f"{found['unexpected_count']:,} of {found['element_count']:,} chunks"
        return f"{count} {_OFFENCES[name]}: {', '.join(list(named)[:_NAMED])}"
    return f"Great Expectations could not check it: {result.exception_info}"  # never passed in silence


def _limits(asked: Mapping[str, Any]) -> str:
    low, high = asked.get("min_value"), asked.get("max_value")
    if high is None:
        return f"at least {low:,}"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


_INDEXED = "indexed"


def _golden_states(chunks: pd.DataFrame, facts: BuildFacts) -> dict[str, str]:
    """What became of each document of the golden set, in order of id."""
    indexed = set(chunks["document_id"])
    rules: dict[str, set[str]] = {}
    for chunk in facts.quarantined:
        rules.setdefault(chunk.document_id, set()).update(chunk.rules)

    def state(document: str) -> str:
        if document in indexed:
            return _INDEXED
        if document in rules:
            why = ", ".join(sorted(rules[document]))
            return f"was quarantined for {why}; allow it in scan.allow or remove it from the golden set"
        return "is not in the index; restore it in the source or remove it from the golden set"

    return {document: state(document) for document in sorted(facts.golden_ids)}


def _golden_suite() -> dict[str, list[Any]]:
    return {"golden_documents": [_expectations().ExpectColumnValuesToBeInSet(column="state", value_set=[_INDEXED])]}


def _golden_expectation(golden: pd.DataFrame, results: Sequence[Any]) -> Expectation:
    missing = golden[golden["state"] != _INDEXED]
    named = [f"golden document {id} {state}" for id, state in missing.head(_NAMED).itertuples(index=False)]
    if len(missing) > _NAMED:
        named.append(f"and {len(missing) - _NAMED} more")
    seen = f"{len(golden)} golden documents indexed" if len(golden) else "no golden document to look for"
    passed = all(result.success for result in results)
    return Expectation(name="golden_documents", passed=passed, detail="; ".join(named) or seen)


class _DataDocs:
    """A Great Expectations context in memory whose only output is a site in one folder."""

    def __init__(self, folder: Path) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        self._folder = folder.absolute()
        for part in ("validations", "expectations"):  # of an earlier run of this build
            shutil.rmtree(self._folder / part, ignore_errors=True)
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(self._folder)},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={"build": site},
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)

    def run(self, name: str, suite: Mapping[str, Sequence[Any]], frame: pd.DataFrame) -> dict[str, list[Any]]:
        """The results by the name of our expectation, and a page in the site."""
        import great_expectations as gx
        from great_expectations.checkpoint.actions import UpdateDataDocsAction

        for ours, expectations in suite.items():
            for expectation in expectations:
                expectation.meta = {"name": ours}
        flat = [expectation for expectations in suite.values() for expectation in expectations]
        data = (
            self._context.data_sources.add_pandas(name)
            .add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe(name)
        )
        definition = gx.ValidationDefinition(
            name=name, data=data, suite=self._context.suites.add(gx.ExpectationSuite(name=name, expectations=flat))
        )
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[self._context.validation_definitions.add(definition)],
            actions=[UpdateDataDocsAction(name="data docs")],
            # Columns of ids instead of row numbers would take minutes when a million rows fail.
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": 20},
        )
        (outcome,) = self._context.checkpoints.add(checkpoint).run({"dataframe": frame}).run_results.values()
        found: dict[str, list[Any]] = {ours: [] for ours in suite}
        for result in outcome.results:
            config: Any = result.expectation_config
            found[config.meta["name"]].append(result)
        return found

    def slim(self) -> None:
        """Fonts and animations of the site's tutorial are 4 MB; no page refers to them."""
        shutil.rmtree(self._folder / "static", ignore_errors=True)
