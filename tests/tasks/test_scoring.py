"""What a judge must not get away with: each bad answer of it is a failure of its metric, none is a score."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.calls import CaseCalls
from tasks.embedding import load_embedder
from tasks.scoring import JudgeSetup, check_verdicts, import_ragas, judged_scores
from tasks.spool import Spool
from tasks.vendor import Vendor
from tests.conftest import ROOT, Project, VendorControl
from touchstone.bundle import Judge, Price
from touchstone.cases import Expect, GoldenCase
from touchstone.cost import Budget
from touchstone.errors import JudgeBroken
from touchstone.prompts import GenerationParameters, Prompt
from touchstone.results import Answer, Retrieval, RetrievedChunk, Score
from touchstone.scorer_specs import RagasScorer, RubricScorer

# `litellm_module` silences these when LiteLLM is imported, and pytest resets filters for each test.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

JUDGE = "grader-2026-01-15"
RUBRIC = RubricScorer(name="judge", kind="rubric", dimensions=("relevance", "completeness"))
GRADE = Prompt(version="1.0.0", template="Grade it.", parameters=GenerationParameters(temperature=0, max_tokens=100))
CASE = GoldenCase(id="hours", question="When does Larkvane open?", reference="It opens at 9.")
CHUNK = RetrievedChunk(chunk_id="1", document_id="hours", text="Larkvane opens at 9.", rank=1, score=1.0)
RETRIEVAL = Retrieval(
    query=CASE.question, chunks=(CHUNK,), latency_ms=1, embedding_model="minilm", index_version="1", search="hybrid"
)
ANSWER = Answer(text="Larkvane opens at 9.", retrieval=RETRIEVAL)
GOOD = json.dumps({"scores": {"relevance": 5, "completeness": 4}, "reason": "short and right"})

STATEMENTS = ["Larkvane opens at 9.", "It closes at 17.", "It is in Bern."]
VERDICTS = f"Which statements hold?\ninput: {json.dumps({'context': CHUNK.text, 'statements': STATEMENTS})}\nOutput: "


class Grader:
    """A judge that gives recorded answers in turn."""

    def __init__(self, vendor: VendorControl, folder: Path) -> None:
        endpoint = Judge(
            model=f"openai/{JUDGE}", api_base=vendor.api_base, price=Price(input_per_million=1, output_per_million=2)
        )
        self.vendor = vendor
        self.setup = JudgeSetup(endpoint, GRADE, partial(load_embedder, "hashing"))
        self.calls = CaseCalls("hours/0", Vendor(attempts=1), Spool(folder), {})

    async def rubric(self, case: GoldenCase = CASE) -> dict[str, Score]:
        return await judged_scores([RUBRIC], case, ANSWER, self.calls, self.setup)

    async def ragas(
        self, answer: Answer = ANSWER, case: GoldenCase = CASE, metric: Any = "faithfulness"
    ) -> Score | None:
        scorer = RagasScorer(name="it", kind="ragas", metric=metric)
        return (await judged_scores([scorer], case, answer, self.calls, self.setup)).get("it")

    async def verdicts(self) -> Any:
        """ragas' prompt for verdicts, asked through our adapter to ragas."""
        from ragas.metrics.collections.faithfulness.util import NLIStatementOutput

        return await import_ragas().judge(self.calls, self.setup).agenerate(VERDICTS, NLIStatementOutput)


Says = Callable[..., Grader]


@pytest.fixture
def judge_says(tmp_path: Path) -> Iterator[Says]:
    """judge_says("first answer", "second answer") -> a Grader."""
    stops = []

    def start(*answers: str, completion_tokens: int | None = None) -> Grader:
        recording = tmp_path / "judge.jsonl"
        lines = [
            {"model": JUDGE, "prompt": prompt, "answer": answer, "completion_tokens": completion_tokens}
            for prompt in (GRADE.template, VERDICTS)
            for answer in answers
        ]
        recording.write_text("\n".join(json.dumps(line) for line in lines))
        server = running(EmulatorOptions(recordings=(recording,)))
        stops.append(server)
        return Grader(VendorControl(server.__enter__()), tmp_path / "run")

    yield start
    for server in stops:
        server.__exit__(None, None, None)


def nli(*verdicts: int) -> str:
    """The judge's verdicts on the first statements, one each."""
    given = zip(STATEMENTS, verdicts, strict=False)
    return json.dumps({"statements": [{"statement": text, "reason": "r", "verdict": each} for text, each in given]})


def parsed(name: str, module: str, content: object) -> Any:
    """One of ragas' own answer models, as ragas itself would take it."""
    import_ragas()
    found = getattr(importlib.import_module(f"ragas.metrics.collections.{module}.util"), name)
    return found.model_validate(content)


