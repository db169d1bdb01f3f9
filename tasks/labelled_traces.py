"""Traces of live traffic as label work sees them: their tags, what people and judges said of them, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.tracking_address import connected
from tasks.traffic import OWN_SOURCE, TracedAnswer, experiment_name, feedback_value, read_answers
from touchstone.errors import Unmeasurable
from touchstone.label_policy import LabelPolicy, Question
from touchstone.labels import Label, Value, person, read_value
from touchstone.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Assessment, Feedback, TraceInfo

QUEUE_TAG, WEIGHT_TAG, STRATUM_TAG = "touchstone.label_queue", "touchstone.label_weight", "touchstone.label_stratum"
_PAGE, _BATCH = 500, 100


@dataclass(frozen=True)
class LabelledTrace:
    """What is known of one trace. `scores` are judges', 0 to 1, by metric, with the model that gave them."""

    traced: TracedAnswer
    weight: float | None
    scores: Mapping[str, tuple[float, str]]
    said: tuple[Assessment, ...] = ()

    @property
    def contexts(self) -> tuple[str, ...]:
        retrieval = self.traced.answer.retrieval
        return tuple(chunk.text for chunk in retrieval.chunks) if retrieval else ()

    def label(self, trace_id: str, question: Question, value: Value, by: str, at: datetime, note: str = "") -> Label:
        """What a person said, with the texts it was said of."""
        score, judge = self.scores.get(question.judged_by, (None, ""))
        return Label(
            id=trace_id,
            source="trace",
            question=self.traced.question,
            answer=self.traced.answer.text,
            contexts=self.contexts,
            metric=question.metric,
            value=value,
            by=by,
            at=at,
            note=note,
            weight=self.weight,
            judge_score=score,
            judge=judge,
        ).scrubbed()


@dataclass
class HumanWords:
    """Labels from MLflow's pages, and what of them is of no use, by reason."""

    labels: list[Label] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def traffic_experiment_id(client: MlflowClient, settings: Settings) -> str:
    """Where live traffic is. Raises Unmeasurable when there is none."""
    name = experiment_name(settings.environment)
    found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage == "deleted":
        raise Unmeasurable(
            f"MLflow has no live traffic: there is no experiment {name} (docs/serving.md says how an app sends it; "
            "TOUCHSTONE_ENVIRONMENT names another environment)"
        )
    return found.experiment_id


def search(client: MlflowClient, experiment_id: str, filter_string: str) -> Iterator[TraceInfo]:
    """The traces, page by page, without their spans."""
    token: str | None = None
    while True:
        page = client.search_traces(
            locations=[experiment_id],
            filter_string=filter_string,
            order_by=["timestamp_ms ASC"],
            max_results=_PAGE,
            page_token=token,
            include_spans=False,
        )
        yield from (trace.info for trace in page)
        token = page.token
        if not token:
            return


def read_traces(settings: Settings, trace_ids: Sequence[str]) -> dict[str, LabelledTrace]:
    """Traces of this environment's live traffic by id, without those that say no question and answer."""
    from mlflow.tracing.client import TracingClient

    found: dict[str, TraceInfo] = {}
    ids = list(dict.fromkeys(trace_ids))
    with connected(settings) as client:
        experiment_id, store = traffic_experiment_id(client, settings), TracingClient(client.tracking_uri).store
        for start in range(0, len(ids), _BATCH):
            infos = store.batch_get_trace_infos(ids[start : start + _BATCH])
            found |= {info.trace_id: info for info in infos if info.experiment_id == experiment_id}
    texts = read_answers(settings, list(found))
    return {
        trace_id: LabelledTrace(texts[trace_id], weight_of(info), judge_scores(info), tuple(human_words(info)))
        for trace_id, info in found.items()
        if trace_id in texts and texts[trace_id].answer.text.strip()
    }


