"""The week's queue in MLflow: tags on the chosen traces, and a review queue in which people answer the questions.

Tags say what was chosen and with which weight; the review queue (MLflow's Review page) shows the traces one after
the other beside the questions, and its answers are assessments of people on the traces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.labelled_traces import (
    QUEUE_TAG,
    STRATUM_TAG,
    WEIGHT_TAG,
    human_words,
    judge_scores,
    search,
    traffic_experiment_id,
)
from tasks.loading import GoldenSet
from tasks.tracking_address import connected
from touchstone.errors import BadInput
from touchstone.label_policy import LabelPolicy, Question
from touchstone.label_sampling import Candidate, Sample, Week
from touchstone.labels import Label
from touchstone.scorers import is_refusal
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities import TraceInfo

_EMPTY = {"", "null", '""'}  # as JSON: the answer "null" has quotes


@dataclass(frozen=True)
class WeekOfTraffic:
    """What can be labelled of a week, and what cannot, by reason."""

    candidates: list[Candidate]
    left_out: dict[str, int]


@dataclass(frozen=True)
class ReviewQueue:
    """Where people find the traces."""

    experiment_id: str
    queue_id: str


@dataclass(frozen=True)
class Progress:
    """How far people are with a queue."""

    name: str
    pending: int
    complete: int
    declined: int


def queue_name(golden: GoldenSet, week: str) -> str:
    """Value of the tag touchstone.label_queue, and name of the queue, such as support/2026-W48."""
    if not re.fullmatch(r"[\w.-]{1,200}", golden.name):  # it becomes part of a filter of MLflow
        raise BadInput(f"{golden.path}: a folder whose name has only letters, digits, . _ and - can name a queue")
    return f"{golden.name}/{week}"


def read_week(
    settings: Settings, policy: LabelPolicy, week: Week, queue: str, labelled: Collection[str]
) -> WeekOfTraffic:
    """The week's live answers that nobody has labelled and no other queue has taken.

    Raises TrackingUnavailable, and Unmeasurable where there is no live traffic at all.
    """
    start, end = (int(when.timestamp() * 1000) for when in (week.start, week.end))
    candidates, left_out = [], Counter[str]()
    with connected(settings) as client:
        experiment_id = traffic_experiment_id(client, settings)
        wanted = f"trace.timestamp_ms >= {start} AND trace.timestamp_ms < {end}"
        for info in search(client, experiment_id, wanted):
            if why := _unusable(info, policy, queue, labelled):
                left_out[why] += 1
            else:
                candidates.append(_candidate(info, policy))
    return WeekOfTraffic(candidates, dict(left_out))


def mark(settings: Settings, policy: LabelPolicy, queue: str, sample: Sample) -> ReviewQueue:
    """Tag the chosen traces and put them into the review queue; done again, it changes nothing.

    Raises TrackingUnavailable, and BadInput when MLflow has a question of this name with another scale.
    """
    from mlflow.tracing.client import TracingClient

    with connected(settings) as client:
        store = TracingClient(client.tracking_uri).store
        experiment_id = traffic_experiment_id(client, settings)
        schema_ids = [_schema_id(store, experiment_id, question) for question in policy.questions]
        for one in sample.chosen:
            trace_id = one.candidate.trace_id
            client.set_trace_tag(trace_id, WEIGHT_TAG, repr(one.weight))
            client.set_trace_tag(trace_id, STRATUM_TAG, one.candidate.stratum[:250])
            client.set_trace_tag(trace_id, QUEUE_TAG, queue)
        queue_id = _queue_id(store, experiment_id, queue, policy, schema_ids)
        store.add_items_to_review_queue(queue_id, item_ids=[one.candidate.trace_id for one in sample.chosen])
    return ReviewQueue(experiment_id, queue_id)


def queued_traces(settings: Settings, queue: str) -> list[str]:
    """Ids of the traces in a queue."""
    with connected(settings) as client:
        experiment_id = traffic_experiment_id(client, settings)
        return [info.trace_id for info in search(client, experiment_id, f"tags.`{QUEUE_TAG}` = '{queue}'")]


def read_progress(settings: Settings, dataset: str) -> list[Progress]:
    """Every queue of a golden set, as people left it on MLflow's Review page, newest first."""
    from mlflow.tracing.client import TracingClient

    with connected(settings) as client:
        store = TracingClient(client.tracking_uri).store
        found = []
        for queue in _queues(store, traffic_experiment_id(client, settings), dataset):
            counts = Counter(str(item.status) for item in _items(store, queue.queue_id))
            found.append(Progress(queue.name, counts["pending"], counts["complete"], counts["declined"]))
    return found


