"""Labels come back: from a filled-in file, or from what people said on MLflow's pages.

labels.jsonl of the golden set is what calibration reads; MLflow shows the same as people's assessments on the traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tasks.label_files import Row, labels_path, one_import_at_a_time, read_labels, read_rows, write_labels
from tasks.label_queue import queue_name, tick_off
from tasks.labelled_traces import LabelledTrace, read_human_words, read_traces, write_human_words
from tasks.ledger import Ledger
from tasks.loading import GoldenSet
from tasks.tracking_address import TrackingUnavailable
from touchstone.errors import BadInput
from touchstone.label_policy import Question
from touchstone.label_sampling import Week
from touchstone.labels import Label, Merged, encode, labels_subject, merge, read_value
from touchstone.ledger import EventKind, content_digest
from touchstone.settings import Settings


@dataclass(frozen=True)
class Imported:
    """What an import did. `empty` rows are not filled in; `left_out` are labels of no use, by reason."""

    dataset: str
    added: int
    replaced: int
    unchanged: int
    total: int
    by_metric: dict[str, int]
    empty: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def import_file(
    settings: Settings, golden: GoldenSet, path: Path, *, by: str = "", use_mlflow: bool = True
) -> Imported:
    """Take a filled-in file. Every row is checked before anything is written; errors name file, line and field.

    `by` is who filled in the rows that name nobody. Without MLflow the texts of the file are taken as they are.
    """
    numbered = read_rows(path)
    filled = [(line, row) for line, row in numbered if row.value is not None]
    trace_ids = [row.id for _, row in filled if row.source == "trace"]
    traces = read_traces(settings, trace_ids) if use_mlflow and trace_ids else {}
    reader = _RowReader(golden, path, by, traces if use_mlflow else None)
    labels = [reader.label(line, row) for line, row in filled]
    merged = _record(settings, golden, labels, "file")
    warnings = _show(settings, golden, labels, merged) if use_mlflow and trace_ids else ()
    return _report(golden, merged, empty=len(numbered) - len(filled), warnings=warnings)


def import_from_mlflow(settings: Settings, golden: GoldenSet, week: Week | None = None) -> Imported:
    """Take what people said on MLflow's pages of the traces in the golden set's queues, or in one week's."""
    queue = queue_name(golden, week.name if week else "")
    words = read_human_words(settings, golden.policy.labels, queue)
    merged = _record(settings, golden, words.labels, "mlflow")
    return _report(golden, merged, left_out=words.left_out, warnings=_show(settings, golden, (), merged))


class _RowReader:
    """Rows to labels: the texts of traces are MLflow's, the questions of cases the golden set's."""

    def __init__(self, golden: GoldenSet, path: Path, by: str, traces: dict[str, LabelledTrace] | None) -> None:
        self._policy, self._path, self._by, self._traces = golden.policy.labels, path, by, traces
        self._cases = {case.id: case for case in golden.cases}
        self._now = datetime.now(UTC)
        self._lines: dict[tuple[str, str, str, str], int] = {}

    def label(self, line: int, row: Row) -> Label:
        """Raises BadInput that names the line."""
        try:
            label = self._read(row)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self._bad(line, str(first["loc"][0]), first["msg"].removeprefix("Value error, ")) from None
        except _BadField as error:
            raise self._bad(line, error.field, error.message) from None
        if (before := self._lines.setdefault(label.key, line)) != line:
            raise self._bad(line, "id", f"{label.by} labels {label.metric} of {label.id} on line {before} already")
        return label

    def _read(self, row: Row) -> Label:
        question = self._question(row)
        by = row.by.strip() or self._by.strip()
        if not by:
            raise _BadField("by", "is empty; name who labelled it, or give --by NAME for all")
        try:
            value = read_value(row.value, question)
        except ValueError as error:
            raise _BadField("value", str(error)) from None
        at = self._now if row.at is None else row.at if row.at.tzinfo else row.at.replace(tzinfo=UTC)
        if row.source == "trace" and self._traces is not None:
            trace = self._traces.get(row.id)
            if trace is None:
                raise _BadField("id", f"{row.id!r} is no answered trace of this environment's live traffic in MLflow")
            return trace.label(row.id, question, value, by, at, row.note)
        asked = row.question
        if row.source == "case":
            if row.id not in self._cases:
                raise _BadField("id", f"{row.id!r} is no case of the golden set; correct it, or its `source`")
            asked = self._cases[row.id].question
        return Label(
            id=row.id,
            source=row.source,
            question=asked,
            answer=row.answer,
            contexts=row.contexts,
            metric=row.metric,
            value=value,
            by=by,
            at=at,
            note=row.note,
            weight=row.weight if row.source == "trace" else None,
            judge_score=row.judge_score,
            judge=row.judge,
        ).scrubbed()

    def _question(self, row: Row) -> Question:
        question = self._policy.question(row.metric)
        if question is None:
            known = ", ".join(question.metric for question in self._policy.questions)
            raise _BadField("metric", f"{row.metric!r} is not asked; known (policy.yaml, labels.questions): {known}")
        return question

    def _bad(self, line: int, field: str, message: str) -> BadInput:
        return BadInput(f"{self._path}:{line}: field {field}: {message}; nothing was imported")


class _BadField(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field, self.message = field, message


def _show(settings: Settings, golden: GoldenSet, new: Sequence[Label], merged: Merged) -> tuple[str, ...]:
    """The same in MLflow: new labels as assessments, and what is fully labelled is done. Warnings, no error."""
    policy = golden.policy.labels
    try:
        write_human_words(settings, new, policy)
        tick_off(settings, policy, golden.name, merged.labels)
    except TrackingUnavailable as error:
        return (f"the labels are in {labels_path(golden)}, but not all in MLflow; import again: {error}",)
    return ()


def _record(settings: Settings, golden: GoldenSet, labels: Sequence[Label], source: str) -> Merged:
    """labels.jsonl, then the ledger; also when a run before this one died between the two."""
    with (
        one_import_at_a_time(settings, golden),
        closing(Ledger(settings.ledger, settings.environment)) as ledger,
    ):
        merged = merge(read_labels(golden), labels)
        if merged.changed:
            write_labels(golden, merged.labels)
        digest = content_digest(encode(merged.labels))
        last = ledger.latest(EventKind.LABELS_IMPORTED, labels_subject(golden.name))
        if merged.changed or (merged.labels and (last is None or last.payload.get("digest") != digest)):
            payload = {
                "source": source,
                "added": merged.added,
                "replaced": merged.replaced,
                "total": len(merged.labels),
                "by_metric": dict(Counter(label.metric for label in merged.labels)),
                "people": len({label.by for label in merged.labels}),
                "digest": digest,
            }
            ledger.append(EventKind.LABELS_IMPORTED, labels_subject(golden.name), payload)
    return merged


def _report(golden: GoldenSet, merged: Merged, **more: object) -> Imported:
    return Imported(
        dataset=golden.name,
        added=merged.added,
        replaced=merged.replaced,
        unchanged=merged.unchanged,
        total=len(merged.labels),
        by_metric=dict(Counter(label.metric for label in merged.labels)),
        **more,  # pyright: ignore[reportArgumentType]  # of the two callers above
    )
