"""Live traffic as MLflow traces: what an app answered, by which bundle, scrubbed, and never in the way of an answer.

Any app can send them. The canary is judged on them; tags say which bundle and arm each is about.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.failover import Attempt
from tasks.names import name_scrubber
from tasks.retrieval_log import log_retrieval, used_chunks
from tasks.tracking_address import TrackingUnavailable, connected
from tasks.tracking_experiment import ensure_experiment, traffic_experiment
from tasks.tracking_spans import SpanTree, call_attributes, document_output, send_traces
from touchstone.pii import scrub
from touchstone.privacy import clean
from touchstone.results import Call, Failure, Retrieval
from touchstone.scrubbed_results import scrubbed_retrieval
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

_BATCH = 100
_GATHER_S = 1.0  # how long a batch waits for more
_TRIES = 5
_log = logging.getLogger("touchstone")


@dataclass(frozen=True)
class LiveAnswer:
    """One request as it was answered, or failed. Nothing in it is scrubbed yet; no key of the user is in it."""

    request_id: str
    environment: str
    bundle: str
    fingerprint: str
    arm: str
    question: str
    started_at: float  # Unix seconds
    seconds: float
    answer: str | None = None
    retrieval: Retrieval | None = None
    retrieval_config: str = ""
    calls: tuple[Call, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    failure: Failure | None = None
    canary_id: str | None = None
    segment: str | None = None
    served_by: str | None = None
    is_fallback: bool = False


def trace_id(environment: str, request_id: str) -> str:
    """The same for the same request, so that a batch sent again makes no second trace."""
    digest = hashlib.sha256(f"{environment}\n{request_id}".encode())
    return f"tr-{digest.hexdigest()[:32]}"


def build_trace(experiment_id: str, live: LiveAnswer) -> tuple[TraceInfo, list[Span]]:
    """One request as a trace; every text is scrubbed here."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    known = trace_id(live.environment, live.request_id)
    tree = SpanTree(known, int(live.started_at * 1e9))
    failure = _scrubbed_failure(live.failure)
    at = _add_retrieval(tree, live)
    _add_attempts(tree, live, at)
    answer = None if live.answer is None else scrub(live.answer)
    end = max(tree.end_ns, tree.start_ns + int(live.seconds * 1e9))
    inputs = {"question": scrub(live.question)}
    tree.add("ask", "CHAIN", inputs, answer, tree.start_ns, end, {}, failure, is_root=True)
    info = TraceInfo(
        trace_id=known,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=tree.start_ns // 1_000_000,
        execution_duration=(tree.end_ns - tree.start_ns) // 1_000_000,
        state=TraceState.ERROR if failure else TraceState.OK,
        trace_metadata={},
        tags={"mlflow.traceName": "ask", **_tags(live)},
    )
    return info, tree.built


def _tags(live: LiveAnswer) -> dict[str, str]:
    found = {
        "environment": live.environment,
        "bundle": live.bundle,
        "fingerprint": live.fingerprint,
        "arm": live.arm,
        "canary_id": live.canary_id,
        "request_id": live.request_id,
        "segment": live.segment and scrub(live.segment),
        "served_by": live.served_by,
        "fallback": "true" if live.is_fallback else None,
        "failure": live.failure and live.failure.kind.value,
    }
    return {f"touchstone.{name}": value for name, value in found.items() if value}


def _add_retrieval(tree: SpanTree, live: LiveAnswer) -> int:
    retrieval = live.retrieval and scrubbed_retrieval(live.retrieval)
    if retrieval is None:
        return tree.start_ns
    end = tree.start_ns + int(retrieval.latency_ms * 1e6)
    inputs = {"query": retrieval.query, "search": retrieval.search}
    about = {"index_version": retrieval.index_version, "embedding_model": retrieval.embedding_model}
    documents = [document_output(chunk) for chunk in retrieval.chunks]
    return tree.add("retrieve", "RETRIEVER", inputs, documents, tree.start_ns, end, about, None)


def _add_attempts(tree: SpanTree, live: LiveAnswer, at: int) -> None:
    """One span per vendor that was asked or passed over, one after the other."""
    for attempt in live.attempts:
        is_answer = attempt.outcome == "ok"
        about: dict[str, Any] = {"provider": attempt.provider, "breaker": attempt.breaker, "bundle": attempt.bundle}
        if is_answer and live.calls:
            about |= call_attributes(live.calls[-1])
        inputs = {"model": attempt.model, "bundle": attempt.bundle}
        outputs = {"outcome": attempt.outcome, "reason": clean(attempt.reason)}
        end = at + int(attempt.latency_ms * 1e6)
        at = tree.add("generate", "CHAT_MODEL", inputs, outputs, at, end, about, None)


def _scrubbed_failure(failure: Failure | None) -> Failure | None:
    return failure and failure.model_copy(update={"reason": clean(failure.reason)})


