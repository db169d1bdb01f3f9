"""How far label work is: labels that are there, answers that are missing, and the queues in MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.label_files import read_labels
from tasks.label_queue import Progress, read_progress
from tasks.loading import GoldenSet
from tasks.tracking_address import TrackingUnavailable
from touchstone.errors import Unmeasurable
from touchstone.settings import Settings


@dataclass(frozen=True)
class MetricStanding:
    """Of one metric: labels, who gave them, and how many answers they are about."""

    labels: int
    people: int
    answers: int


@dataclass(frozen=True)
class LabelStatus:
    """`wanted`: labelled answers per metric, below which a calibration is provisional."""

    metrics: dict[str, MetricStanding]
    wanted: int
    queues: tuple[Progress, ...]
    no_queues: str = ""  # why the queues are not known


def label_status(settings: Settings, golden: GoldenSet) -> LabelStatus:
    """Labels are counted without MLflow too."""
    labels, policy = read_labels(golden), golden.policy.labels
    metrics = {}
    for question in policy.questions:
        own = [label for label in labels if label.metric == question.metric]
        answers = {(label.source, label.id, label.answer) for label in own}
        metrics[question.metric] = MetricStanding(len(own), len({label.by for label in own}), len(answers))
    wanted = policy.calibration.minimum_labels
    try:
        return LabelStatus(metrics, wanted, tuple(read_progress(settings, golden.name)))
    except (TrackingUnavailable, Unmeasurable) as error:
        return LabelStatus(metrics, wanted, (), str(error))
