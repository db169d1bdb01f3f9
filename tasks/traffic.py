"""Production traces from MLflow: what live traffic asked and was answered, and what of it cannot be used, by reason.

An app writes one trace per request into the experiment `touchstone/traffic/<environment>` (docs/canary.md says what
it has to hold). First the traces' tags are read, page by page; the texts only of those that are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.tracking_address import TrackingUnavailable, connected
from tasks.tracking_experiment import full_name, traffic_experiment
from tasks.tracking_spans import send_feedback
from touchstone.canary_sampling import ServedRequest
from touchstone.pii import scrub
from touchstone.results import Answer, Retrieval, RetrievedChunk
from touchstone.scrubbed_results import scrubbed_retrieval
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Assessment, Span, TraceInfo

OWN_SOURCE = "touchstone/"  # of the assessments that we write; they are no feedback of the app
_PAGE, _BATCH = 500, 100
_WORDS = {"yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Arms:
    """Whose traffic is compared."""

    environment: str
    canary_id: str
    canary: str  # fingerprint of the candidate
    champion: str


@dataclass(frozen=True)
class Traffic:
    """What was read. `left_out` counts traces that say nothing of either arm, `unanswered` those without an answer."""

    requests: list[ServedRequest]
    left_out: dict[str, int]
    unanswered: dict[str, int]

    def in_words(self) -> str:
        """Such as `12 without a request id, 3 of another bundle`; empty when nothing was left out."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())


@dataclass(frozen=True)
class TracedAnswer:
    """The texts of one trace."""

    question: str
    answer: Answer


def experiment_name(environment: str) -> str:
    return full_name(traffic_experiment(environment))


def read_traffic(
    settings: Settings, arms: Arms, since: datetime, until: datetime, feedback: Collection[str] = ()
) -> Traffic:
    """The requests of both arms that began in [since, until), each request id once.

    Raises TrackingUnavailable when MLflow does not answer.
    """
    reader = _Reader(arms, feedback)
    with connected(settings) as client:
        experiment = client.get_experiment_by_name(experiment_name(arms.environment))
        if experiment is not None:
            for info in _traces(client, experiment.experiment_id, since, until):
                reader.add(info)
    return Traffic(reader.requests, dict(reader.left_out), dict(reader.unanswered))


def read_answers(settings: Settings, trace_ids: Sequence[str]) -> dict[str, TracedAnswer]:
    """The texts of traces by id; a trace whose spans are lost, or say no question, is not in it."""
    from mlflow.tracing.client import TracingClient

    found: dict[str, TracedAnswer] = {}
    with connected(settings) as client:
        tracing = TracingClient(client.tracking_uri)
        for batch in _batches(trace_ids):
            for trace in tracing.batch_get_traces(batch):
                answer = _texts(trace.data.spans)
                if answer is not None:
                    found[trace.info.trace_id] = answer
    return found


def write_scores(settings: Settings, scores: Mapping[str, Mapping[str, float]], judge: str) -> list[str]:
    """Our scores (0 to 1) as feedback on the traces, by trace id. The tests need none of it: warnings, no error."""
    if not scores:
        return []
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.tracing.client import TracingClient

    source = AssessmentSource("LLM_JUDGE", f"{OWN_SOURCE}{judge}") if judge else AssessmentSource("CODE", OWN_SOURCE)
    feedback = [
        Feedback(name=name, value=value, source=source, trace_id=trace_id)
        for trace_id, metrics in scores.items()
        for name, value in metrics.items()
    ]
    try:
        with connected(settings) as client:
            experiment = client.get_experiment_by_name(experiment_name(settings.environment))
            if experiment is not None:
                send_feedback(TracingClient(client.tracking_uri).store, experiment.experiment_id, feedback)
    except TrackingUnavailable as error:
        return [f"scores were not written to the traces: {error}"]
    return []


