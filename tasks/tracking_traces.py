"""Cases as MLflow traces with feedback, in the form that its page *Evaluation runs -> Compare* pairs.

A trace's id is a digest of the run and of the result, so that the traces a run should have are known before any
is sent: what is there already is left alone, what is stale or torn is deleted, what is missing is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.tracking_spans import SpanTree, call_attributes, document_output, send_traces
from touchstone.privacy import clean
from touchstone.results import Call, CaseResult, Failure

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Feedback, Span, TraceInfo

_BATCH = 100  # traces per request; MLflow deletes at most 100 at once
_SPANS_STORED = "mlflow.trace.spansLocation"  # set with the spans: a trace without it is torn


@dataclass(frozen=True)
class CaseTraces:
    """Which cases of a run are sent, and what their feedback is called."""

    experiment_id: str
    run_id: str
    run_key: str
    results: Mapping[str, CaseResult]  # by trace id
    headline: str | None


def choose_cases(
    cases: Sequence[CaseResult], previous: Sequence[CaseResult], headline: str | None, limit: int
) -> list[CaseResult]:
    """All when they fit; else failures, then what flipped since the previous run, then a sample.

    The sample is by digest of the case id: the same cases in every run, so that comparisons pair them.
    """
    if len(cases) <= limit:
        return list(cases)
    before = {(case.case_id, case.trial): _value(case, headline) for case in previous}

    def rank(case: CaseResult) -> tuple[int, str]:
        old, new = before.get((case.case_id, case.trial)), _value(case, headline)
        is_flip = old is not None and new is not None and old != new
        return (0 if case.failures else 1 if is_flip else 2), hashlib.sha256(case.case_id.encode()).hexdigest()

    chosen = {id(case) for case in sorted(cases, key=rank)[:limit]}
    return [case for case in cases if id(case) in chosen]


def headline_pass_fail(metrics: Sequence[str], cases: Sequence[CaseResult]) -> str | None:
    """The first metric, in the policy's order, that only ever passes or fails."""
    for name in metrics:
        values = {value for case in cases if (value := _value(case, name)) is not None}
        if values and values <= {0.0, 1.0}:
            return name
    return None


def trace_id(run_key: str, result: CaseResult) -> str:
    """The same for the same result; another one when a resumed run got another result."""
    digest = hashlib.sha256(f"{run_key}\n{result.model_dump_json()}".encode())
    return f"tr-{digest.hexdigest()[:32]}"


def sync_traces(client: MlflowClient, wanted: CaseTraces) -> int:
    """Make the run's traces those that are wanted; the number that MLflow says it holds afterwards."""
    from mlflow.tracing.client import TracingClient

    found = _stored(client, wanted)
    stale = [known for known, is_whole in found.items() if known not in wanted.results or not is_whole]
    for batch in _batches(stale):
        client.delete_traces(wanted.experiment_id, trace_ids=batch)
    whole = {known for known, is_whole in found.items() if is_whole}
    missing = [known for known in wanted.results if known not in whole]
    store = TracingClient(client.tracking_uri).store
    for batch in _batches(missing):
        built = [build_trace(wanted, known) for known in batch]
        send_traces(store, wanted.experiment_id, built)
    if not missing and not stale:
        return len(whole)
    return sum(_stored(client, wanted).values())


