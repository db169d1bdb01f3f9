"""Where MLflow is: its address, whether it answers, and the links to its pages."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.environment import apply_defaults
from touchstone.errors import TouchstoneError
from touchstone.privacy import redact_secrets
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOCAL_UI = "http://127.0.0.1:5000"


class TrackingUnavailable(TouchstoneError):
    """MLflow did not take the run; the spool keeps it, and `touchstone publish` sends it later."""


def tracking_uri(settings: Settings) -> str:
    """The setting, else MLflow's own variable, else SQLite among the run-time state."""
    default = f"sqlite:///{(settings.state / 'mlflow.db').absolute()}"
    return settings.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default


def run_url(settings: Settings, experiment_id: str, run_id: str) -> str | None:
    """The run's page; None when nobody has said where MLflow's pages are served."""
    base = _ui(settings)
    return base and f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


def compare_url(settings: Settings, experiment_id: str, run_id: str, other_run_id: str) -> str | None:
    """The page that pairs the cases of two runs."""
    base = _ui(settings)
    pair = f"selectedRunUuid={run_id}&compareToRunUuid={other_run_id}"
    return base and f"{base}/#/experiments/{experiment_id}/evaluation-runs?{pair}"


def review_url(settings: Settings, experiment_id: str, queue_id: str) -> str | None:
    """The page on which people answer the questions of a review queue."""
    base = _ui(settings)
    return base and f"{base}/#/experiments/{experiment_id}/review-queue?selectedQueueId={queue_id}"


def ui_command(settings: Settings) -> str | None:
    """What to run to open MLflow's pages on the embedded store; None when a server is there already."""
    uri = tracking_uri(settings)
    if is_http(uri):
        return None
    server = [str(Path(sys.executable).with_name("mlflow")), "server", "--backend-store-uri", uri]
    port = str(urlsplit(settings.mlflow_ui_url or _LOCAL_UI).port or 5000)
    # Without its job workers the server is up in a fraction of the time; nothing here needs them.
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.join([*server, '--workers', '1', '--port', port])}"


def _ui(settings: Settings) -> str | None:
    uri = tracking_uri(settings)
    base = settings.mlflow_ui_url or (uri if is_http(uri) else "")
    return re.sub(r"//[^/@]*@", "//", base).rstrip("/") or None  # links travel further than passwords may


def is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@contextmanager
def connected(settings: Settings) -> Iterator[MlflowClient]:
    """A client; whatever keeps MLflow from answering is a TrackingUnavailable that names it."""
    apply_defaults()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is our own: `--json`
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(settings)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # two lines for each new database
    try:
        if is_http(uri):
            _ping(uri)
        elif not settings.state.exists():
            settings.state.mkdir(parents=True)
        yield MlflowClient(uri)
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = redact_secrets(f"MLflow at {uri}: {error}".splitlines()[0])
        raise TrackingUnavailable(reason) from error


def _ping(uri: str) -> None:
    """Know within seconds that nobody answers: MLflow's own client retries for far longer."""
    import requests

    requests.get(f"{uri.rstrip('/')}/health", timeout=(3, 5))