def _without_names(live: LiveAnswer, hide: Callable[[str], str]) -> LiveAnswer:
    failure = live.failure and live.failure.model_copy(update={"reason": hide(live.failure.reason)})
    retrieval = live.retrieval and scrubbed_retrieval(live.retrieval, hide)
    answer = live.answer and hide(live.answer)
    return replace(live, question=hide(live.question), answer=answer, retrieval=retrieval, failure=failure)


class TrafficSender:
    """Sends answers from a thread of its own. A full queue drops and counts: an answer never waits for MLflow."""

    def __init__(self, settings: Settings, *, capacity: int = 2000, retry_s: float = 2.0) -> None:
        self._settings = settings
        self._retry_s = retry_s
        self._hide_names = name_scrubber(settings)
        self._queue: queue.Queue[LiveAnswer] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._sent, self._dropped, self._in_hand = 0, 0, 0
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="traffic traces", daemon=True)
        self._thread.start()

    def warm_up(self, environment: str) -> None:
        """Seconds of imports, and of tables for a new store, before there is traffic that they would slow down.

        Without MLflow it says so, and the sending tries again.
        """
        try:
            with connected(self._settings) as client:
                self._experiment(client, environment)
        except TrackingUnavailable as error:
            self._last_error = str(error)
            _log.warning("traffic traces wait: %s", error)

    def offer(self, live: LiveAnswer) -> None:
        """Never waits, never raises."""
        try:
            self._queue.put_nowait(live)
        except queue.Full:
            self._dropped += 1

    def report(self) -> dict[str, Any]:
        """How many were sent, wait, or were dropped, and why the last batch failed."""
        return {
            "sent": self._sent,
            "waiting": self._queue.qsize() + self._in_hand,
            "dropped": self._dropped,
            "last_error": self._last_error,
        }

    def close(self, timeout_s: float = 20.0) -> None:
        """Send what waits; each batch is then tried once."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        for batch in self._batches():
            self._in_hand = len(batch)
            if self._settings.privacy.names:
                batch = [_without_names(live, self._hide_names) for live in batch]
            self._log(batch)
            if self._send(batch):
                self._sent += len(batch)
            else:
                self._dropped += len(batch)
            self._in_hand = 0

    def _batches(self) -> Iterator[list[LiveAnswer]]:
        while True:
            try:
                batch = [self._queue.get(timeout=0.2)]
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            until = time.monotonic() + _GATHER_S
            while len(batch) < _BATCH:
                left = 0 if self._closing.is_set() else until - time.monotonic()
                try:
                    batch.append(self._queue.get(timeout=min(0.2, left)) if left > 0 else self._queue.get_nowait())
                except queue.Empty:
                    if left <= 0:
                        break
            yield batch

    def _send(self, batch: Sequence[LiveAnswer]) -> bool:
        """True when MLflow has them all; tried again with growing pauses while it is away."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._send_once(batch, is_retry=attempt > 1)
            except TrackingUnavailable as error:
                if not self._last_error:
                    _log.warning("traffic traces wait: %s", error)
                self._last_error = str(error)
            except Exception as error:  # a thread that ends would drop all that comes, and say so nowhere
                self._last_error = f"{type(error).__name__}: {error}"
                _log.warning("%d traffic traces dropped: %s", len(batch), self._last_error)
                return False
            else:
                self._last_error = ""
                return True
            if attempt == _TRIES or self._closing.wait(self._retry_s * 2 ** (attempt - 1)):
                break
        return False

    def _send_once(self, batch: Sequence[LiveAnswer], *, is_retry: bool) -> None:
        from mlflow.tracing.client import TracingClient

        with connected(self._settings) as client:
            store = TracingClient(client.tracking_uri).store
            for environment in dict.fromkeys(live.environment for live in batch):
                own = [live for live in batch if live.environment == environment]
                experiment_id = self._experiment(client, environment)
                if is_retry:  # half of it may have arrived
                    ids = [trace_id(environment, live.request_id) for live in own]
                    client.delete_traces(experiment_id, trace_ids=ids)
                send_traces(store, experiment_id, [build_trace(experiment_id, live) for live in own])

    def _experiment(self, client: Any, environment: str) -> str:
        note = "Live traffic: what the canary is judged on. Scrubbed before it was sent."
        tags = {"touchstone.environment": environment, "touchstone.kind": "traffic"}
        return ensure_experiment(client, self._settings, traffic_experiment(environment), note, tags)

    def _log(self, batch: Sequence[LiveAnswer]) -> None:
        """Production retrievals, scrubbed too: freshness and query drift are measured on them."""
        for live in batch:
            if live.retrieval is None:
                continue
            retrieval = scrubbed_retrieval(live.retrieval)
            try:
                log_retrieval(
                    self._settings.state / "retrievals",
                    retrieval,
                    config=live.retrieval_config,
                    bundle=live.bundle,
                    segment=live.segment and scrub(live.segment),
                    used_chunk_ids=used_chunks(live.answer or "", live.retrieval.chunks),
                )
            except OSError as error:
                self._last_error = f"retrieval log: {error}"