def build_trace(wanted: CaseTraces, known: str) -> tuple[TraceInfo, list[Span]]:
    """One case as a trace. MLflow derives the preview, by which rows pair, from the root's inputs."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    result = wanted.results[known]
    spans = _Spans(known, result)
    info = TraceInfo(
        trace_id=known,
        trace_location=TraceLocation.from_experiment_id(wanted.experiment_id),
        request_time=spans.start_ns // 1_000_000,
        execution_duration=(spans.end_ns - spans.start_ns) // 1_000_000,
        state=TraceState.ERROR if result.failure else TraceState.OK,
        trace_metadata={"mlflow.sourceRun": wanted.run_id},
        tags={"mlflow.traceName": "case", "segment": result.segment, "case_id": result.case_id},
        assessments=list(_feedback(wanted, known, result, spans.end_ns // 1_000_000)),
    )
    return info, spans.built


def _feedback(wanted: CaseTraces, known: str, result: CaseResult, at_ms: int) -> Iterator[Feedback]:
    """`a_passed` first, as the page shows three by alphabet; a failure is an error, never a value."""
    from mlflow.entities import AssessmentError, AssessmentSource, Feedback

    def one(name: str, value: Any, failure: Failure | None, rationale: str, metric: str) -> Feedback:
        made = Feedback(
            name=name,
            value=None if failure else value,
            error=AssessmentError(failure.kind.value, clean(failure.reason)) if failure else None,
            source=AssessmentSource("CODE", f"touchstone/{metric}"),
            metadata={"mlflow.assessment.sourceRunId": wanted.run_id},
            rationale=clean(rationale) or None,
            create_time_ms=at_ms,
            last_update_time_ms=at_ms,
        )
        made.assessment_id = f"a-{hashlib.sha256(f'{known}/{name}'.encode()).hexdigest()[:32]}"
        return made

    if result.failure:
        yield one("a_passed", None, result.failure, "", wanted.headline or "answer")
        return
    for name, score in result.scores.items():
        if name == wanted.headline:
            verdict = "yes" if score.value == 1.0 else "no"
            yield one("a_passed", verdict, score.failure, score.explanation, name)
        else:
            yield one(name, score.value, score.failure, score.explanation, name)


class _Spans(SpanTree):
    """The spans of one case. Calls carry durations only: retrieval, generation, then all judges at once."""

    def __init__(self, known: str, result: CaseResult) -> None:
        super().__init__(known, int(result.started_at * 1e9))
        at = self._retrieve(result, self.start_ns)
        for call in (call for call in result.calls if call.role == "generation"):
            at = self._call(call, result, at)
        for call in (call for call in result.calls if call.role != "generation"):
            self._call(call, result, at)
        self._root(result)

    def _root(self, result: CaseResult) -> None:
        inputs: dict[str, Any] = {"case_id": result.case_id, "question": result.question}
        if result.trial:
            inputs["trial"] = result.trial
        outputs = result.answer.text if result.answer else None
        self.add("case", "CHAIN", inputs, outputs, self.start_ns, self.end_ns, {}, result.failure, is_root=True)

    def _retrieve(self, result: CaseResult, at: int) -> int:
        retrieval = result.answer.retrieval if result.answer else None
        if retrieval is None:
            return at
        attributes = {"index_version": retrieval.index_version, "embedding_model": retrieval.embedding_model}
        documents = [document_output(chunk) for chunk in retrieval.chunks]
        end = at + int(retrieval.latency_ms * 1e6)
        inputs = {"query": retrieval.query, "search": retrieval.search}
        return self.add("retrieve", "RETRIEVER", inputs, documents, at, end, attributes, None)

    def _call(self, call: Call, result: CaseResult, at: int) -> int:
        is_answer = call.role == "generation"
        name = "generate" if is_answer else call.role
        inputs = {"question": result.question, "model": call.requested_model, "prompt_version": call.prompt_version}
        outputs = result.answer.text if is_answer and result.answer else {"finish_reason": call.finish_reason}
        kind = "EMBEDDING" if call.role == "embedding" else "CHAT_MODEL"
        failure = result.failure if is_answer else None
        end = at + int(call.latency_ms * 1e6)
        return self.add(name, kind, inputs, outputs, at, end, call_attributes(call), failure)


def _stored(client: MlflowClient, wanted: CaseTraces) -> dict[str, bool]:
    """The run's traces in MLflow, and whether each has its spans."""
    found: dict[str, bool] = {}
    token: str | None = None
    while True:
        page = client.search_traces(
            locations=[wanted.experiment_id],
            run_id=wanted.run_id,
            include_spans=False,
            max_results=500,
            page_token=token,
        )
        found |= {trace.info.trace_id: _SPANS_STORED in trace.info.tags for trace in page}
        token = page.token
        if not token:
            return found


def _batches(items: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _value(case: CaseResult, metric: str | None) -> float | None:
    score = case.scores.get(metric) if metric else None
    return score.value if score else None