class _Reader:
    """Sorts traces into requests and reasons."""

    def __init__(self, arms: Arms, feedback: Collection[str]) -> None:
        self.requests: list[ServedRequest] = []
        self.left_out: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self._arms, self._feedback = arms, feedback
        self._seen: set[str] = set()

    def add(self, info: TraceInfo) -> None:
        tags = info.tags
        request_id = tags.get("touchstone.request_id", "")
        if why := self._unusable(info, request_id):
            self.left_out[why] += 1
            return
        self._seen.add(request_id)
        is_canary = tags["touchstone.arm"] == "canary"
        missing = _missing_answer(info)
        if missing:
            self.unanswered[f"{'canary' if is_canary else 'champion'}: {missing}"] += 1
        self.requests.append(
            ServedRequest(
                request_id=request_id,
                trace_id=info.trace_id,
                is_canary=is_canary,
                segment=tags.get("touchstone.segment") or "all",
                at=datetime.fromtimestamp(info.request_time / 1000, UTC),
                answered=not missing,
                feedback=self._read_feedback(info.assessments),
            )
        )

    def _unusable(self, info: TraceInfo, request_id: str) -> str:
        """Why the trace says nothing of either arm; empty: it does."""
        tags, arms = info.tags, self._arms
        if not request_id:
            return "without a request id"
        if info.state.value == "IN_PROGRESS":
            return "not finished"  # a later look reads it again
        arm, expected = tags.get("touchstone.arm"), {"canary": arms.canary, "champion": arms.champion}
        if arm not in expected:
            return "without an arm (touchstone.arm = champion or canary)"
        if tags.get("touchstone.fingerprint") != expected[arm]:
            return "of an unknown or another bundle"
        if tags.get("touchstone.canary_id", arms.canary_id) != arms.canary_id:
            return "of another canary"
        return "with a request id that was there before" if request_id in self._seen else ""

    def _read_feedback(self, assessments: Sequence[Assessment]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for assessment in assessments:
            is_ours = assessment.source is not None and (assessment.source.source_id or "").startswith(OWN_SOURCE)
            if assessment.name not in self._feedback or is_ours or getattr(assessment, "valid", True) is False:
                continue
            feedback = getattr(assessment, "feedback", None)
            value = feedback_value(feedback.value if feedback else None)
            if value is None:
                self.left_out[f"assessments {assessment.name} that are neither yes/no nor 0 to 1"] += 1
            else:
                found.setdefault(assessment.name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}


def feedback_value(value: Any) -> float | None:
    """yes/no, true/false or a number from 0 to 1 as a score; None: it is none of them."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None
    return score if 0 <= score <= 1 else None


def _missing_answer(info: TraceInfo) -> str:
    """Why the bundle itself gave no answer; empty: it did."""
    if info.state.value == "ERROR":
        return "error"
    if info.tags.get("touchstone.fallback") == "true":
        return "answered by a fall-back"
    empty = {"", "null", '""'}  # as JSON: the answer "null" has quotes
    return "no answer" if (info.response_preview or "").strip() in empty else ""


def _traces(client: MlflowClient, experiment_id: str, since: datetime, until: datetime) -> Iterator[TraceInfo]:
    start, end = (int(when.timestamp() * 1000) for when in (since, until))
    token: str | None = None
    while True:
        page = client.search_traces(
            locations=[experiment_id],
            filter_string=f"trace.timestamp_ms >= {start} AND trace.timestamp_ms < {end}",
            order_by=["timestamp_ms ASC"],
            max_results=_PAGE,
            page_token=token,
            include_spans=False,
        )
        yield from (trace.info for trace in page)
        token = page.token
        if not token:
            return


def _texts(spans: Sequence[Span]) -> TracedAnswer | None:
    root = next((span for span in spans if span.parent_id is None), None)
    asked = root.inputs if root else None
    question = asked.get("question") if isinstance(asked, dict) else None
    if root is None or not isinstance(question, str) or not question.strip() or not isinstance(root.outputs, str):
        return None
    documents = [
        document
        for span in spans
        if span.span_type == "RETRIEVER" and isinstance(span.outputs, list)
        for document in span.outputs
        if isinstance(document, dict)
    ]
    chunks = tuple(_chunk(document, rank) for rank, document in enumerate(documents, 1))
    retrieval = Retrieval(
        query=question, chunks=chunks, latency_ms=0.0, embedding_model="", index_version="", search="traced"
    )
    scrubbed = scrubbed_retrieval(retrieval) if chunks else None  # other senders than ours may not have
    return TracedAnswer(scrub(question), Answer(text=scrub(root.outputs), retrieval=scrubbed))


def _chunk(document: Mapping[str, Any], rank: int) -> RetrievedChunk:
    metadata = document.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    chunk_id = str(document.get("id") or known.get("chunk_id") or rank)
    return RetrievedChunk(
        chunk_id=chunk_id,
        document_id=str(known.get("document_id") or chunk_id),
        text=str(document.get("page_content") or ""),
        rank=rank,
        score=0.0,
    )


def _batches(items: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
