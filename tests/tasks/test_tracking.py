"""Publishing to a real MLflow on SQLite: once, completely, or not at all and later."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.publishing import synthetic_eval, synthetic_report
from tasks.chart import chart_png, chart_points
from tasks.plan import EvalManifest
from tasks.spool import Spool
from tasks.tracking import (
    TrackingUnavailable,
    compare_url,
    publish_all,
    publish_run,
    publish_traces,
    tracking_uri,
    ui_command,
    unpublished,
)
from tasks.tracking_run import metrics_of
from tasks.tracking_traces import choose_cases, headline_pass_fail
from touchstone.errors import BadInput
from touchstone.report import EvalReport, MetricSummary
from touchstone.results import FailureKind
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, Trace

DAY_1 = datetime(2026, 11, 1, 6, tzinfo=UTC)
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def settings(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings(root=tmp_path)
    settings.state.mkdir()
    shutil.copy(mlflow_database, settings.state / "mlflow.db")
    return settings


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(settings))


def finished_eval(settings: Settings, day: int = 1, n_cases: int = 8, n_failed: int = 1, passed: float = 0.7) -> Spool:
    at = DAY_1 + timedelta(days=day - 1)
    return synthetic_eval(settings.state, at, n_cases=n_cases, n_failed=n_failed, seed=day, share_passed=passed)


def runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("touchstone/support")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def traces(client: MlflowClient, run_id: str) -> list[Trace]:
    experiment_id = client.get_run(run_id).info.experiment_id
    return list(client.search_traces(locations=[experiment_id], run_id=run_id, max_results=500))


def test_publishing_twice_gives_one_run_with_the_same_content(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings)
    first, again = publish_run(settings, spool), publish_run(settings, spool)

    assert first.complete
    assert again.complete
    assert [run.info.run_id for run in runs(client)] == [first.run_id] == [again.run_id]
    assert len(traces(client, first.run_id)) == 8
    assert len(client.get_metric_history(first.run_id, "answer_ok")) == 1
    assert len(client.get_run(first.run_id).inputs.dataset_inputs) == 1
    table = json.loads(Path(client.download_artifacts(first.run_id, "cases.json")).read_text())
    assert len(table["data"]) == 8


def test_a_publisher_killed_in_the_middle_leaves_one_complete_run_in_the_end(
    settings: Settings, client: MlflowClient
) -> None:
    spool = finished_eval(settings, n_cases=40)
    code = """
        import os, signal, sys
        from pathlib import Path
        from tasks import tracking
        from tasks.spool import Spool
        from touchstone.settings import Settings

        def killed_before_metrics(report):
            os.kill(os.getpid(), signal.SIGKILL)
        tracking.metrics_of = killed_before_metrics
        tracking.publish_run(Settings(root=Path(sys.argv[1])), Spool(Path(sys.argv[2])))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(settings.root), str(spool.folder)])
    assert child.returncode == -signal.SIGKILL
    assert len(runs(client)) == 1
    assert unpublished(settings.state) == [spool.folder]

    published = publish_run(settings, spool)

    assert published.complete
    assert [run.info.run_id for run in runs(client)] == [published.run_id]
    assert runs(client)[0].data.metrics["cases/total"] == 40
    assert len(traces(client, published.run_id)) == 40


def test_missing_and_torn_traces_are_repaired(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings)
    published = publish_run(settings, spool)
    known = [trace.info.trace_id for trace in traces(client, published.run_id)]
    client.delete_traces(published.experiment_id, trace_ids=known[:3])
    client.delete_trace_tag(known[4], "mlflow.trace.spansLocation")

    again = publish_run(settings, spool)

    assert again.traces_persisted == again.traces_expected == 8
    found = traces(client, published.run_id)
    assert sorted(trace.info.trace_id for trace in found) == sorted(known)
    assert all(len(trace.info.assessments) in {1, 9} for trace in found)
    assert all(trace.data.spans for trace in found)


def test_a_resumed_run_replaces_what_was_published_of_it(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings)
    published = publish_run(settings, spool)
    failed = next(case for case in spool.cases().values() if case.failure)
    whole = next(case for case in spool.cases().values() if not case.failure)
    spool.append_case(whole.model_copy(update={"case_id": failed.case_id, "question": failed.question}))
    report = synthetic_report(spool.run_key, list(spool.cases().values()))
    spool.write_json("report.json", report.model_dump_json())
    assert unpublished(settings.state) == [spool.folder]

    again = publish_run(settings, spool)

    assert again.run_id == published.run_id
    metrics = client.get_run(again.run_id).data.metrics
    assert (metrics["cases/failed"], metrics["failures/timeout"]) == (0, 0)
    found = traces(client, again.run_id)
    assert len(found) == 8
    assert all(trace.info.state == "OK" for trace in found)