async def test_a_rubric_in_range_is_a_score_per_dimension(judge_says: Says) -> None:
    scores = await judge_says(GOOD).rubric()
    assert {name: score.value for name, score in scores.items()} == {"judge_relevance": 5, "judge_completeness": 4}
    assert scores["judge_relevance"].explanation == "short and right"


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```", "\n ```json {} ``` \n", "  {}\n"])
async def test_a_fenced_block_of_json_is_json(judge_says: Says, fence: str) -> None:
    scores = await judge_says(fence.replace("{}", GOOD)).rubric()
    assert scores["judge_relevance"].value == 5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ('{"scores": {"relevance": 10, "completeness": 5}}', "relevance is 10, not one of 1 to 5"),
        ('{"scores": {"relevance": 0, "completeness": 5}}', "relevance is 0, not one of 1 to 5"),
        ('{"scores": {"relevance": -3, "completeness": 5}}', "relevance is -3"),
        ('{"scores": {"relevance": 4.5, "completeness": 5}}', "scores.relevance: .*integer"),
        ('{"scores": {"relevance": 5}}', "completeness is None, not one of 1 to 5"),
        ('{"scores": {"relevance": 5, "completeness": null}}', "scores.completeness"),
        ('{"relevance": 5, "completeness": 5}', "not the JSON of RubricScores: scores: Field required"),
        ('{"scores": {"relevance": NaN, "completeness": 5}}', "not the JSON of RubricScores"),
        (f"Here are my grades: {GOOD} I hope that helps!", "not the JSON of RubricScores"),
        (f"Sure!\n```json\n{GOOD}\n```", "not the JSON of RubricScores"),
        ('{"scores": {"relevance": 5, "comple', "not the JSON of RubricScores"),
        ("relevance: five stars, completeness: five stars", "not the JSON of RubricScores"),
    ],
)
async def test_a_rubric_out_of_form_is_a_judge_error_of_each_of_its_metrics(
    judge_says: Says, answer: str, complaint: str
) -> None:
    scores = await judge_says(answer).rubric()
    assert set(scores) == {"judge_relevance", "judge_completeness"}
    for score in scores.values():
        assert score.value is None
        assert score.failure is not None
        assert score.failure.kind == "judge_error"
        assert re.search(complaint, score.failure.reason)


async def test_an_answer_that_cannot_be_parsed_is_asked_for_once_more(judge_says: Says) -> None:
    grader = judge_says("five stars", GOOD)
    assert (await grader.rubric())["judge_relevance"].value == 5
    assert [call.role for call in grader.calls.calls] == ["judge", "judge"], "both were paid and are recorded"


async def test_no_more_than_twice(judge_says: Says) -> None:
    grader = judge_says("five stars", "six stars", GOOD)
    assert (await grader.rubric())["judge_relevance"].value is None
    assert grader.vendor.counters()["calls"] == 2


async def test_a_judge_cut_off_at_its_token_limit_is_a_judge_error(judge_says: Says) -> None:
    failure = (await judge_says(GOOD, completion_tokens=101).rubric())["judge_relevance"].failure
    assert failure is not None
    assert failure.kind == "judge_error"
    assert "max_tokens" in failure.reason


async def test_a_judge_that_is_down_is_a_vendor_error(judge_says: Says) -> None:
    grader = judge_says(GOOD)
    grader.vendor.fault("server_error")
    failure = (await grader.rubric())["judge_relevance"].failure
    assert failure is not None
    assert failure.kind == "vendor_error"


async def test_a_case_that_must_be_refused_is_not_judged(judge_says: Says) -> None:
    grader = judge_says(GOOD)
    assert await grader.rubric(CASE.model_copy(update={"expect": Expect(refuses=True)})) == {}
    assert grader.vendor.counters()["calls"] == 0


@pytest.mark.parametrize("answer", [nli(1, 0, 5), nli(1, 0, -1), nli(1), nli(1, 1, 1)[:-1]])
async def test_ragas_never_sees_a_bad_verdict(judge_says: Says, answer: str) -> None:
    with pytest.raises(JudgeBroken):
        await judge_says(answer).verdicts()


async def test_ragas_gets_the_verdicts_of_a_good_answer(judge_says: Says) -> None:
    found = await judge_says(nli(1, 0, 5), nli(1, 0, 1)).verdicts()
    assert [row.verdict for row in found.statements] == [1, 0, 1]


@pytest.mark.parametrize(
    ("module", "name", "content", "complaint"),
    [
        ("faithfulness", "NLIStatementOutput", nli(1, 5, 0), "verdict is 5, not 0 or 1"),
        ("faithfulness", "NLIStatementOutput", nli(1), "1 verdicts for 3 statements"),
        ("faithfulness", "NLIStatementOutput", nli(), "0 verdicts for 3 statements"),
        ("context_precision", "ContextPrecisionOutput", '{"reason": "r", "verdict": 2}', "verdict is 2"),
        (
            "context_recall",
            "ContextRecallOutput",
            '{"classifications": [{"statement": "s", "reason": "r", "attributed": 3}]}',
            "attributed is 3",
        ),
    ],
)
def test_a_verdict_that_ragas_would_take_is_refused(module: str, name: str, content: str, complaint: str) -> None:
    with pytest.raises(JudgeBroken, match=complaint):
        check_verdicts(VERDICTS, parsed(name, module, json.loads(content)))


@pytest.mark.parametrize(
    ("module", "name", "content"),
    [
        ("faithfulness", "NLIStatementOutput", nli(1, 0, 0)),
        ("context_precision", "ContextPrecisionOutput", '{"reason": "r", "verdict": 1}'),
        (
            "context_recall",
            "ContextRecallOutput",
            '{"classifications": [{"statement": "s", "reason": "r", "attributed": 0}]}',
        ),
    ],
)
def test_a_verdict_of_0_or_1_per_statement_is_taken(module: str, name: str, content: str) -> None:
    check_verdicts(VERDICTS, parsed(name, module, json.loads(content)))


async def test_ragas_nan_is_a_judge_error_not_a_number(judge_says: Says) -> None:
    """The emulated judge finds no statement in a blank answer, and ragas then answers NaN."""
    score = await judge_says().ragas(ANSWER.model_copy(update={"text": " "}))
    assert score is not None
    assert score.value is None
    assert score.failure is not None
    assert score.failure.kind == "judge_error"
    assert "faithfulness is nan" in score.failure.reason


async def test_ragas_scores_a_supported_answer_1(judge_says: Says) -> None:
    score = await judge_says().ragas()
    assert score is not None
    assert score.value == 1.0


@pytest.mark.parametrize(
    ("metric", "answer", "case"),
    [
        ("faithfulness", ANSWER.model_copy(update={"retrieval": None}), CASE),
        ("context_recall", ANSWER, CASE.model_copy(update={"reference": None})),
        ("context_precision", ANSWER, CASE.model_copy(update={"reference": None})),
    ],
)
async def test_a_metric_whose_input_is_missing_is_left_out(judge_says: Says, metric: str, answer, case) -> None:
    assert await judge_says().ragas(answer, case, metric) is None


# Answer relevancy with a vendor's embedding model.

EMBEDDING_MODEL = "openai/text-embedding-3-small"


def embedding_at(vendor: VendorControl) -> dict[str, Any]:
    return {"embedding_model": EMBEDDING_MODEL, "embedding": {"api_base": vendor.api_base}}


class Relevancy:
    """Answer relevancy of one answer, its judge and its embeddings at an emulated vendor."""

    def __init__(self, vendor: VendorControl, folder: Path, cap_usd: float | None = None) -> None:
        price = Price(input_per_million=1, output_per_million=2)
        where = {"model": f"openai/{JUDGE}", "api_base": vendor.api_base, "price": price}
        judge = Judge.model_validate(where | embedding_at(vendor))
        self.setup = JudgeSetup(judge, GRADE, partial(load_embedder, "hashing"))
        self.spool, self.vendor = Spool(folder), Vendor(attempts=1, budget=Budget(cap_usd))
        self.calls = CaseCalls("hours/0", self.vendor, self.spool, self.spool.calls())

    async def score(self) -> Score:
        scorer = RagasScorer(name="it", kind="ragas", metric="answer_relevancy", strictness=2)
        return (await judged_scores([scorer], CASE, ANSWER, self.calls, self.setup))["it"]


async def test_a_vendors_embeddings_are_calls_of_the_case_and_paid_once(vendor: VendorControl, tmp_path: Path) -> None:
    first = Relevancy(vendor, tmp_path / "run")
    score = await first.score()
    assert score.value is not None
    assert 0.3 < score.value <= 1.0
    assert [call.role for call in first.calls.calls] == ["judge", "judge", "embedding", "embedding"]
    embeddings = first.calls.calls[2:]
    assert {call.requested_model for call in embeddings} == {EMBEDDING_MODEL}
    assert sum(call.cost_usd or 0 for call in embeddings) == pytest.approx(
        0.02e-6 * vendor.counters()["embedding_tokens"]
    )
    assert first.vendor.budget.spent_usd == pytest.approx(sum(call.cost_usd or 0 for call in first.calls.calls))

    resumed = Relevancy(vendor, tmp_path / "run")
    assert await resumed.score() == score
    assert resumed.calls.calls == first.calls.calls
    assert vendor.counters()["calls"] == 4


async def test_embeddings_of_a_judge_are_under_the_spend_cap(vendor: VendorControl, tmp_path: Path) -> None:
    whole = Relevancy(vendor, tmp_path / "whole")
    await whole.score()
    judge = [call.cost_usd or 0 for call in whole.calls.calls if call.role == "judge"]
    replayed = Spool(tmp_path / "cut")
    for finished in whole.spool.calls().values():
        if finished.call and finished.call.role == "judge":
            replayed.append_call(finished)
    cut = Relevancy(vendor, tmp_path / "cut", cap_usd=sum(judge))
    cut.vendor.budget.spent_usd = sum(judge)
    failure = (await cut.score()).failure
    assert failure is not None
    assert failure.kind == "budget"
    assert vendor.counters()["by_kind"]["embedding"] == 2, "none was sent for the second"


@pytest.mark.parametrize(
    ("fault", "kind"), [("server_error", "vendor_error"), ("timeout", "timeout"), ("nan_vector", "judge_error")]
)
async def test_broken_embeddings_are_a_failure_of_the_metric(
    vendor: VendorControl, tmp_path: Path, fault: str, kind: str
) -> None:
    vendor.fault(fault, models=["text-embedding-3-small"])
    relevancy = Relevancy(vendor, tmp_path / "run")
    relevancy.vendor.deadline_s = 2.0
    score = await relevancy.score()
    assert score.value is None
    assert score.failure is not None
    assert score.failure.kind == kind


def test_estimate_and_cap_know_a_judges_embeddings(project: Project, touchstone, vendor: VendorControl) -> None:
    price = {"input_per_million": 1, "output_per_million": 2}
    judge = {"model": f"openai/{JUDGE}", "api_base": vendor.api_base, "price": price}
    scorer = {"name": "relevancy", "kind": "ragas", "metric": "answer_relevancy"}
    dataset = project.golden_set("judged", [CASE.model_dump(mode="json", exclude_defaults=True)], scorers=[scorer])

    def estimate(name: str, **more: Any) -> tuple[int, dict[str, Any]]:
        bundle = project.prompt_bundle(name, vendor, judge=judge | more)
        return touchstone("eval", "estimate", "--bundle", bundle, "--dataset", dataset, "--json")

    code, local = estimate("local")
    assert (code, local["judge_calls"], local["embedding_calls"]) == (0, 1, 0)
    code, paid = estimate("paid", **embedding_at(vendor))
    assert (code, paid["judge_calls"], paid["embedding_calls"]) == (0, 1, 2)
    assert paid["expected_cost_usd"] > local["expected_cost_usd"]
    assert paid["worst_cost_usd"] > local["worst_cost_usd"]

    unknown = {"embedding_model": "openai/my-own-embedder", "embedding": {"api_base": vendor.api_base}}
    bundle = project.prompt_bundle("unknown", vendor, judge=judge | unknown)
    run = ("eval", "run", "--bundle", bundle, "--dataset", dataset, "--max-cost", "1", "--json")
    code, refused = touchstone(*run)
    assert code == 2
    assert "my-own-embedder is unknown" in refused["error"]
    assert "usd_per_million_tokens" in refused["error"]
    assert vendor.counters()["calls"] == 0


def test_a_bad_judge_answer_is_replayed_on_resume_and_asked_anew_on_retry(
    project: Project, touchstone, judge_says: Says
) -> None:
    """The whole way: the judge answers nonsense twice (one case, one retry), and is well afterwards."""
    vendor = judge_says("nonsense", "nonsense", GOOD).vendor
    (project.root / "prompts").unlink()
    shutil.copytree(ROOT / "prompts", project.root / "prompts")
    project.write("prompts/grade/1.0.0.yaml", {"version": "1.0.0", "system": "{payload}", "template": GRADE.template})
    price = {"input_per_million": 1, "output_per_million": 2}
    judge = {"model": f"openai/{JUDGE}", "api_base": vendor.api_base, "price": price, "prompt": "grade@1.0.0"}
    bundle = project.prompt_bundle("graded", vendor, prompt={"user": "Context: It opens at 9. {question}"}, judge=judge)
    case = CASE.model_dump(mode="json", exclude_defaults=True)
    dataset = project.golden_set("graded", [case], scorers=[RUBRIC.model_dump(mode="json")])

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        return touchstone("eval", "run", "--bundle", bundle, "--dataset", dataset, "--json", *arguments)

    code, broken = run()
    assert (code, broken["failures"]) == (3, {"judge_error": 1})
    assert vendor.counters()["calls"] == 3
    code, resumed = run("--resume", broken["run_key"])
    assert (code, resumed["failures"]) == (3, {"judge_error": 1})
    assert vendor.counters()["calls"] == 3
    code, retried = run("--resume", broken["run_key"], "--retry-failures")
    assert (code, retried["failures"], retried["metrics"]["judge_relevance"]["mean"]) == (0, {}, 5.0)
    assert vendor.counters()["calls"] == 4
