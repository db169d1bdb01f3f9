"""MLflow experiments: found by name, made when there is none, brought back when somebody deleted them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.tracking_address import is_http, tracking_uri
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


def traffic_experiment(environment: str) -> str:
    """Name of the experiment that apps send live traffic to, and that the canary reads."""
    return f"traffic/{environment}"


def full_name(name: str) -> str:
    """An experiment's name as MLflow shows it."""
    return f"touchstone/{name}"


def ensure_experiment(client: MlflowClient, settings: Settings, name: str, note: str, tags: dict[str, str]) -> str:
    """Id of the experiment `touchstone/<name>`; its files lie beside the embedded store, or with the server."""
    from mlflow.exceptions import MlflowException

    full = full_name(name)
    found = client.get_experiment_by_name(full)
    if found is None:
        location = None if is_http(tracking_uri(settings)) else settings.state.absolute() / "mlartifacts" / name
        try:
            return client.create_experiment(
                full, str(location) if location else None, tags | {"mlflow.note.content": note}
            )
        except MlflowException:
            found = client.get_experiment_by_name(full)  # somebody else created it meanwhile
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id
