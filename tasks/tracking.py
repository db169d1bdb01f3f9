"""MLflow: finished evals, published in bulk from the spool, as often as it takes, with the same result.

Nothing waits for MLflow: a run is complete on disk first, and stays unpublished until MLflow is seen to hold it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.chart import chart_png
from tasks.plan import EvalManifest
from tasks.spool import Spool, run_folder, run_folders
from tasks.tracking_address import (
    TrackingUnavailable,
    compare_url,
    connected,
    run_url,
    tracking_uri,
    ui_command,
)
from tasks.tracking_experiment import ensure_experiment
from tasks.tracking_run import dataset_input, metrics_of, params_of, run_name, started, tags_of, write_artifacts
from tasks.tracking_traces import CaseTraces, choose_cases, headline_pass_fail, sync_traces, trace_id
from touchstone.errors import BadInput, TouchstoneError
from touchstone.report import EvalReport
from touchstone.results import CaseResult
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "Published",
    "TrackingUnavailable",
    "compare_url",
    "publish_all",
    "publish_run",
    "publish_traces",
    "run_url",
    "tracking_uri",
    "ui_command",
    "unpublished",
]

MARKER = "published.json"
_RUN_KEY = "touchstone.run_key"
_CONTENT = "touchstone.content"  # digest of what was published; another one is a resumed run's
_REVISION = "touchstone.revision"
_COMPLETE = "touchstone.complete"
_METRICS_PER_REQUEST = 500


@dataclass(frozen=True)
class Published:
    """published.json: where a run is in MLflow, and whether all of it is there."""

    run_key: str
    run_id: str
    experiment_id: str
    url: str | None
    compare_url: str | None
    traces_expected: int
    traces_persisted: int
    complete: bool
    wall_s: float


@dataclass(frozen=True)
class _Eval:
    """A finished eval as the spool holds it."""

    spool: Spool
    manifest: EvalManifest
    report: EvalReport
    content: str

    @classmethod
    def read(cls, spool: Spool) -> _Eval:
        try:
            manifest = EvalManifest.model_validate(spool.read_json("manifest.json"))
            report = EvalReport.model_validate(spool.read_json("report.json"))
        except ValueError as error:
            raise BadInput(f"{spool.folder}: manifest.json or report.json cannot be read: {error}") from error
        return cls(spool, manifest, report, _content(spool))

    @property
    def cases(self) -> list[CaseResult]:
        return list(self.spool.cases().values())


def publish_run(settings: Settings, spool: Spool, *, traces: bool = True, chart: bytes | None = None) -> Published:
    """Send a finished run; without its `traces` it stays unpublished until `publish_traces`.

    Idempotent by run key. Calibration runs have no traces. `chart` spares drawing it again. Raises TrackingUnavailable.
    """
    run = _Eval.read(spool)
    with connected(settings) as client, _one_publisher(spool):
        begun = time.monotonic()
        cases = run.cases
        picture = chart
        if picture is None and run.manifest.purpose == "eval":  # others are no points of a drift chart
            picture = chart_png(settings.state, run.manifest, run.report)
        experiment_id = _experiment(client, settings, run.manifest.dataset_name)
        stored = _stored_run(client, experiment_id, run.spool.run_key) or _create_run(client, experiment_id, run)
        _log_content(client, stored, run, cases, picture)
        return _finish(client, settings, stored, run, cases, begun, traces=traces)


def publish_traces(settings: Settings, spool: Spool) -> Published:
    """The cases of a run that was published without them."""
    run = _Eval.read(spool)
    with connected(settings) as client, _one_publisher(spool):
        begun = time.monotonic()
        experiment_id = _experiment(client, settings, run.manifest.dataset_name)
        stored = _stored_run(client, experiment_id, run.spool.run_key)
        if stored is not None:
            return _finish(client, settings, stored, run, run.cases, begun, traces=True)
    return publish_run(settings, spool)


def unpublished(state: Path) -> list[Path]:
    """The folders of finished runs that MLflow does not hold completely as they are now, oldest first."""
    waiting = [folder for folder in run_folders(state) if _is_finished(folder) and not _is_published(Spool(folder))]
    return sorted(waiting, key=lambda folder: Spool(folder).read_json("manifest.json")["created_at"])


def publish_all(settings: Settings, *, force: bool = False) -> list[Published]:
    """Send what is unpublished, oldest first; with `force` all finished runs.

    One broken spool does not hold up the others: its error is raised at the end. MLflow being away is raised at once.
    """
    everything = [folder for folder in run_folders(settings.state) if _is_finished(folder)]
    published: list[Published] = []
    broken: list[TouchstoneError] = []
    for folder in everything if force else unpublished(settings.state):
        try:
            published.append(publish_run(settings, Spool(folder)))
        except TrackingUnavailable:
            raise
        except TouchstoneError as error:
            broken.append(error)
    if broken:
        raise broken[0]
    return published


def _log_content(client: MlflowClient, stored: Run, run: _Eval, cases: list[CaseResult], picture: bytes | None) -> None:
    """Params, tags, metrics, dataset, files. What a run had before it was resumed is overwritten."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = stored.info.run_id
    metrics = metrics_of(run.report)
    revision = int(stored.data.tags.get(_REVISION, "0"))
    if stored.data.tags.get(_CONTENT) != run.content:
        revision += 1
    tags = tags_of(run.manifest, run.report) | {_CONTENT: run.content, _REVISION: str(revision), _COMPLETE: "false"}
    params = [Param(name, value) for name, value in params_of(run.manifest).items()]
    # Tags first: a crash before the metrics must not count as another revision.
    client.log_batch(run_id, params=params, tags=[RunTag(name, value) for name, value in tags.items()])
    at = _ended_ms(run)
    # The revision is the step, so that the last value of a resumed run wins whatever its size.
    points = [Metric(name, value, at, revision) for name, value in metrics.items()]
    for start in range(0, len(points), _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_REQUEST])
    client.log_inputs(run_id, [dataset_input(run.manifest)])
    with tempfile.TemporaryDirectory() as folder:
        write_artifacts(Path(folder), run.manifest, run.report, cases, picture)
        client.log_artifacts(run_id, folder)
    client.set_terminated(run_id, "FINISHED", _ended_ms(run))