def test_what_publishing_writes_into_the_report_does_not_unpublish_it(settings: Settings) -> None:
    spool = finished_eval(settings)
    published = publish_run(settings, spool)
    spool.write_json("report.json", json.dumps(spool.read_json("report.json") | {"mlflow_run_id": published.run_id}))
    assert unpublished(settings.state) == []


def test_failures_are_errors_in_traces_and_no_score_anywhere(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings, n_failed=2)
    published = publish_run(settings, spool)

    metrics = client.get_run(published.run_id).data.metrics
    assert metrics["answer_ok/n"] == 6
    assert metrics["failures/timeout"] == 2
    failed = [trace for trace in traces(client, published.run_id) if trace.info.state == "ERROR"]
    assert len(failed) == 2
    for trace in failed:
        (feedback,) = trace.info.assessments
        assert (feedback.name, feedback.value) == ("a_passed", None)
        assert feedback.error.error_code == FailureKind.TIMEOUT
        (event,) = trace.data.spans[0].events
        assert event.attributes["exception.type"] == "timeout"
    rows = json.loads(Path(client.download_artifacts(published.run_id, "cases.json")).read_text())
    failures = [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    assert sum(row["answer_ok"] is None and row["failure"] is not None for row in failures) == 2


def test_a_number_that_is_not_finite_is_refused(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings)
    report = EvalReport.model_validate(spool.read_json("report.json"))
    broken = MetricSummary(mean=float("nan"), ci_low=0.0, ci_high=1.0, n=3)
    with pytest.raises(BadInput, match="answer_ok is nan"):
        metrics_of(report.model_copy(update={"metrics": {"answer_ok": broken}}))


def test_headline_means_come_first_and_sections_follow(settings: Settings) -> None:
    report = EvalReport.model_validate(finished_eval(settings).read_json("report.json"))
    names = list(metrics_of(report))
    assert names[: len(report.metrics)] == list(report.metrics)
    assert {"answer_ok/ci_low", "seg/billing/answer_ok", "latency_ms/p95", "latency_ms/judge_p50"} <= set(names)


def test_traces_are_what_the_compare_page_pairs(settings: Settings, client: MlflowClient) -> None:
    published = publish_run(settings, finished_eval(settings, n_failed=0))
    trace = next(trace for trace in traces(client, published.run_id) if "billing-000" in trace.info.tags["case_id"])

    question = "Case 0: how long do I have to send my station back, and who pays the postage?"
    assert json.loads(trace.info.request_preview) == {"case_id": "billing-000", "question": question}
    assert trace.info.trace_metadata["mlflow.sourceRun"] == published.run_id
    feedback = {one.name: one.value for one in trace.info.assessments}
    assert min(feedback) == "a_passed"
    assert feedback["a_passed"] in {"yes", "no"}
    assert isinstance(feedback["token_f1"], float)
    spans = {span.name: span for span in trace.data.spans}
    assert spans["retrieve"].span_type == "RETRIEVER"
    assert spans["retrieve"].outputs[0]["metadata"]["document_id"] == "orders/return-stations-1"
    assert spans["generate"].get_attribute("mlflow.chat.tokenUsage")["output_tokens"] == 42
    assert spans["generate"].get_attribute("system_fingerprint") == "fp_7c1b"
    assert spans["generate"].llm_cost["total_cost"] == 0.0018
    assert sum(span.name == "judge" for span in trace.data.spans) == 3


def test_the_run_says_when_it_was_made_of_what_and_what_was_found(settings: Settings, client: MlflowClient) -> None:
    published = publish_run(settings, finished_eval(settings))
    run = client.get_run(published.run_id)
    assert run.info.start_time == int(DAY_1.timestamp() * 1000)
    assert run.info.end_time == run.info.start_time + 6200
    assert run.data.params["bundle_fingerprint"] == "3f9a1c0d77e2"
    assert run.data.tags["verdict"] == "stable"
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == ("5e" * 32)[:16]
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "eval")]
    files = {file.path for file in client.list_artifacts(published.run_id)}
    assert files == {"cases.json", "cases.parquet", "drift.png", "manifest.json", "report.json"}