def tick_off(settings: Settings, policy: LabelPolicy, dataset: str, labels: Sequence[Label]) -> int:
    """Mark done on the Review page whose every question has a label, wherever it was given; how many."""
    from mlflow.tracing.client import TracingClient

    said: dict[str, dict[str, str]] = {}
    for label in labels:
        if label.source == "trace":
            said.setdefault(label.id, {})[label.metric] = label.by
    asked, ticked = {question.metric for question in policy.questions}, 0
    with connected(settings) as client:
        store = TracingClient(client.tracking_uri).store
        for queue in _queues(store, traffic_experiment_id(client, settings), dataset):
            for item in _items(store, queue.queue_id, "pending"):
                people = said.get(item.item_id, {})
                if asked <= people.keys():
                    by = people[policy.questions[0].metric]
                    store.set_review_queue_item_status(
                        queue.queue_id, item_id=item.item_id, status="complete", completed_by=by
                    )
                    ticked += 1
    return ticked


def _queues(store: Any, experiment_id: str, dataset: str) -> list[Any]:
    found, token = [], None
    while True:
        page = store.list_review_queues(experiment_id, page_token=token)
        found += [queue for queue in page if queue.name.startswith(f"{dataset}/")]
        token = page.token
        if not token:
            return found


def _items(store: Any, queue_id: str, status: str | None = None) -> list[Any]:
    found, token = [], None
    while True:
        page = store.list_review_queue_items(queue_id, status=status, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _unusable(info: TraceInfo, policy: LabelPolicy, queue: str, labelled: Collection[str]) -> str:
    """Why nobody is asked about the trace; empty: it can be asked about."""
    if info.state.value != "OK" or (info.response_preview or "").strip() in _EMPTY:
        return "without an answer"
    if '"question"' not in (info.request_preview or ""):
        return "without a question"
    if info.tags.get(QUEUE_TAG, queue) != queue:
        return "in another queue"
    asked = {question.metric for question in policy.questions}
    if info.trace_id in labelled or any(said.name in asked for said in human_words(info)):
        return "labelled already"
    return ""


def _candidate(info: TraceInfo, policy: LabelPolicy) -> Candidate:
    """The worst of the scores that the questions are compared with decides the band."""
    scores, tags = judge_scores(info), info.tags
    known = [scores[question.judged_by][0] for question in policy.questions if question.judged_by in scores]
    return Candidate(
        trace_id=info.trace_id,
        segment=tags.get("touchstone.segment") or "all",
        arm=tags.get("touchstone.arm") or "no arm",
        bundle=tags.get("touchstone.bundle") or "unknown",
        refused=is_refusal(info.response_preview or ""),
        judge_score=min(known) if known else None,
    )


def _schema_id(store: Any, experiment_id: str, question: Question) -> str:
    """The question in MLflow, made where there is none, worded as it is now."""
    from mlflow.exceptions import MlflowException
    from mlflow.genai.label_schemas import InputCategorical, InputPassFail

    is_graded = question.scale == "one_to_five"
    given = InputCategorical(list("12345")) if is_graded else InputPassFail("Pass", "Fail")
    try:
        found = store.get_label_schema_by_name(experiment_id, question.metric)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = store.create_label_schema(
            experiment_id,
            name=question.metric,
            type="feedback",
            input=given,
            instruction=question.asks,
            enable_comment=True,
        )
    if type(found.input) is not type(given):
        raise BadInput(
            f"policy.yaml: field labels.questions: MLflow has a question {question.metric} with another scale than "
            f"{question.scale}, and cannot change it; give this one another metric's name"
        )
    if found.instruction != question.asks:
        store.update_label_schema(found.schema_id, instruction=question.asks)
    return found.schema_id


def _queue_id(store: Any, experiment_id: str, queue: str, policy: LabelPolicy, schema_ids: list[str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return store.get_review_queue_by_name(experiment_id, name=queue).queue_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    made = store.create_review_queue(
        experiment_id, name=queue, queue_type="custom", users=list(policy.reviewers), schema_ids=schema_ids
    )
    return made.queue_id