def _finish(
    client: MlflowClient,
    settings: Settings,
    stored: Run,
    run: _Eval,
    cases: list[CaseResult],
    begun: float,
    *,
    traces: bool,
) -> Published:
    """Send the traces, count what arrived, and say so in MLflow and in the spool."""
    experiment_id, run_id = stored.info.experiment_id, stored.info.run_id
    previous = _previous_run(client, stored, run.manifest)
    wanted = _wanted_traces(settings, stored, run, cases, previous)
    expected, persisted = len(wanted.results), sync_traces(client, wanted) if traces else 0
    is_complete = persisted == expected
    client.set_tag(run_id, "touchstone.traces", f"{persisted} of {expected}")
    client.set_tag(run_id, _COMPLETE, str(is_complete).lower())
    published = Published(
        run_key=run.spool.run_key,
        run_id=run_id,
        experiment_id=experiment_id,
        url=run_url(settings, experiment_id, run_id),
        compare_url=compare_url(settings, experiment_id, run_id, previous.info.run_id) if previous else None,
        traces_expected=expected,
        traces_persisted=persisted,
        complete=is_complete,
        wall_s=round(time.monotonic() - begun, 3),
    )
    run.spool.write_json(MARKER, json.dumps(asdict(published) | {"content": run.content}, indent=2))
    return published


def _wanted_traces(
    settings: Settings, stored: Run, run: _Eval, cases: list[CaseResult], previous: Run | None
) -> CaseTraces:
    headline = headline_pass_fail(list(run.report.metrics), cases)
    limit = 0 if run.manifest.purpose == "calibration" else settings.trace_limit  # nobody compares cases of those
    before: list[CaseResult] = []
    if previous is not None and len(cases) > limit > 0:
        folder = run_folder(settings.state, previous.data.tags[_RUN_KEY])
        before = list(Spool(folder).cases().values())
    chosen = choose_cases(cases, before, headline, limit)
    results = {trace_id(run.spool.run_key, result): result for result in chosen}
    return CaseTraces(stored.info.experiment_id, stored.info.run_id, run.spool.run_key, results, headline)


def _experiment(client: MlflowClient, settings: Settings, dataset: str) -> str:
    """One experiment per golden set, so that MLflow's comparisons line up."""
    kind = {"mlflow.experimentKind": "genai_development"}
    return ensure_experiment(client, settings, dataset, _experiment_note(dataset), kind)


def _experiment_note(dataset: str) -> str:
    return (
        f"Evals of the golden set `{dataset}`, one run each. What changed? *Evaluation runs*: tick two runs, "
        "then *Compare*: cases side by side, `a_passed` first. The verdict and its reason are each run's description."
    )


def _stored_run(client: MlflowClient, experiment_id: str, run_key: str) -> Run | None:
    """The run of this key, if an earlier attempt made it; of two that raced, always the same one."""
    found = client.search_runs([experiment_id], f"tags.`{_RUN_KEY}` = '{run_key}'")
    return min(found, key=lambda run: run.info.run_id, default=None)


def _create_run(client: MlflowClient, experiment_id: str, run: _Eval) -> Run:
    start = int(started(run.manifest).timestamp() * 1000)
    tags = {_RUN_KEY: run.spool.run_key, _CONTENT: run.content, _REVISION: "0", _COMPLETE: "false"}
    return client.create_run(experiment_id, start, tags, run_name(run.manifest, run.report))


def _previous_run(client: MlflowClient, stored: Run, manifest: EvalManifest) -> Run | None:
    """The last published run of the same bundle on the same golden set that started before this one."""
    same = f"tags.bundle = '{manifest.bundle_name}' AND attributes.start_time < {stored.info.start_time}"
    found = client.search_runs(
        [stored.info.experiment_id], same, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return found[0] if found else None


def _ended_ms(run: _Eval) -> int:
    return int((started(run.manifest).timestamp() + run.report.wall_s) * 1000)


def _content(spool: Spool) -> str:
    """Digest of the report without what publishing adds to it."""
    report = spool.read_json("report.json")
    own = {name: value for name, value in report.items() if not name.startswith("mlflow_")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def _is_finished(folder: Path) -> bool:
    return (folder / "report.json").exists()


def _is_published(spool: Spool) -> bool:
    try:
        marker = spool.read_json(MARKER) if spool.has(MARKER) else {}
        return bool(marker.get("complete")) and marker["content"] == _content(spool)
    except ValueError:
        return False


@contextmanager
def _one_publisher(spool: Spool) -> Iterator[None]:
    """Two publishers of one run would both find no run and create one each."""
    with (spool.folder / ".publishing").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
