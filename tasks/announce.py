"""What Prefect shows of an eval: events on transitions, a Markdown artifact, the chart."""

from __future__ import annotations

import base64
import re
from typing import Any

from tasks.environment import apply_defaults
from tasks.prefect_sinks import acreate_markdown_artifact, emit_event
from touchstone.report import EvalReport, MetricSummary, personal_data


def emit_events(report: EvalReport, bundle: str, dataset: str) -> None:
    """`touchstone.eval.completed` for every run; `touchstone.drift.*` only when a level changes."""
    apply_defaults()
    resource = {
        "prefect.resource.id": f"touchstone.eval.{bundle}.{dataset}",
        "prefect.resource.name": f"{bundle} on {dataset}",
        "touchstone.bundle": bundle,
        "touchstone.dataset": dataset,
    }
    payload = event_payload(report, bundle, dataset)
    emit_event(event="touchstone.eval.completed", resource=resource, payload=payload)
    transitions = report.decision.transitions if report.decision else ()
    for kind in dict.fromkeys(transition.kind for transition in transitions):
        touched = [transition.stream for transition in transitions if transition.kind == kind]
        emit_event(event=f"touchstone.drift.{kind}", resource=resource, payload={**payload, "streams": touched})


def event_payload(report: EvalReport, bundle: str, dataset: str) -> dict[str, Any]:
    """A whole, flat payload: a trigger that names a missing key creates no run, and says so nowhere."""
    return {
        "bundle": bundle,
        "dataset": dataset,
        "run_key": report.run_key,
        "verdict": report.verdict,
        "direction": report.direction,
        "reason": report.reason,
        "provisional": report.provisional,
        "change_point": report.change_point,
        "metrics": {name: summary.mean for name, summary in report.metrics.items()},
        "n_cases": report.n_cases,
        "n_failed": report.n_failed,
        "cost_usd": report.cost_usd,
        "mlflow_url": report.mlflow_url,
        "mlflow_compare_url": report.mlflow_compare_url,
    }


async def create_artifact(report: EvalReport, bundle: str, dataset: str, chart: bytes | None) -> None:
    """The verdict, its table and its chart on the flow run's page, under one key per bundle and golden set."""
    apply_defaults()
    text = markdown(report)
    if chart is not None:
        text += f"\n\n![score and evidence, run by run](data:image/png;base64,{base64.b64encode(chart).decode()})"
    await acreate_markdown_artifact(
        markdown=text,
        key=_artifact_key(f"eval-{bundle}-{dataset}"),
        description=f"{report.verdict}: {report.reason}",
    )


def markdown(report: EvalReport) -> str:
    """The verdict, its numbers, and where to look next."""
    lines = [
        f"## {headline(report)}",
        "",
        report.reason,
        "",
        "| metric | baseline | now | 95 % interval | n | evidence (act at 1) | level |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    lines += [_row(name, summary, report) for name, summary in report.metrics.items()]
    lines += ["", f"{report.n_scored} of {report.n_cases} cases scored. {_failures(report)}{_spent(report)}"]
    if found := personal_data(report):
        lines += ["", f"Personal data in the answers, scrubbed before they were stored: {found}."]
    if report.mlflow_url:
        compare = f" · [Compare with the run before]({report.mlflow_compare_url})" if report.mlflow_compare_url else ""
        lines += ["", f"[Open the run in MLflow]({report.mlflow_url}){compare}"]
    lines += ["", f"Run key `{report.run_key}`: `touchstone eval show {report.run_key}`"]
    return "\n".join(lines)


def headline(report: EvalReport) -> str:
    """One line: verdict, direction, whether the baseline is provisional."""
    direction = f", {report.direction}" if report.direction else ""
    provisional = " (provisional baseline)" if report.provisional else ""
    return f"{report.verdict.upper()}{direction}{provisional}"


def strongest_stream(report: EvalReport, metric: str) -> Any | None:
    """The stream of a metric, over all cases, with the most evidence."""
    streams = [
        stream
        for stream in (report.decision.streams if report.decision else ())
        if stream.metric == metric and stream.segment == "all"
    ]
    return max(streams, key=lambda stream: stream.adjusted, default=None)


def _row(name: str, summary: MetricSummary, report: EvalReport) -> str:
    stream = strongest_stream(report, name)
    was = f"{stream.mean_baseline:.3f}" if stream else "–"
    evidence = f"{stream.adjusted:.3g} ({stream.direction})" if stream else "–"
    level = stream.level if stream else "–"
    interval = f"{summary.ci_low:.3f} to {summary.ci_high:.3f}"
    return f"| {name} | {was} | {summary.mean:.3f} | {interval} | {summary.n} | {evidence} | {level} |"


def _failures(report: EvalReport) -> str:
    if not report.failures:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.failures.items())
    first = next(iter(report.failure_examples.values()), "")
    return f"Failed: {kinds} (e.g. {first}). "


def _spent(report: EvalReport) -> str:
    cost = "cost unknown" if report.cost_usd is None else f"{report.cost_usd:.4f} USD"
    p95 = f", p95 {report.latency_ms.p95:.0f} ms" if report.latency_ms.p95 is not None else ""
    return f"{report.calls} calls, {cost}, {report.wall_s:.1f} s{p95}."


def _artifact_key(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
