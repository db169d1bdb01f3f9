"""The weekly queue: draw a stratified sample of live answers, queue it in MLflow, hand it out as a file.

A week is drawn once, which the ledger knows; it holds counts and digests only.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.label_files import read_labels, write_rows
from tasks.label_queue import mark, queue_name, queued_traces, read_week
from tasks.labelled_traces import LabelledTrace, read_traces
from tasks.ledger import Ledger
from tasks.loading import GoldenSet
from tasks.tracking_address import review_url
from touchstone.errors import BadInput
from touchstone.label_policy import Question
from touchstone.label_sampling import Week, draw, sample_digest
from touchstone.labels import labels_subject
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.pii import scrub
from touchstone.settings import Settings


@dataclass(frozen=True)
class QueuedWeek:
    """A week's queue. `counts` are (chosen, all) by stratum; `is_new` False: it was drawn before."""

    dataset: str
    week: str
    n: int
    traffic: int
    counts: dict[str, tuple[int, int]]
    left_out: dict[str, int]
    is_new: bool
    url: str | None
    warnings: tuple[str, ...] = ()


def sample_week(settings: Settings, golden: GoldenSet, week: Week, now: datetime | None = None) -> QueuedWeek:
    """Draw the week's sample and queue it in MLflow. A week is drawn once: again, it says what was drawn.

    A run that died half-way is taken up: the same traffic gives the same sample, and marking it again changes nothing.
    Raises BadInput for a week that has not begun, TrackingUnavailable, and Unmeasurable where there is no traffic.
    """
    queue = queue_name(golden, week.name)
    now = now or datetime.now(UTC)
    if week.start > now:
        raise BadInput(f"--week {week.name}: begins on {week.start:%Y-%m-%d} UTC; there is no traffic of it yet")
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        if before := _drawn(ledger, golden, week):
            return _again(settings, golden, before)
        policy = golden.policy.labels
        labelled = {label.id for label in read_labels(golden) if label.source == "trace"}
        traffic = read_week(settings, policy, week, queue, labelled)
        sample = draw(traffic.candidates, policy.per_week, policy.minimum_per_stratum, seed=queue)
        url, warnings = None, []
        if sample.chosen:
            review = mark(settings, policy, queue, sample)
            url = review_url(settings, review.experiment_id, review.queue_id)
            payload = {
                "week": week.name,
                "queue": queue,
                "n": len(sample.chosen),
                "traffic": len(traffic.candidates),
                "strata": {name: list(pair) for name, pair in sample.counts.items()},
                "left_out": traffic.left_out,
                "digest": sample_digest(one.candidate.trace_id for one in sample.chosen),
                "experiment_id": review.experiment_id,
                "queue_id": review.queue_id,
            }
            ledger.append(EventKind.LABELS_SAMPLED, labels_subject(golden.name), payload)
    if sample.chosen and week.end > now:
        warnings.append(f"{week.name} is not over: what comes later in it will not be sampled")
    if len(sample.chosen) > policy.per_week:
        warnings.append(f"{len(sample.sizes)} strata: one answer of each is more than per_week, {policy.per_week}")
    return QueuedWeek(
        dataset=golden.name,
        week=week.name,
        n=len(sample.chosen),
        traffic=len(traffic.candidates),
        counts=sample.counts,
        left_out=traffic.left_out,
        is_new=bool(sample.chosen),
        url=url,
        warnings=tuple(warnings),
    )


def export_week(settings: Settings, golden: GoldenSet, week: Week, out: Path) -> int:
    """Write the week's queue as a file to fill in, a row per answer and question; how many rows.

    Judges' scores are not in it: people would repeat them. Raises BadInput when the week has no queue.
    """
    queue = queue_name(golden, week.name)
    traces = read_traces(settings, queued_traces(settings, queue))
    if not traces:
        raise BadInput(f"--week {week.name}: nothing is queued; `touchstone labels sample --week {week.name}` does it")
    rows = [
        _row(trace_id, trace, question)
        for trace_id, trace in sorted(traces.items())
        for question in golden.policy.labels.questions
    ]
    write_rows(out, rows)
    return len(rows)


def _row(trace_id: str, trace: LabelledTrace, question: Question) -> dict[str, object]:
    return {
        "id": trace_id,
        "source": "trace",
        "metric": question.metric,
        "asks": question.asks,
        "allowed": "pass or fail" if question.scale == "pass_fail" else "1 to 5",
        "question": scrub(trace.traced.question),
        "answer": scrub(trace.traced.answer.text),
        "contexts": [scrub(text) for text in trace.contexts],
        "value": None,
        "by": "",
        "note": "",
        "weight": trace.weight,
    }


def _drawn(ledger: Ledger, golden: GoldenSet, week: Week) -> LedgerEvent | None:
    events = ledger.events(EventKind.LABELS_SAMPLED, labels_subject(golden.name))
    return next((event for event in events if event.payload.get("week") == week.name), None)


def _again(settings: Settings, golden: GoldenSet, event: LedgerEvent) -> QueuedWeek:
    drawn = event.payload
    return QueuedWeek(
        dataset=golden.name,
        week=drawn["week"],
        n=drawn["n"],
        traffic=drawn["traffic"],
        counts={name: (chosen, size) for name, (chosen, size) in drawn["strata"].items()},
        left_out=drawn["left_out"],
        is_new=False,
        url=review_url(settings, drawn["experiment_id"], drawn["queue_id"]),
    )
