"""Spans and traces in MLflow's own form, and how they are sent: many in one transaction on the embedded store."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from touchstone.privacy import clean, clean_record
from touchstone.results import Call, Failure, RetrievedChunk

if TYPE_CHECKING:
    from mlflow.entities import Feedback, Span, TraceInfo
    from opentelemetry.sdk.trace import Event

_HTTP_THREADS = 4


class SpanTree:
    """The spans of one trace: a root, and children of it in order."""

    def __init__(self, trace_id: str, start_ns: int) -> None:
        self._known = trace_id
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.built: list[Span] = []

    def add(
        self,
        name: str,
        kind: str,
        inputs: Any,
        outputs: Any,
        start: int,
        end: int,
        attributes: Mapping[str, Any],
        failure: Failure | None,
        *,
        is_root: bool = False,
    ) -> int:
        from mlflow.entities import Span
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Status, StatusCode

        if failure:
            failure = failure.model_copy(update={"reason": clean(failure.reason)})
        own = {
            "mlflow.traceRequestId": self._known,
            "mlflow.spanType": kind,
            "mlflow.spanInputs": clean_record(inputs, "text"),
        }
        own |= {"mlflow.spanOutputs": clean_record(outputs, "text"), **clean_record(attributes)}
        span = ReadableSpan(
            name=name,
            context=self._context(0 if is_root else len(self.built) + 1),
            parent=None if is_root else self._context(0),
            resource=Resource.get_empty(),
            attributes={key: json.dumps(value, ensure_ascii=False) for key, value in own.items()},
            events=[_exception(failure, end)] if failure else [],
            status=Status(StatusCode.ERROR, failure.kind.value) if failure else Status(StatusCode.OK),
            start_time=start,
            end_time=end,
        )
        self.built.append(Span(span))
        self.end_ns = max(self.end_ns, end)
        return end

    def _context(self, number: int) -> Any:
        from opentelemetry.trace import SpanContext, TraceFlags

        trace = int(self._known.removeprefix("tr-"), 16)
        return SpanContext(trace, (trace + number) % 2**64 or 1, is_remote=False, trace_flags=TraceFlags(1))


def call_attributes(call: Call) -> dict[str, Any]:
    """What is known of a vendor call, under the names that MLflow sums up by."""
    usage = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
    found = {
        "mlflow.llm.model": call.served_model or call.requested_model,
        "mlflow.chat.tokenUsage": {**usage, "total_tokens": call.input_tokens + call.output_tokens},
        "requested_model": call.requested_model,
        "served_model": call.served_model,
        "system_fingerprint": call.fingerprint,
        "finish_reason": call.finish_reason,
        "attempts": call.attempts,
        "cached": call.cached,
        "dropped_parameters": list(call.dropped_parameters),
    }
    if call.cost_usd is not None:
        found["mlflow.llm.cost"] = {"total_cost": 0.0 if call.cached else call.cost_usd}
    return found


def document_output(chunk: RetrievedChunk) -> dict[str, Any]:
    """A retrieved chunk as MLflow's pages and judges read it."""
    provenance = chunk.model_dump(exclude={"text"}) | {"doc_uri": chunk.source or chunk.document_id}
    return {"page_content": chunk.text, "metadata": provenance, "id": chunk.chunk_id}


def _exception(failure: Failure, at: int) -> Event:
    from opentelemetry.sdk.trace import Event

    return Event("exception", {"exception.type": failure.kind.value, "exception.message": failure.reason}, timestamp=at)


def send_traces(store: Any, experiment_id: str, traces: Sequence[tuple[TraceInfo, list[Span]]]) -> None:
    """Trace infos with their feedback, then all spans at once."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    infos, spans = [info for info, _ in traces], [span for _, own in traces for span in own]

    if isinstance(store, SqlAlchemyStore):
        with _one_transaction(store, experiment_id) as transaction:
            for info in infos:
                transaction.start_trace(info)
            transaction.log_spans(experiment_id, spans)
        return
    with ThreadPoolExecutor(_HTTP_THREADS) as pool:
        list(pool.map(store.start_trace, infos))
    store.log_spans(experiment_id, spans)


def send_feedback(store: Any, experiment_id: str, feedback: Sequence[Feedback]) -> None:
    """Feedback on traces that are there; each names its trace."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if isinstance(store, SqlAlchemyStore):
        with _one_transaction(store, experiment_id) as transaction:
            for one in feedback:
                transaction.create_assessment(one)
        return
    with ThreadPoolExecutor(_HTTP_THREADS) as pool:
        list(pool.map(store.create_assessment, feedback))


@contextmanager
def _one_transaction(store: Any, experiment_id: str) -> Iterator[Any]:
    """The store with all that is done in it as one transaction, on a copy: the process shares the original.

    Each `start_trace` otherwise commits, and reads the experiment again: twice the CPU, and a wait for the disk
    per trace. A trace that is there already would roll back the others; `sync_traces` deletes those first, counts
    afterwards, and repairs when it is called again.
    """
    experiment = store.get_experiment(experiment_id)
    with store.ManagedSessionMaker(read_only=False) as session:

        @contextmanager
        def shared(*_: Any, **__: Any) -> Iterator[Any]:
            yield session
            session.flush()
            session.expunge_all()

        transaction = copy.copy(store)
        transaction.ManagedSessionMaker = shared
        transaction.get_experiment = lambda _: experiment
        yield transaction