def test_without_its_traces_a_run_stays_unpublished_until_they_follow(settings: Settings, client: MlflowClient) -> None:
    spool = finished_eval(settings)
    assert not publish_run(settings, spool, traces=False).complete
    assert unpublished(settings.state) == [spool.folder]
    published = publish_traces(settings, spool)
    assert published.complete
    assert unpublished(settings.state) == []
    assert client.get_run(published.run_id).data.tags["touchstone.complete"] == "true"


def test_everything_unpublished_is_sent_oldest_first_and_only_once(settings: Settings, client: MlflowClient) -> None:
    late, early = finished_eval(settings, day=2), finished_eval(settings, day=1)
    (settings.state / "runs" / "support-support-unfinished").mkdir()
    assert unpublished(settings.state) == [early.folder, late.folder]

    assert [run.run_key for run in publish_all(settings)] == [early.run_key, late.run_key]

    assert publish_all(settings) == []
    assert len(publish_all(settings, force=True)) == 2
    assert len(runs(client)) == 2


def test_a_broken_spool_does_not_hold_up_the_others(settings: Settings) -> None:
    broken, whole = finished_eval(settings, day=1), finished_eval(settings, day=2)
    (broken.folder / "report.json").write_text("{")
    with pytest.raises(BadInput, match=r"report\.json"):
        publish_all(settings)
    assert unpublished(settings.state) == [broken.folder]
    assert whole.has("published.json")


def test_a_server_that_is_away_is_known_within_seconds_and_costs_nothing(settings: Settings) -> None:
    away = settings.model_copy(update={"mlflow_tracking_uri": NOBODY})
    spool = finished_eval(settings)
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match=r"127\.0\.0\.1"):
        publish_run(away, spool)
    assert time.monotonic() - started < 10
    assert unpublished(settings.state) == [spool.folder]
    assert publish_run(settings, spool).complete


def test_large_runs_send_failures_flips_and_the_same_sample_every_time(settings: Settings) -> None:
    before = list(finished_eval(settings, day=1, n_cases=60, n_failed=0).cases().values())
    now = list(finished_eval(settings, day=2, n_cases=60, n_failed=2, passed=0.5).cases().values())
    assert headline_pass_fail(["token_f1", "answer_ok"], now) == "answer_ok"
    was = {case.case_id: case.scores["answer_ok"].value for case in before}
    flipped = {case.case_id for case in now if not case.failure and case.scores["answer_ok"].value != was[case.case_id]}

    chosen = {case.case_id for case in choose_cases(now, before, "answer_ok", len(flipped) + 7)}

    assert flipped | {case.case_id for case in now if case.failure} <= chosen
    assert len(chosen) == len(flipped) + 7
    same = choose_cases(before, before, "answer_ok", 10)
    assert same == choose_cases(before, [], "answer_ok", 10)


def test_links_lead_to_the_run_and_to_its_comparison_with_the_one_before(settings: Settings) -> None:
    served = settings.model_copy(update={"mlflow_ui_url": "http://me:secret@mlflow.example/"})
    first, second = (publish_run(served, finished_eval(settings, day=day)) for day in (1, 2))
    page = f"http://mlflow.example/#/experiments/{second.experiment_id}"
    assert first.compare_url is None
    assert second.url == f"{page}/runs/{second.run_id}"
    assert second.compare_url == compare_url(served, second.experiment_id, second.run_id, first.run_id)
    assert second.compare_url == (
        f"{page}/evaluation-runs?selectedRunUuid={second.run_id}&compareToRunUuid={first.run_id}"
    )
    assert publish_run(settings, finished_eval(settings, day=3)).url is None
    assert tracking_uri(settings) in (ui_command(settings) or "")
    assert ui_command(settings.model_copy(update={"mlflow_tracking_uri": NOBODY})) is None


def test_the_chart_shows_runs_of_the_same_bundle_up_to_this_one(settings: Settings) -> None:
    spools = [finished_eval(settings, day=day) for day in (1, 2, 3)]
    synthetic_eval(settings.state, DAY_1, n_cases=8, seed=9, bundle="support-hybrid")
    manifest = EvalManifest.model_validate(spools[1].read_json("manifest.json"))
    found = manifest.bundle_name, manifest.bundle_fingerprint, manifest.dataset_name

    points = chart_points(settings.state, *found, manifest.run_key)

    assert [point.run_key for point in points] == [spool.run_key for spool in spools[:2]]
    report = EvalReport.model_validate(spools[1].read_json("report.json"))
    picture = chart_png(settings.state, manifest, report)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_environment_names_the_server_when_the_settings_do_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    assert tracking_uri(settings) == NOBODY
