"""Every week, ask people about a sample of what production answered: their labels calibrate the judge."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from tasks.announce_labels import create_labels_artifact, emit_labels_event, in_words
from tasks.environment import apply_defaults
from tasks.labelling import sample_week
from tasks.loading import load_golden_set, load_settings
from touchstone.label_sampling import Week


def _flow_run_name() -> str:
    """`label-sampling support`, also where a path was given."""
    return f"label-sampling {Path(flow_run.parameters['dataset']).name}"


@flow(name="label-sampling", flow_run_name=_flow_run_name)
def label_sampling(dataset: str = "support", week: str | None = None) -> State:
    """Queue a stratified sample of a week's live answers in MLflow, for people to label.

    A week is queued once: run again, it says what was queued. Automations listen to touchstone.labels.sampled.

    Args:
        dataset: A name in datasets/, or a folder: its policy.yaml (field labels) says how many, and what is asked.
        week: An ISO week such as 2026-W48; without one, the last that is over.
    """
    apply_defaults()
    settings = load_settings()
    golden = load_golden_set(settings.root, dataset)
    chosen = Week.parse(week) if week else Week.before(datetime.now(UTC))
    queued = sample_week(settings, golden, chosen)

    log = get_run_logger()
    log.info("%s", in_words(queued))
    for warning in queued.warnings:
        log.warning("%s", warning)
    emit_labels_event(queued)
    create_labels_artifact(queued)
    return Completed(name="Queued" if queued.n else "Empty", message=in_words(queued))