def read_human_words(settings: Settings, policy: LabelPolicy, queue: str) -> HumanWords:
    """What people said in MLflow of the traces in a queue (all of a golden set: `queue` ends with /)."""
    compare = f"LIKE '{queue}%'" if queue.endswith("/") else f"= '{queue}'"
    with connected(settings) as client:
        experiment_id = traffic_experiment_id(client, settings)
        found = search(client, experiment_id, f"tags.`{QUEUE_TAG}` {compare}")
        # LIKE takes an underscore of a name for any letter.
        infos = [info for info in found if info.tags[QUEUE_TAG].startswith(queue) and human_words(info)]
    words = HumanWords()
    traces = read_traces(settings, [info.trace_id for info in infos])
    for info in infos:
        for said in human_words(info):
            question = policy.question(said.name)
            trace = traces.get(info.trace_id)
            if question is None or trace is None:
                why = f"of {said.name}, which is not asked" if trace else "of a trace without question and answer"
                words.left_out[why] = words.left_out.get(why, 0) + 1
                continue
            try:
                value = read_value(_value(said), question)
            except ValueError:
                why = f"{said.name} that are not on its scale"
                words.left_out[why] = words.left_out.get(why, 0) + 1
                continue
            at = datetime.fromtimestamp((said.last_update_time_ms or said.create_time_ms or 0) / 1000, UTC)
            words.labels.append(trace.label(info.trace_id, question, value, source_of(said), at, said.rationale or ""))
    return words


def human_words(info: TraceInfo) -> list[Assessment]:
    """What people said of a trace, without what they have taken back."""
    return [one for one in info.assessments if one.source.source_type == "HUMAN" and _stands(one)]


def judge_scores(info: TraceInfo) -> dict[str, tuple[float, str]]:
    """Scores from 0 to 1 that our judges left on the trace, the last of each metric, with the judge's model."""
    found: dict[str, tuple[float, str]] = {}
    for one in sorted(info.assessments, key=lambda one: one.create_time_ms or 0):
        judge = one.source.source_id or ""
        if one.source.source_type != "LLM_JUDGE" or not judge.startswith(OWN_SOURCE) or not _stands(one):
            continue
        score = feedback_value(_value(one))
        if score is not None:
            found[one.name] = (score, judge.removeprefix(OWN_SOURCE))
    return found


def weight_of(info: TraceInfo) -> float | None:
    """As the sampling wrote it."""
    try:
        weight = float(info.tags.get(WEIGHT_TAG, ""))
    except ValueError:
        return None
    return weight if 0 < weight < float("inf") else None


def write_human_words(settings: Settings, labels: Sequence[Label], policy: LabelPolicy) -> int:
    """Labels as people's assessments on their traces, as if they had been made there; how many were new or changed.

    Raises TrackingUnavailable. Repeating it changes nothing.
    """
    from mlflow.tracing.client import TracingClient

    by_trace: dict[str, list[Label]] = {}
    for label in labels:
        if label.source == "trace":
            by_trace.setdefault(label.id, []).append(label)
    traces = read_traces(settings, list(by_trace))
    written = 0
    with connected(settings) as client:
        tracing = TracingClient(client.tracking_uri)
        for trace_id, trace in traces.items():
            known = {(one.name, source_of(one)): one for one in trace.said}
            for label in by_trace[trace_id]:
                question, before = policy.question(label.metric), known.get((label.metric, label.by))
                if question is None or (before is not None and _says(before, label, question)):
                    continue
                if before is None:
                    tracing.log_assessment(trace_id, _feedback(label, question))
                elif before.assessment_id is not None:
                    tracing.update_assessment(trace_id, before.assessment_id, _feedback(label, question))
                written += 1
    return written


def source_of(said: Assessment) -> str:
    """Who said it, as labels name people. MLflow calls everybody `default` while it asks nobody to sign in."""
    return person(said.source.source_id or "default")


def _says(said: Assessment, label: Label, question: Question) -> bool:
    try:
        return read_value(_value(said), question) == label.value and (said.rationale or "") == label.note
    except ValueError:
        return False


def _feedback(label: Label, question: Question) -> Feedback:
    from mlflow.entities import AssessmentSource, Feedback

    value = label.value == "pass" if question.scale == "pass_fail" else str(label.value)
    source = AssessmentSource("HUMAN", label.by)
    # An empty note is sent: MLflow keeps the old one where it is given none.
    return Feedback(name=label.metric, value=value, source=source, rationale=label.note)


def _value(said: Assessment) -> Any:
    feedback = getattr(said, "feedback", None)
    return feedback.value if feedback else None


def _stands(said: Assessment) -> bool:
    return getattr(said, "valid", True) is not False and getattr(said, "feedback", None) is not None
