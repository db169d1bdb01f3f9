"""What one eval looks like as an MLflow run: its params, tags, metrics, dataset and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.plan import EvalManifest
from touchstone.errors import BadInput
from touchstone.privacy import clean_record
from touchstone.report import EvalReport
from touchstone.results import CaseResult, FailureKind

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

TABLE = "cases.json"
CHART = "drift.png"
_DIGEST_LENGTH = 16  # legible in MLflow's column, which takes 36; the whole digest is a param
_MARKS = {"stable": "", "flagged": "⚑ ", "unmeasurable": "? "}
_DIRECTION_MARKS = {"worse": "▼ ", "better": "▲ ", "changed": "◆ "}
_E_VALUE_CAP = 1e12  # evidence may overflow; charts need a finite number


def params_of(manifest: EvalManifest) -> dict[str, str]:
    """What was asked for; never changes, also when the run is resumed."""
    found = {
        "bundle": manifest.bundle_name,
        "model": manifest.model,
        "prompt": manifest.prompt,
        "retrieval": manifest.retrieval,
        "index_version": manifest.index_version,
        "bundle_fingerprint": manifest.bundle_fingerprint,
        "judge_fingerprint": manifest.judge_fingerprint,
        "dataset": manifest.dataset_name,
        "dataset_digest": manifest.dataset_digest,
        "n_cases": str(manifest.n_cases),
        "repeats": str(manifest.request.repeats),
    }
    return {name: value or "none" for name, value in found.items()}


def tags_of(manifest: EvalManifest, report: EvalReport) -> dict[str, str]:
    """What was found, and what to filter by."""
    tags = {
        "verdict": report.verdict,
        "direction": report.direction or "none",
        "provisional": str(report.provisional).lower(),
        "change_point": report.change_point or "none",
        "served_models": _counts(report.served_models),
        "served_fingerprints": _counts(report.fingerprints),
        "purpose": manifest.purpose,
        "environment": manifest.environment,
        "bundle": manifest.bundle_name,
        "dataset": manifest.dataset_name,
        "mlflow.runName": run_name(manifest, report),
        "mlflow.note.content": _note(report),
        "mlflow.source.name": "touchstone eval run",
        "mlflow.source.type": "LOCAL",
        "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
    }
    if manifest.gate_key:
        tags |= {"gate": manifest.gate_key}
    commit = getattr(manifest, "git_commit", "")
    return clean_record(tags | ({"mlflow.source.git.commit": commit} if commit else {}))


def run_name(manifest: EvalManifest, report: EvalReport) -> str:
    """A mark for what is not stable, the start, the bundle: MLflow's lists show little more than ten letters."""
    mark = (
        _DIRECTION_MARKS.get(report.direction or "", "◆ ")
        if report.verdict == "drifted"
        else _MARKS.get(report.verdict, "")
    )
    return f"{mark}{started(manifest):%m-%d %H:%M:%S} {manifest.bundle_name}"


def started(manifest: EvalManifest) -> datetime:
    return datetime.fromisoformat(manifest.created_at)


def metrics_of(report: EvalReport) -> dict[str, float]:
    """Headline means first; what stands before the last slash becomes a section of charts.

    Raises BadInput for a number that is not finite: MLflow would store it, and its charts would lie.
    """
    found = {name: summary.mean for name, summary in report.metrics.items()}
    found |= dict(_evidence(report))
    for name, summary in report.metrics.items():
        found |= {f"{name}/ci_low": summary.ci_low, f"{name}/ci_high": summary.ci_high, f"{name}/n": summary.n}
    for segment, metrics in report.segments.items():
        found |= {f"seg/{_key(segment)}/{name}": summary.mean for name, summary in metrics.items()}
    found |= {"cases/total": report.n_cases, "cases/scored": report.n_scored, "cases/failed": report.n_failed}
    # Zeros too: a kind that never failed is a line at 0, and a repaired run overwrites what it had.
    found |= {f"failures/{kind.value}": report.failures.get(kind.value, 0) for kind in FailureKind}
    found |= {f"pii/{kind}": count for kind, count in report.pii.items()}
    found |= {f"flaky/{name}": share for name, share in report.flaky.items()}
    found |= dict(_spending(report))
    for name, value in found.items():
        if not math.isfinite(value):
            raise BadInput(f"run {report.run_key}: metric {name} is {value}; not published, as it would pass for data")
    return {name: float(f"{value:.6g}") for name, value in found.items()}  # six digits fit MLflow's columns


