"""Live traffic in a real MLflow on SQLite: each request once, scrubbed, and never waited for."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tasks.tracking_traffic import LiveAnswer, TrafficSender
from touchstone.results import Failure, FailureKind, Retrieval, RetrievedChunk
from touchstone.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings(root=tmp_path)
    settings.state.mkdir()
    shutil.copy(mlflow_database, settings.state / "mlflow.db")
    return settings


def live(number: int, **fields: object) -> LiveAnswer:
    given = {"request_id": f"r{number}", "environment": "default", "bundle": "b", "fingerprint": "f", "arm": "champion"}
    given |= {"question": "Mail jo.doe@example.org?", "answer": "Done.", "started_at": time.time(), "seconds": 0.1}
    return LiveAnswer(**(given | fields))  # pyright: ignore[reportArgumentType]


def traces(settings: Settings) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{settings.state / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("touchstone/traffic/default")
    assert experiment
    return list(client.search_traces(locations=[experiment.experiment_id], max_results=500))


def test_every_text_is_scrubbed_and_the_retrieval_is_logged_as_production(settings: Settings) -> None:
    chunk = RetrievedChunk(chunk_id="c", document_id="d", text="Call jo.doe@example.org", rank=1, score=1.0)
    found = Retrieval(
        query="jo.doe@example.org", chunks=(chunk,), latency_ms=1, embedding_model="m", index_version="i@1", search="s"
    )
    failure = Failure(kind=FailureKind.VENDOR_ERROR, reason="jo.doe@example.org")
    sender = TrafficSender(settings)
    sender.offer(live(1, retrieval=found, retrieval_config="help"))
    sender.offer(live(2, answer=None, failure=failure))
    sender.close()
    sent = {trace.info.tags["touchstone.request_id"]: trace for trace in traces(settings)}
    assert set(sent) == {"r1", "r2"}
    assert all("jo.doe" not in trace.to_json() for trace in sent.values())
    assert sent["r2"].info.tags["touchstone.failure"] == "vendor_error"
    logged = "".join(path.read_text() for path in (settings.state / "retrievals").glob("*.jsonl"))
    assert '"run_key":null,"config":"help"' in logged
    assert "jo.doe" not in logged


def test_a_batch_that_is_sent_again_makes_no_second_trace(settings: Settings) -> None:
    sender = TrafficSender(settings)
    batch = [live(number) for number in range(5)]
    sender._send_once(batch[:3], is_retry=False)  # as if the connection broke after three
    sender._send_once(batch, is_retry=True)
    sender.close()
    assert len(traces(settings)) == 5


def test_a_full_queue_drops_and_counts_and_nobody_waits(settings: Settings) -> None:
    away = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:1"})
    sender = TrafficSender(away, capacity=3, retry_s=60)
    started = time.monotonic()
    for number in range(500):
        sender.offer(live(number))
    assert time.monotonic() - started < 5
    report = sender.report()
    assert report["dropped"] > 0
    sender.close()
    assert sender.report()["sent"] == 0
    assert sender.report()["dropped"] == 500
