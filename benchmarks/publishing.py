"""What publishing an eval to MLflow costs, beside the eval itself and beside `mlflow.start_span` + `log_feedback`.

    python -m benchmarks.publishing [--cases 200] [--tracking-uri http://127.0.0.1:5000] [--repeats 3]

Prints CPU and wall seconds of this process, without imports and without the creation of MLflow's tables.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.chart import chart_png
from tasks.plan import EvalManifest, EvalRequest
from tasks.spool import Spool, run_folder
from tasks.tracking import publish_run, publish_traces, tracking_uri
from touchstone.drift import Direction, DriftDecision, StreamEvidence, Verdict
from touchstone.report import EvalReport, Latency, MetricSummary, interval, with_decision
from touchstone.results import Answer, Call, CaseResult, Failure, FailureKind, Retrieval, RetrievedChunk, Score
from touchstone.settings import Settings

EVAL_S = 6.25  # ideal wall of 200 cases x 4 calls at 200 ms, 32 at once, x 1.25
LIMIT = 0.05
SEGMENTS = ("billing", "devices", "orders", "setup")
GRADED = ("token_f1", "ndcg_at_8", "mrr_at_8", "recall_at_8", "precision_at_8", "faithfulness", "refusal", "length")
_WORDS = [
    *("the", "station", "reports", "readings", "every", "five", "minutes", "while", "its", "battery", "lasts", "and"),
    *("the", "plan", "allows", "a", "refund", "within", "fourteen", "days", "unless", "the", "sensor", "was", "opened"),
]


def synthetic_eval(
    state: Path,
    started: datetime,
    *,
    n_cases: int = 200,
    share_passed: float = 0.89,
    n_failed: int = 2,
    seed: int = 1,
    bundle: str = "support",
    dataset: str = "support",
) -> Spool:
    """A finished eval in a spool: five chunks, one generation and three judge calls per case."""
    drawn = random.Random(seed)
    spool = Spool(run_folder(state, f"{bundle}-{dataset}-{started:%Y%m%d-%H%M%S}-{seed:04x}"))
    failed = set(drawn.sample(range(n_cases), n_failed))
    cases = [_case(number, started, drawn, share_passed, number in failed) for number in range(n_cases)]
    for case in cases:
        spool.append_case(case)
    spool.close()
    manifest = EvalManifest(
        run_key=spool.run_key,
        created_at=started.isoformat(),
        environment="default",
        request=EvalRequest(bundle=bundle, dataset=dataset),
        bundle_name=bundle,
        bundle_fingerprint="3f9a1c0d77e2",
        judge_fingerprint="a41b",
        model="openai/gpt-4.1-2025-04-14",
        prompt="support-answer@1.2.0",
        retrieval="support@1.0.0",
        index_version="support_minilm_3f9a@12",
        dataset_name=dataset,
        dataset_digest="5e" * 32,
        n_cases=n_cases,
    )
    spool.write_json("manifest.json", manifest.model_dump_json(indent=2))
    spool.write_json("report.json", synthetic_report(spool.run_key, cases).model_dump_json(indent=1))
    return spool


def synthetic_report(run_key: str, cases: list[CaseResult]) -> EvalReport:
    """The numbers of `cases`, decided to be stable."""
    metrics = ("answer_ok", *GRADED)
    failures = [case.failure for case in cases if case.failure]
    report = EvalReport(
        run_key=run_key,
        n_cases=len(cases),
        n_scored=len(cases) - len(failures),
        n_failed=len(failures),
        failures={failure.kind.value: len(failures) for failure in failures},
        failure_examples={failure.kind.value: failure.reason for failure in failures},
        metrics={name: _summary(cases, name) for name in metrics},
        segments={
            segment: {name: _summary([case for case in cases if case.segment == segment], name) for name in metrics}
            for segment in SEGMENTS
        },
        cost_usd=0.0021 * len(cases),
        cost_per_case_usd=0.0021,
        input_tokens=900 * len(cases),
        output_tokens=60 * len(cases),
        calls=4 * len(cases),
        latency_ms=Latency(p50=201.0, p95=244.0, p99=310.0),
        steps_ms={"judge": Latency(p50=203.0, p95=260.0, p99=333.0)},
        wall_s=6.2,
        served_models={"gpt-4.1-2025-04-14": len(cases)},
        fingerprints={"fp_7c1b": len(cases)},
    )
    return with_decision(report, _stable(report))


def _stable(report: EvalReport) -> DriftDecision:
    means = {"all": report.metrics, **report.segments}
    streams = tuple(
        _stream(name, segment, direction, summary)
        for segment, metrics in means.items()
        for name, summary in metrics.items()
        for direction in (Direction.WORSE, Direction.BETTER)
    )
    reason = "no stream shows evidence of a change"
    return DriftDecision(verdict=Verdict.STABLE, direction=None, reason=reason, provisional=False, streams=streams)


def _stream(name: str, segment: str, direction: Direction, summary: MetricSummary) -> StreamEvidence:
    drawn = random.Random(f"{name}{segment}{direction}{summary.mean}")
    share = 10 ** drawn.uniform(-5, -2)
    return StreamEvidence(
        metric=name,
        segment=segment,
        direction=direction,
        mean_now=summary.mean,
        mean_baseline=0.88 if name == "answer_ok" else 0.75,
        difference=0.001,
        ci_low=-0.03,
        ci_high=0.03,
        n=summary.n,
        n_planned=summary.n,
        e_value=share,
        adjusted=share / 10,
        level=Verdict.STABLE,
        since=None,
        minimum_detectable_effect=0.04,
        change_point=None,
        change_set=None,
    )


def _case(number: int, started: datetime, drawn: random.Random, share_passed: float, has_failed: bool) -> CaseResult:
    case_id = f"{SEGMENTS[number % 4]}-{number:03d}"
    known = {
        "case_id": case_id,
        "question": f"Case {number}: how long do I have to send my station back, and who pays the postage?",
        "segment": SEGMENTS[number % 4],
        "case_digest": f"{number:016x}",
        "started_at": started.timestamp() + number / 32,
    }
    call = Call(
        role="generation",
        requested_model="openai/gpt-4.1-2025-04-14",
        served_model="gpt-4.1-2025-04-14",
        fingerprint="fp_7c1b",
        finish_reason="stop",
        input_tokens=850,
        output_tokens=42,
        cost_usd=0.0018,
        latency_ms=drawn.gauss(200, 15),
        prompt_version="support-answer@1.2.0",
    )
    if has_failed:
        failure = Failure(kind=FailureKind.TIMEOUT, reason="no answer within 60 s, 4 attempts")
        return CaseResult(**known, calls=(call.model_copy(update={"attempts": 4}),), failure=failure)
    judge = call.model_copy(update={"role": "judge", "cost_usd": 0.0001, "input_tokens": 300, "output_tokens": 20})
    # A case's difficulty stays from run to run, so that runs differ in few cases, as real ones do.
    has_passed = random.Random(number).random() < share_passed
    scores = {"answer_ok": Score(value=float(has_passed), explanation="" if has_passed else "`14 days` is missing")}
    scores |= {name: Score(value=round(min(1.0, drawn.betavariate(6, 2)), 4)) for name in GRADED}
    return CaseResult(**known, answer=_answer(drawn), scores=scores, calls=(call, judge, judge, judge))


def _answer(drawn: random.Random) -> Answer:
    chunks = tuple(
        RetrievedChunk(
            chunk_id=f"returns#{rank}",
            document_id=f"orders/return-stations-{rank}",
            text=" ".join(drawn.choices(_WORDS, k=120)),
            rank=rank,
            score=0.9 - rank / 10,
            title="Returning a station",
            source="orders/return-stations.md",
        )
        for rank in range(1, 6)
    )
    retrieval = Retrieval(
        query="send station back", chunks=chunks, latency_ms=12.0, embedding_model="minilm", index_version="v12",
        search="hybrid",
    )  # fmt: skip
    return Answer(text=" ".join(drawn.choices(_WORDS, k=40)), retrieval=retrieval)


def _summary(cases: list[CaseResult], name: str) -> MetricSummary:
    values = [value for case in cases if (score := case.scores.get(name)) and (value := score.value) is not None]
    low, high = interval(values, is_share=name == "answer_ok")
    return MetricSummary(mean=sum(values) / len(values), ci_low=low, ci_high=high, n=len(values))


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    cpu, wall = time.process_time(), time.monotonic()
    found = work()
    return time.process_time() - cpu, time.monotonic() - wall, found


def _chart(settings: Settings, spool: Spool) -> bytes | None:
    manifest = EvalManifest.model_validate(spool.read_json("manifest.json"))
    return chart_png(settings.state, manifest, EvalReport.model_validate(spool.read_json("report.json")))


def _with_live_spans(settings: Settings, cases: list[CaseResult]) -> None:
    """The peer: MLflow's documented way, one live trace and one `log_feedback` per score."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(settings))
    location = (
        None if tracking_uri(settings).startswith("http") else str(settings.state / "mlartifacts" / "peer")
    )  # not in the checkout
    experiment_id = mlflow.create_experiment("peer", location)
    with mlflow.start_run(experiment_id=experiment_id):
        for case in cases:
            with mlflow.start_span("case") as root:
                root.set_inputs({"case_id": case.case_id, "question": case.question})
                for call in case.calls:
                    with mlflow.start_span(call.role, span_type="CHAT_MODEL") as span:
                        span.set_attribute("mlflow.llm.model", call.served_model)
                root.set_outputs(case.answer.text if case.answer else None)
                for name, score in case.scores.items():
                    mlflow.log_feedback(trace_id=root.trace_id, name=name, value=score.value)
        mlflow.flush_trace_async_logging()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tracking-uri", default="")
    parser.add_argument("--peer", action="store_true", help="Measure the peer, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        settings = Settings(root=state, home=Path("."), mlflow_tracking_uri=given.tracking_uri)
        at = datetime(2026, 11, 1, 6, tzinfo=UTC)
        publish_run(settings, synthetic_eval(state, at, n_cases=5, n_failed=0))  # imports, tables
        for number in range(1, given.repeats + 1):
            spool = synthetic_eval(state, at + timedelta(days=number), n_cases=given.cases, seed=number)
            cpu, wall, chart = _timed(lambda spool=spool: _chart(settings, spool))
            print(f"chart    {cpu:5.2f} CPU-s {wall:6.2f} s wall  (the flow draws it once, for Prefect too)")
            cpu, wall, _ = _timed(
                lambda spool=spool, chart=chart: publish_run(settings, spool, traces=False, chart=chart)
            )
            share = wall / EVAL_S
            print(f"run      {cpu:5.2f} CPU-s {wall:6.2f} s wall  {share:6.1%} of the eval (limit {LIMIT:.0%})")
            cpu, wall, _ = _timed(lambda spool=spool: publish_traces(settings, spool))
            print(f"traces   {cpu:5.2f} CPU-s {wall:6.2f} s wall  {1000 * cpu / given.cases:6.1f} CPU-ms per case")
        if given.peer:
            cases = list(spool.cases().values())
            cpu, wall, _ = _timed(lambda: _with_live_spans(settings, cases))
            print(f"peer     {cpu:5.2f} CPU-s {wall:6.2f} s wall  {1000 * cpu / given.cases:6.1f} CPU-ms per case")


if __name__ == "__main__":
    main()