def dataset_input(manifest: EvalManifest) -> DatasetInput:
    """The golden set under our own digest, for MLflow's dataset column."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=manifest.dataset_name,
        digest=manifest.dataset_digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": manifest.request.dataset}),
        profile=json.dumps({"num_rows": manifest.n_cases}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "eval")])


def write_artifacts(
    folder: Path, manifest: EvalManifest, report: EvalReport, cases: Sequence[CaseResult], chart: bytes | None
) -> None:
    """Files of the run's artifact tab; replaying replaces them."""
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))
    (folder / "report.json").write_text(report.model_dump_json(indent=2))
    metrics = list(report.metrics)
    _write_table(folder / TABLE, cases, metrics, with_trial=manifest.request.repeats > 1)
    _write_parquet(folder / "cases.parquet", cases, metrics)
    if chart is not None:
        (folder / CHART).write_bytes(chart)


def _write_table(path: Path, cases: Sequence[CaseResult], metrics: Sequence[str], *, with_trial: bool) -> None:
    """As `log_table` writes it, which would append to the table of the attempt before.

    MLflow's comparison groups by the first column and compares the second.
    """
    rows = [_row(case, metrics) for case in cases]
    columns = ["case_id", "answer", *metrics[:1], "question", "segment", "failure", *metrics[1:], "cost_usd"]
    columns += ["trial"] if with_trial else []
    data = [[row[column] for column in columns] for row in rows]
    path.write_text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False))


def _write_parquet(path: Path, cases: Sequence[CaseResult], metrics: Sequence[str]) -> None:
    """Everything about every case; what is nested is JSON."""
    import pyarrow
    import pyarrow.parquet

    rows = [_row(case, metrics) | _details(case) for case in cases]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _row(case: CaseResult, metrics: Sequence[str]) -> dict[str, Any]:
    failures = "; ".join(f"{failure.kind.value}: {failure.reason}" for failure in case.failures)
    row: dict[str, Any] = {
        "case_id": case.case_id,
        "trial": case.trial,
        "question": case.question,
        "segment": case.segment,
        "answer": case.answer.text if case.answer else None,
        "failure": failures or None,
        "cost_usd": case.cost_usd,
    }
    return clean_record(row) | {name: score.value if (score := case.scores.get(name)) else None for name in metrics}


def _details(case: CaseResult) -> dict[str, Any]:
    retrieval = case.answer.retrieval if case.answer else None
    return {
        "case_digest": case.case_digest,
        "started_at": case.started_at,
        "scores": json.dumps(clean_record({name: score.model_dump() for name, score in case.scores.items()})),
        "retrieval": json.dumps(clean_record(retrieval.model_dump())) if retrieval else None,
        "calls": json.dumps([call.model_dump(mode="json") for call in case.calls]),
    }


def _evidence(report: EvalReport) -> Iterator[tuple[str, float]]:
    """Shares of the limit, corrected for the number of streams: 1 acts. Whole-set streams, and the strongest of all."""
    streams = report.decision.streams if report.decision else ()
    if streams:
        yield "evidence/strongest", min(max(stream.adjusted for stream in streams), _E_VALUE_CAP)
    for stream in streams:
        if stream.segment == "all":
            yield f"evidence/{stream.metric}.{stream.direction}", min(stream.adjusted, _E_VALUE_CAP)


def _spending(report: EvalReport) -> Iterable[tuple[str, float]]:
    latencies = {"": report.latency_ms} | {f"{step}_": latency for step, latency in report.steps_ms.items()}
    found = {
        "cost/total_usd": report.cost_usd,
        "cost/per_case_usd": report.cost_per_case_usd,
        "cost/per_success_usd": report.cost_per_success_usd,
        "tokens/input": report.input_tokens,
        "tokens/output": report.output_tokens,
        **{
            f"latency_ms/{step}{name}": value
            for step, latency in latencies.items()
            for name, value in latency.model_dump().items()
        },
        "run/calls": report.calls,
        "run/wall_s": report.wall_s,
        "run/cache_hit_share": report.cache_hit_share,
        "run/minimum_detectable_effect": report.minimum_detectable_effect,
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _note(report: EvalReport) -> str:
    direction = f", {report.direction}" if report.direction else ""
    provisional = " (provisional baseline)" if report.provisional else ""
    changed = f"\n\nChange point: `{report.change_point}`" if report.change_point else ""
    return f"**{report.verdict}{direction}**{provisional}: {report.reason}{changed}\n\nRun key `{report.run_key}`"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in found.items()) or "none"


def _key(text: str) -> str:
    """Metric names take letters, digits, and `_-. :` only; a slash would open another section."""
    return "".join(character if character.isalnum() or character in "_-. :" else "_" for character in text)
