"""Production traces from a real MLflow store: what is used, what is left out and why, what an app's own SDK sends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tasks import traffic as traffic_task
from tasks.tracking_address import tracking_uri
from tasks.traffic import Arms, Traffic, experiment_name, feedback_value, read_answers, read_traffic, write_scores
from tests.conftest import Project
from tests.tasks.live_traffic import GOOD, LiveTraffic

START = datetime(2026, 11, 2, 9, tzinfo=UTC)


@pytest.fixture
def live(project: Project) -> LiveTraffic:
    """Nobody calls a vendor here, so none is running."""
    return LiveTraffic(project, "http://127.0.0.1:1/v1", feedback=["thumbs"])


def read(live: LiveTraffic, minutes: float = 60) -> Traffic:
    arms = Arms(live.settings.environment, "new-canary", live.candidate.fingerprint, live.champion.fingerprint)
    return read_traffic(live.settings, arms, START, START + timedelta(minutes=minutes), ["thumbs"])


def test_what_cannot_be_used_is_counted_by_reason(live: LiveTraffic) -> None:
    at = START + timedelta(minutes=1)
    live.send(
        [
            live.trace(at, "canary", GOOD, request_id="twice"),
            live.trace(at + timedelta(seconds=1), "champion", GOOD, segment="billing"),
            live.trace(at, "canary", GOOD, request_id=None),
            live.trace(at, "champion", GOOD, request_id=None),
            live.trace(at, "canary", GOOD, fingerprint="0" * 16),
            live.trace(at, "champion", GOOD, fingerprint=None),
            live.trace(at, "canary", GOOD, arm=None),
            live.trace(at, "canary", GOOD, canary_id="another"),
            live.trace(at + timedelta(seconds=2), "canary", GOOD, request_id="twice"),
            live.trace(at, "canary", GOOD, state="IN_PROGRESS"),
            live.trace(START - timedelta(seconds=1), "canary", GOOD),
        ]
    )
    traffic = read(live)
    assert [(found.is_canary, found.segment, found.answered) for found in traffic.requests] == [
        (True, "all", True),
        (False, "billing", True),
    ]
    assert traffic.left_out == {
        "without a request id": 2,
        "of an unknown or another bundle": 2,
        "without an arm (touchstone.arm = champion or canary)": 1,
        "of another canary": 1,
        "with a request id that was there before": 1,
        "not finished": 1,
    }
    assert "2 without a request id" in traffic.in_words()


def test_errors_fall_backs_and_empty_answers_are_traffic_that_the_bundle_did_not_answer(live: LiveTraffic) -> None:
    live.send(
        [
            live.trace(START, "canary", "", state="ERROR"),
            live.trace(START, "canary", GOOD, fallback="true"),
            live.trace(START, "champion", ""),
            live.trace(START, "champion", GOOD, fallback="false"),
        ]
    )
    traffic = read(live)
    assert [found.answered for found in traffic.requests].count(False) == 3
    assert traffic.unanswered == {
        "canary: error": 1,
        "canary: answered by a fall-back": 1,
        "champion: no answer": 1,
    }


def test_all_pages_are_read_and_nothing_outside_the_window(live: LiveTraffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_task, "_PAGE", 20)
    live.serve(START, 30, minutes=10)
    assert len(read(live).requests) == 90
    half = read(live, minutes=5).requests
    assert len(half) == 45
    assert max(found.at for found in half) < START + timedelta(minutes=5)


def test_no_experiment_is_no_traffic(live: LiveTraffic) -> None:
    arms = Arms("another", "new-canary", live.candidate.fingerprint, live.champion.fingerprint)
    assert read_traffic(live.settings, arms, START, START + timedelta(hours=1)).requests == []


def test_assessments_of_the_app_are_feedback_and_our_own_scores_are_not(live: LiveTraffic) -> None:
    first, second = live.trace(START, "canary", GOOD), live.trace(START, "champion", GOOD)
    live.send([first, second])
    known = first[0].trace_id
    for value in ("yes", "no", 9):
        live.assess("thumbs", value, known)
    live.assess("other", "yes", known)
    assert write_scores(live.settings, {known: {"thumbs": 0.0, "good": 1.0}}, "judge-model") == []
    traffic = read(live)
    assert [found.feedback for found in traffic.requests if found.is_canary] == [{"thumbs": 0.5}]
    assert traffic.left_out == {"assessments thumbs that are neither yes/no nor 0 to 1": 1}


@pytest.mark.parametrize(
    ("value", "score"),
    [("yes", 1.0), ("No", 0.0), (True, 1.0), ("false", 0.0), (0.25, 0.25), ("0.5", 0.5), (2, None), (None, None)],
)
def test_feedback_is_yes_no_or_0_to_1(value: object, score: float | None) -> None:
    assert feedback_value(value) == score


@pytest.fixture
def own_mlflow(live: LiveTraffic) -> Iterator[None]:
    """MLflow's own SDK points at the project's store, as in an app."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri(live.settings))
    mlflow.set_experiment(experiment_name(live.settings.environment))
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("own_mlflow")
def test_a_trace_that_an_app_sends_with_mlflow_itself_is_understood(live: LiveTraffic) -> None:
    import mlflow
    from mlflow.entities import Document, SpanType

    tags = {"arm": "canary", "fingerprint": live.candidate.fingerprint, "request_id": "r1", "segment": "billing"}
    with mlflow.start_span("answer", span_type=SpanType.CHAIN) as root:
        root.set_inputs({"question": "How long does a refund take?"})
        mlflow.update_current_trace(tags={f"touchstone.{name}": value for name, value in tags.items()})
        with mlflow.start_span("retrieve", span_type=SpanType.RETRIEVER) as span:
            span.set_outputs([Document("Five days.", {"document_id": "refunds"}, "refunds#0")])
        root.set_outputs("Five days.")
    mlflow.flush_trace_async_logging()

    arms = Arms(live.settings.environment, "new-canary", live.candidate.fingerprint, live.champion.fingerprint)
    now = datetime.now(UTC)
    (found,) = read_traffic(live.settings, arms, now - timedelta(hours=1), now + timedelta(hours=1)).requests
    assert (found.request_id, found.is_canary, found.segment, found.answered) == ("r1", True, "billing", True)
    traced = read_answers(live.settings, [found.trace_id])[found.trace_id]
    assert (traced.question, traced.answer.text) == ("How long does a refund take?", "Five days.")
    assert traced.answer.retrieval is not None
    assert [(c.document_id, c.text) for c in traced.answer.retrieval.chunks] == [("refunds", "Five days.")]
