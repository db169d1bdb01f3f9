"""From live traffic to labels and back: a real MLflow store, its review queue, files, labels.jsonl and the ledger."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.announce_labels import event_payload, markdown
from tasks.label_files import read_labels, write_rows
from tasks.label_import import Imported, import_file, import_from_mlflow
from tasks.label_queue import read_progress
from tasks.labelling import sample_week
from tasks.ledger import Ledger
from tasks.loading import GoldenSet, load_golden_set, load_settings
from tasks.tracking_address import connected
from tasks.tracking_spans import send_traces
from tasks.tracking_traffic import LiveAnswer, build_trace
from tasks.traffic import experiment_name, write_scores
from tests.conftest import Project, VendorControl
from touchstone.errors import BadInput, Unmeasurable
from touchstone.label_sampling import Week
from touchstone.labels import labels_subject, person
from touchstone.ledger import EventKind, LedgerEvent
from touchstone.results import Failure, FailureKind, Retrieval, RetrievedChunk

WEEK = Week.parse("2026-W47")
JUDGE = "openai/judge-2026-01-15"
CASES = [{"id": "refunds", "question": "How long does a refund take?", "reference": "Five days."}]
KNOWN, UNKNOWN = "A refund takes five days.", "I do not know that; please contact support."


class Desk:
    """A golden set with two questions and three answers a week, and the live traffic of one week."""

    def __init__(self, project: Project, **labels: Any) -> None:
        self.project = project
        policy = {
            "per_week": 4,
            "minimum_per_stratum": 1,
            "questions": [
                {"metric": "relevance", "asks": "To the point?", "judge": "judge_relevance"},
                {"metric": "grade", "asks": "How good?", "scale": "one_to_five"},
            ],
        }
        self.dataset = project.golden_set("help", CASES, labels=policy | labels)
        self.settings = load_settings()
        with connected(self.settings) as client:
            name = experiment_name(self.settings.environment)
            self.experiment_id = client.create_experiment(name, str(project.state / "mlartifacts"))

    @property
    def golden(self) -> GoldenSet:
        return load_golden_set(self.settings.root, self.dataset)

    def serve(self, answers: list[str | None], start: datetime = WEEK.start, segment: str = "billing") -> list[str]:
        """One request an hour, None failing; the trace ids."""
        from mlflow.tracing.client import TracingClient

        traces = [
            build_trace(self.experiment_id, self._live(start, number, answer, segment))
            for number, answer in enumerate(answers)
        ]
        with connected(self.settings) as client:
            send_traces(TracingClient(client.tracking_uri).store, self.experiment_id, traces)
        return [info.trace_id for info, _ in traces]

    def _live(self, start: datetime, number: int, answer: str | None, segment: str) -> LiveAnswer:
        chunk = RetrievedChunk(chunk_id="r#0", document_id="r", text="Refunds: five days.", rank=1, score=0.9)
        question = f"How long does refund {number} take? Mail jo.doe@example.org"
        return LiveAnswer(
            request_id=f"{segment}-{start:%m%d}-{number}",
            environment=self.settings.environment,
            bundle="support",
            fingerprint="f",
            arm="champion",
            question=question,
            started_at=(start + timedelta(hours=number)).timestamp(),
            seconds=0.2,
            answer=answer,
            failure=None if answer else Failure(kind=FailureKind.TIMEOUT, reason="late"),
            retrieval=Retrieval(
                query="q", chunks=(chunk,), latency_ms=1, embedding_model="m", index_version="i", search="s"
            ),
            segment=segment,
        )

    def say(self, trace_id: str, metric: str, value: Any, by: str, note: str | None = None) -> None:
        """An answer as MLflow's Review page stores it."""
        from mlflow.entities import AssessmentSource, Feedback
        from mlflow.tracing.client import TracingClient

        with connected(self.settings) as client:
            said = Feedback(name=metric, value=value, source=AssessmentSource("HUMAN", by), rationale=note)
            TracingClient(client.tracking_uri).log_assessment(trace_id, said)

    def said(self, trace_id: str) -> set[tuple[str, Any, str | None, str | None]]:
        """(metric, value, person, note) of people's assessments on a trace."""
        with connected(self.settings) as client:
            found = client.get_trace(trace_id, display=False).info.assessments
        human = [one for one in found if one.source.source_type == "HUMAN"]
        return {(one.name, one.feedback.value, one.source.source_id, one.rationale) for one in human}

    def tags(self, trace_id: str) -> dict[str, str]:
        with connected(self.settings) as client:
            return client.get_trace(trace_id, display=False).info.tags

    def events(self, kind: EventKind) -> list[LedgerEvent]:
        with closing(Ledger(self.settings.ledger, self.settings.environment)) as ledger:
            return ledger.events(kind, labels_subject("help"))

    def fill_in(self, path: str, delimiter: str = ",", **cells: Any) -> Path:
        """An exported file with the same cells in each row of the metric relevance."""
        with Path("out.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if row["metric"] == "relevance":
                row |= cells
        with Path(path).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return Path(path)


@pytest.fixture
def desk(project: Project) -> Desk:
    return Desk(project)


def test_a_week_is_queued_once_with_weights_and_what_cannot_be_labelled_is_counted(desk: Desk) -> None:
    ids = desk.serve([KNOWN] * 6 + [UNKNOWN, None])
    desk.serve([KNOWN], start=WEEK.end)  # of the week after
    desk.say(ids[0], "relevance", True, "ada")
    queued = sample_week(desk.settings, desk.golden, WEEK)
    strata = {"billing / champion support / answered": (3, 5), "billing / champion support / refused": (1, 1)}
    assert (queued.n, queued.traffic, queued.counts, queued.is_new) == (4, 6, strata, True)
    assert queued.left_out == {"without an answer": 1, "labelled already": 1}

    tags = {trace_id: desk.tags(trace_id) for trace_id in ids}
    chosen = [trace_id for trace_id, own in tags.items() if own.get("touchstone.label_queue") == "help/2026-W47"]
    assert len(chosen) == 4
    assert ids[6] in chosen
    assert sum(float(tags[trace_id]["touchstone.label_weight"]) for trace_id in chosen) == pytest.approx(6)
    (progress,) = read_progress(desk.settings, "help")
    assert (progress.name, progress.pending) == ("help/2026-W47", 4)

    (event,) = desk.events(EventKind.LABELS_SAMPLED)
    assert "refund" not in json.dumps(event.payload)  # counts and digests only
    assert event.payload["n"] == 4

    desk.serve([KNOWN] * 9, start=WEEK.start + timedelta(days=2))
    again = sample_week(desk.settings, desk.golden, WEEK)
    assert (again.n, again.counts, again.is_new) == (4, strata, False)
    assert len(desk.events(EventKind.LABELS_SAMPLED)) == 1
    assert "| `billing / champion support / refused` | 1 | 1 |" in markdown(queued)
    assert event_payload(queued)["strata"] == 2


def test_a_run_that_died_before_the_ledger_knew_is_taken_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.serve([KNOWN] * 12)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", _dies)
        with pytest.raises(KeyboardInterrupt):
            sample_week(desk.settings, desk.golden, WEEK)
    assert sample_week(desk.settings, desk.golden, WEEK).is_new
    (progress,) = read_progress(desk.settings, "help")
    assert progress.pending == 4  # the same ones


def _dies(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_people_say_in_mlflow_comes_back_once_with_texts_weight_and_the_judges_score(desk: Desk) -> None:
    ids = desk.serve([KNOWN, UNKNOWN])
    write_scores(desk.settings, {ids[0]: {"judge_relevance": 0.75}}, JUDGE)
    sample_week(desk.settings, desk.golden, WEEK)
    desk.say(ids[0], "relevance", True, "Ada", "mail jo.doe@example.org")
    desk.say(ids[0], "relevance", False, "bob")
    desk.say(ids[1], "grade", "4", "ada")
    desk.say(ids[1], "grade", "9", "bob")
    desk.say(ids[1], "thumbs", True, "a user of the app")

    imported = take_from_mlflow(desk)
    assert (imported.added, imported.unchanged) == (3, 0)
    assert imported.left_out == {"grade that are not on its scale": 1, "of thumbs, which is not asked": 1}
    labels = {(one.metric, one.by): one for one in read_labels(desk.golden)}
    assert {key: one.value for key, one in labels.items()} == {
        ("relevance", "ada"): "pass",
        ("relevance", "bob"): "fail",
        ("grade", "ada"): 4,
    }
    first = labels["relevance", "ada"]
    assert (first.answer, first.contexts, first.weight) == (KNOWN, ("Refunds: five days.",), 1.0)
    assert (first.judge_score, first.judge, first.note) == (0.75, JUDGE, "mail [email]")

    before = (desk.golden.path / "labels.jsonl").read_bytes()
    again = take_from_mlflow(desk)
    assert (again.added, again.replaced, again.unchanged) == (0, 0, 3)
    assert (desk.golden.path / "labels.jsonl").read_bytes() == before
    assert len(desk.events(EventKind.LABELS_IMPORTED)) == 1


def take_from_mlflow(desk: Desk) -> Imported:
    return import_from_mlflow(desk.settings, desk.golden)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_filled_in_file_ends_up_in_labels_and_in_mlflow_alike(desk: Desk, touchstone: Any, delimiter: str) -> None:
    ids = desk.serve([KNOWN, UNKNOWN])
    desk.say(ids[0], "grade", "2", "ada")  # labelled already: left out of the queue
    queued = ids[1]
    assert touchstone("labels", "sample", "--dataset", desk.dataset, "--week", "2026-W47")[0] == 0
    where = ("--dataset", desk.dataset, "--json")
    code, exported = touchstone("labels", "export", "--week", "2026-W47", "--out", "out.csv", *where)
    assert (code, exported["rows"]) == (0, 2)

    filled = desk.fill_in("in.csv", delimiter, value="No", note='said "so"; twice,\nreally')
    code, imported = touchstone("labels", "import", str(filled), "--by", "jo.doe@example.org", *where)
    assert (code, imported["added"], imported["empty"]) == (0, 1, 1)
    jo = person("jo.doe@example.org")
    assert desk.said(queued) == {("relevance", False, jo, 'said "so"; twice,\nreally')}

    code, again = touchstone("labels", "import", str(filled), "--by", "jo.doe@example.org", *where)
    assert (again["added"], again["unchanged"]) == (0, 1)
    desk.fill_in("in.csv", delimiter, value="pass")
    code, changed = touchstone("labels", "import", "in.csv", "--by", "jo.doe@example.org", *where)
    assert (changed["replaced"], changed["total"]) == (1, 1)
    assert desk.said(queued) == {("relevance", True, jo, "")}
    assert touchstone("labels", "import", "--from-mlflow", *where)[1]["unchanged"] == 1

    code, status = touchstone("labels", "status", *where)
    assert status["metrics"]["relevance"] == {"labels": 1, "people": 1, "answers": 1}
    code, refused = touchstone("labels", "export", "--week", "2026-W47", "--out", "out.csv", *where)
    assert code == 2
    assert "choose another name" in refused["error"]


def test_a_spreadsheet_runs_nothing_that_a_user_wrote(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.csv", [{"id": "t", "metric": "m", "answer": "=1+1", "contexts": ("@a", "b")}])
    text = (tmp_path / "out.csv").read_text(encoding="utf-8-sig")
    assert "'=1+1" in text
    assert "'@a" in text


GOOD = {"id": "refunds", "source": "case", "metric": "grade", "value": "4", "by": "ada", "answer": KNOWN}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"value": "6"}, "value"),
        ({"value": "pass"}, "value"),
        ({"metric": "beauty"}, "metric"),
        ({"by": ""}, "by"),
        ({"id": "no-such-case"}, "id"),
        ({"id": "tr-0", "source": "trace"}, "id"),
        ({"answer": ""}, "answer"),
        ({"source": "survey"}, "source"),
        ({"at": "last week"}, "at"),
        ({"weight": "-1"}, "weight"),
        ({"colour": "red"}, "colour"),
        ({}, "id"),  # labelled twice
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_bad_row_is_named_by_line_and_field_and_nothing_is_written(
    shared_desk: Desk, changed: dict[str, str], field: str, suffix: str
) -> None:
    rows = [GOOD, GOOD | changed]
    path = Path(f"bad.{suffix}")
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys([*GOOD, *changed])))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v}) for row in [{}, *rows] if row))
    line = 3 if suffix == "csv" else 2
    with pytest.raises(BadInput, match=rf"bad\.{suffix}:{line}: field {field}: "):
        import_file(shared_desk.settings, shared_desk.golden, path)
    assert not (shared_desk.golden.path / "labels.jsonl").exists()


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Any:
    """One project for what must leave it as it was."""
    root = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Desk(Project(root, VendorControl("http://127.0.0.1:1"), mlflow_database))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,metric\n", "bad.csv:1: column value is missing"),
        ("id,metric,value,id\n", "bad.csv:1: column 'id' is there twice"),
        ("id,metric,value\na,b,c,d\n", "bad.csv:2: 4 cells, but 3 columns"),
        ('id,metric,value\n"a,b,c\n', "bad.csv:2: not CSV"),
        (b"id,metric,value\n\xff\xfe\n", "bad.csv: not UTF-8"),
        ("", "bad.csv:1: column"),
    ],
)
def test_a_file_that_is_no_table_is_refused(shared_desk: Desk, content: str | bytes, message: str) -> None:
    Path("bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as caught:
        import_file(shared_desk.settings, shared_desk.golden, Path("bad.csv"))
    assert message in str(caught.value)


def test_without_live_traffic_the_week_is_unmeasurable_and_a_future_week_is_bad_input(shared_desk: Desk) -> None:
    elsewhere = shared_desk.settings.model_copy(update={"environment": "nowhere"})
    with pytest.raises(Unmeasurable, match="no live traffic"):
        sample_week(elsewhere, shared_desk.golden, WEEK)
    with pytest.raises(BadInput, match="begins on"):
        sample_week(shared_desk.settings, shared_desk.golden, WEEK, now=datetime(2026, 11, 1, tzinfo=UTC))


def test_the_judge_is_compared_with_people_and_a_recorded_score_costs_nothing(
    project: Project, vendor: VendorControl, touchstone: Any
) -> None:
    desk = Desk(project, per_week=20, calibration={"minimum_labels": 5})
    ids = desk.serve([KNOWN] * 4 + [UNKNOWN] * 4)
    write_scores(desk.settings, {one: {"judge_relevance": 1.0 if one in ids[:4] else 0.0} for one in ids[1:]}, JUDGE)
    sample_week(desk.settings, desk.golden, WEEK)
    for trace_id in ids:
        desk.say(trace_id, "relevance", trace_id in ids[:4], "ada")
    desk.say(ids[0], "grade", "5", "ada")
    take_from_mlflow(desk)
    (progress,) = read_progress(desk.settings, "help")
    assert (progress.pending, progress.complete) == (7, 1)  # done is what has an answer to every question

    where = ("--dataset", desk.dataset, "--json")
    code, found = touchstone("labels", "calibrate", "--metric", "relevance", *where)
    (report,) = found["metrics"]
    assert (report["recorded"], report["judged_now"]) == (7, 1)
    assert report["calibration"]["n"] == 8
    assert vendor.counters()["calls"] == 1
    assert code == 1  # eight labels cannot show 0.80, and five are asked for
    touchstone("labels", "calibrate", "--metric", "relevance", *where)
    assert vendor.counters()["calls"] == 1  # paid once
    assert touchstone("labels", "calibrate", "--metric", "grade", *where)[0] == 2  # no judge scores `grade`
    assert touchstone("labels", "calibrate", "--metric", "beauty", *where)[0] == 2
