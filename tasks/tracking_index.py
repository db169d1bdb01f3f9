"""MLflow: one run per index build, under the experiment of its retrieval config."""

from __future__ import annotations

import json
import logging
import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.index_builds import REPORT, build_folder, build_folders, read_build
from tasks.tracking_address import connected, run_url
from tasks.tracking_experiment import ensure_experiment
from touchstone.index import BuildReport
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KEY = "touchstone.build_key"
_MARKER = "published.json"


def publish_build(settings: Settings, report: BuildReport) -> BuildReport:
    """Send a finished build; sending it again makes no second run. Raises TrackingUnavailable."""
    folder = build_folder(settings.state, report.build_key)
    with connected(settings) as client:
        experiment = ensure_experiment(
            client, settings, f"index/{report.config_name}", _note(report.config_name), {"touchstone.kind": "index"}
        )
        run_id = _stored_run(client, experiment, report) or _create_run(client, experiment, report)
        _log(client, run_id, report, folder)
    url = run_url(settings, experiment, run_id)
    (folder / _MARKER).write_text(json.dumps({"run_id": run_id, "url": url}))
    return report.model_copy(update={"mlflow_run_id": run_id, "mlflow_url": url})


def publish_builds(settings: Settings, *, force: bool = False) -> list[BuildReport]:
    """Send the builds that MLflow does not have yet, oldest first; with `force` all."""
    folders = [folder for folder in build_folders(settings.state) if force or not (folder / _MARKER).exists()]
    return [publish_build(settings, report) for report in filter(None, map(_readable, folders))]


def _readable(folder: Path) -> BuildReport | None:
    """A report that a kill cut, or that another version of touchstone wrote, holds up no other."""
    try:
        return read_build(folder)
    except ValueError as error:
        logging.getLogger("touchstone").warning("%s cannot be published: %s", folder, error)
        return None


def _note(config_name: str) -> str:
    return (
        f"Builds of the index of retrieval config `{config_name}`, one run each: what changed in the source, what was "
        "embedded, what validation and retrieval evaluation found, and whether readers were switched."
    )


def _stored_run(client: MlflowClient, experiment: str, report: BuildReport) -> str | None:
    found = client.search_runs([experiment], f"tags.`{_KEY}` = '{report.build_key}'")
    return min((run.info.run_id for run in found), default=None)


def _create_run(client: MlflowClient, experiment: str, report: BuildReport) -> str:
    start = int(datetime.fromisoformat(report.started_at).timestamp() * 1000)
    mark = "" if report.is_fine else "✗ " if report.index else "! "
    name = f"{mark}{datetime.fromisoformat(report.started_at):%m-%d %H:%M:%S} {report.config_name}"
    return client.create_run(experiment, start, {_KEY: report.build_key}, name).info.run_id


def _log(client: MlflowClient, run_id: str, report: BuildReport, folder: Path) -> None:
    from mlflow.entities import Metric, Param, RunTag

    end = int((datetime.fromisoformat(report.started_at).timestamp() + report.wall_s) * 1000)
    metrics = [Metric(name, value, end, 0) for name, value in _metrics(report).items()]
    params = [Param(name, value) for name, value in _params(report).items()]
    client.log_batch(run_id, metrics, params, [RunTag(name, value) for name, value in _tags(report).items()])
    client.log_artifact(run_id, str(folder / REPORT))
    if (folder / "validation").is_dir():
        client.log_artifacts(run_id, str(folder / "validation"), "validation")
    client.set_terminated(run_id, "FINISHED" if report.index else "FAILED", end)


def _params(report: BuildReport) -> dict[str, str]:
    index = report.index
    found = {
        "config": f"{report.config_name}@{report.config_version}",
        "embedding_model": index.embedding_model if index else "",
        "index_version": index.label if index else "",
        "live_before": report.live_before or "",
        "trigger": report.trigger,
        "content_digest": index.content_digest if index else "",
    }
    return {name: value or "none" for name, value in found.items()}


def _tags(report: BuildReport) -> dict[str, str]:
    verdict = report.retrieval.verdict if report.retrieval else "none"
    return {
        "outcome": report.outcome.value,
        "promoted": str(report.promoted).lower(),
        "retrieval_verdict": verdict,
        "validation": "none" if report.validation is None else "passed" if report.validation.passed else "failed",
        "mlflow.note.content": report.reason,
        "mlflow.source.name": "touchstone reindex",
        "mlflow.source.type": "LOCAL",
    }


def _metrics(report: BuildReport) -> dict[str, float]:
    changes = report.changes
    found: dict[str, Any] = {
        "documents": report.documents,
        "chunks": report.chunks,
        "embedded_chunks": report.embedded_chunks,
        "reused_chunks": report.reused_chunks,
        "quarantined_chunks": len(report.quarantined),
        "cost_usd": report.cost_usd,
        "wall_s": report.wall_s,
        "embed_s": report.embed_s,
        "plan/added": len(changes.added),
        "plan/changed": len(changes.changed),
        "plan/deleted": len(changes.deleted),
        "plan/renamed": len(changes.renamed),
        "plan/unreadable": len(changes.unreadable),
    }
    for comparison in report.retrieval.comparisons if report.retrieval else ():
        found[f"retrieval/{comparison.metric}"] = comparison.new
        found[f"retrieval_live/{comparison.metric}"] = comparison.live
        found[f"retrieval_difference/{comparison.metric}"] = comparison.difference
    if report.retrieval:
        found["retrieval/recall_vs_exact"] = report.retrieval.recall_vs_exact
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
