"""Scores that need a judge: ragas' metrics through ragas itself, and our rubric, 1 to 5 per dimension."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from tasks.calls import CaseCalls
from tasks.embedding import Embedder, Floats, judge_embedding
from tasks.environment import apply_defaults
from touchstone.bundle import Endpoint, Judge
from touchstone.cases import GoldenCase
from touchstone.errors import CaseFailure, JudgeBroken, TouchstoneError
from touchstone.prompts import GenerationParameters, Prompt
from touchstone.results import Answer, Failure, FailureKind, Score
from touchstone.scorer_specs import RagasScorer, RubricScorer, Scorer

_PARSE_ATTEMPTS = 2
_RAGAS_PARAMETERS = GenerationParameters(temperature=0.0, max_tokens=2048)


@dataclass(frozen=True)
class JudgeSetup:
    """A run's judge: its endpoint, its rubric prompt, and the local embedder of answer relevancy."""

    endpoint: Judge
    prompt: Prompt
    embedder: Callable[[], Embedder]

    @property
    def embedding(self) -> Endpoint | None:
        """Which vendor embeds for answer relevancy; None: this process does."""
        return judge_embedding(self.endpoint)


class RubricScores(BaseModel):
    """What the rubric judge must answer; the title of its schema tells judges what is asked."""

    scores: dict[str, int]
    reason: str = ""


_RUBRIC_SCHEMA = json.dumps(RubricScores.model_json_schema())


async def judged_scores(
    scorers: Sequence[Scorer], case: GoldenCase, answer: Answer, calls: CaseCalls, judge: JudgeSetup
) -> dict[str, Score]:
    """All judged metrics of one answer; a judge that breaks is a failure of that metric alone."""
    jobs = [_judged(scorer, case, answer, calls, judge) for scorer in scorers if _applies(scorer, case, answer)]
    scores: dict[str, Score] = {}
    for found in await asyncio.gather(*jobs):
        scores |= found
    return scores


def _applies(scorer: Scorer, case: GoldenCase, answer: Answer) -> bool:
    """Judges score answers, not refusals that the golden set asks for; some metrics need contexts or a reference."""
    if (scorer.segments and case.segment not in scorer.segments) or (case.expect and case.expect.refuses):
        return False
    if isinstance(scorer, RubricScorer):
        return True
    if not isinstance(scorer, RagasScorer):
        return False
    has_contexts = answer.retrieval is not None and bool(answer.retrieval.chunks)
    needs_reference = scorer.metric in {"context_precision", "context_recall"}
    return (has_contexts or scorer.metric == "answer_relevancy") and (bool(case.reference) or not needs_reference)


async def _judged(
    scorer: Scorer, case: GoldenCase, answer: Answer, calls: CaseCalls, judge: JudgeSetup
) -> dict[str, Score]:
    metrics = [metric.name for metric in scorer.metrics]
    try:
        if isinstance(scorer, RubricScorer):
            return await _rubric(scorer, case, answer, calls, judge)
        assert isinstance(scorer, RagasScorer)
        return {scorer.name: Score(value=await _ragas(scorer, case, answer, calls, judge))}
    except CaseFailure as error:
        # A refusal or a broken contract of the judge says nothing of the answer.
        broken = error.kind in {FailureKind.REFUSED, FailureKind.INVALID}
        kind = FailureKind.JUDGE_ERROR if broken else error.kind
        return {name: Score(failure=Failure(kind=kind, reason=f"judge: {error}")) for name in metrics}


async def _rubric(
    scorer: RubricScorer, case: GoldenCase, answer: Answer, calls: CaseCalls, judge: JudgeSetup
) -> dict[str, Score]:
    chunks = answer.retrieval.chunks if answer.retrieval else ()
    payload = {
        "question": case.question,
        "answer": answer.text,
        "contexts": [chunk.text for chunk in chunks],
        "reference": case.reference,
        "dimensions": list(scorer.dimensions),
    }
    messages = judge.prompt.messages(schema=_RUBRIC_SCHEMA, payload=json.dumps(payload, ensure_ascii=False))

    def accept(text: str) -> RubricScores:
        parsed = _parse(text, RubricScores)
        for dimension in scorer.dimensions:
            if parsed.scores.get(dimension) not in {1, 2, 3, 4, 5}:
                raise JudgeBroken(f"{dimension} is {parsed.scores.get(dimension)}, not one of 1 to 5")
        return parsed

    parsed = await _ask(calls, judge, messages, judge.prompt.parameters, accept)
    return {
        scorer.metric_name(dimension): Score(value=float(parsed.scores[dimension]), explanation=parsed.reason[:500])
        for dimension in scorer.dimensions
    }


async def _ragas(scorer: RagasScorer, case: GoldenCase, answer: Answer, calls: CaseCalls, judge: JudgeSetup) -> float:
    contexts = [chunk.text for chunk in answer.retrieval.chunks] if answer.retrieval else []
    given = {
        "faithfulness": {"user_input": case.question, "response": answer.text, "retrieved_contexts": contexts},
        "answer_relevancy": {"user_input": case.question, "response": answer.text},
        "context_precision": {
            "user_input": case.question,
            "reference": case.reference,
            "retrieved_contexts": contexts,
        },
        "context_recall": {
            "user_input": case.question,
            "retrieved_contexts": contexts,
            "reference": case.reference,
        },
    }[scorer.metric]
    try:
        result = await _metric(scorer, calls, judge).ascore(**given)
    except TouchstoneError:
        raise
    except Exception as error:  # ragas raises ValueError and worse on what its judge said
        raise JudgeBroken(f"{scorer.metric}: {type(error).__name__}: {error}") from error
    value = float(result.value)
    if not math.isfinite(value):
        raise JudgeBroken(f"{scorer.metric} is {value}: the judge found no statement to score")
    return value


def _metric(scorer: RagasScorer, calls: CaseCalls, judge: JudgeSetup) -> Any:
    """The metric with a judge that records its calls as this case's; prompts are shared by all cases."""
    metric = copy.copy(_shared_metric(scorer.metric, scorer.strictness, judge))
    metric.llm = import_ragas().judge(calls, judge)
    if scorer.metric == "answer_relevancy":
        metric.embeddings = import_ragas().embeddings(calls, judge)
    return metric


@cache
def _shared_metric(name: str, strictness: int, judge: JudgeSetup) -> Any:
    ragas = import_ragas()
    more = {}
    if name == "answer_relevancy":
        more = {"embeddings": ragas.embeddings(None, judge), "strictness": strictness}
    metric = ragas.metrics[name](llm=ragas.judge(None, judge), **more)
    for prompt in vars(metric).values():
        if hasattr(prompt, "to_string"):
            prompt.to_string = _render_head_once(prompt.to_string)
    return metric


def _render_head_once(to_string: Callable[[BaseModel], str]) -> Callable[[BaseModel], str]:
    """ragas renders schema and examples anew for each call, 4 ms of CPU; only the input differs."""
    head: str | None = None

    def render(data: BaseModel) -> str:
        nonlocal head
        if head is None:
            whole = to_string(data)
            head = whole.rpartition("\ninput: ")[0]
            assert render(data) == whole, "ragas renders its prompts in another way than 0.4.3"
        return f"{head}\ninput: {data.model_dump_json(indent=4, exclude_none=True)}\nOutput: "

    return render


async def _ask(
    calls: CaseCalls,
    judge: JudgeSetup,
    messages: Sequence[dict[str, str]],
    parameters: GenerationParameters,
    accept: Callable[[str], Any],
) -> Any:
    """A judge's answer that `accept` takes; one that cannot be parsed is asked for once more."""
    for attempt in range(1, _PARSE_ATTEMPTS + 1):
        try:
            return await calls.complete(
                judge.endpoint,
                messages,
                parameters,
                role="judge",
                prompt_version=judge.prompt.version,
                response_format={"type": "json_object"},
                accept=accept,
                cached=True,
            )
        except JudgeBroken:
            if attempt == _PARSE_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _parse(text: str, model: type[BaseModel]) -> Any:
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        return model.model_validate_json(fenced.group(1) if fenced else text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "answer"
        raise JudgeBroken(f"not the JSON of {model.__name__}: {where}: {first['msg']}") from None


def check_verdicts(prompt: str, parsed: BaseModel) -> None:
    """Raise JudgeBroken on what ragas would take without a word: a verdict of 5, or three statements with one."""
    found = parsed.model_dump()
    for item in (found, *found.get("statements", ()), *found.get("classifications", ())):
        for field in ("verdict", "attributed"):
            if isinstance(item, dict) and item.get(field, 0) not in {0, 1}:
                raise JudgeBroken(f"{field} is {item[field]}, not 0 or 1")
    if type(parsed).__name__ == "NLIStatementOutput":
        asked = len(json.loads(prompt.rpartition("\ninput: ")[2].partition("\nOutput:")[0])["statements"])
        if len(found["statements"]) != asked:
            raise JudgeBroken(f"{len(found['statements'])} verdicts for {asked} statements")


@dataclass(frozen=True)
class _Ragas:
    judge: type
    embeddings: type
    metrics: dict[str, type]


@cache
def import_ragas() -> _Ragas:
    """ragas' classes and our two adapters to them; imported late (5 s)."""
    apply_defaults()
    from ragas.embeddings.base import BaseRagasEmbedding
    from ragas.llms.base import InstructorBaseRagasLLM
    from ragas.metrics.collections import AnswerRelevancy, ContextPrecision, ContextRecall, Faithfulness

    class RagasJudge(InstructorBaseRagasLLM):
        """ragas' judge, asked through our one vendor adapter: same scores as instructor, every call recorded."""

        def __init__(self, calls: CaseCalls | None, judge: JudgeSetup) -> None:
            self._calls, self._judge = calls, judge

        def generate(self, prompt: str, response_model: Any) -> Any:
            raise TypeError("the eval is asynchronous; use agenerate")

        async def agenerate(self, prompt: str, response_model: Any) -> Any:
            def accept(text: str) -> Any:
                parsed = _parse(text, response_model)
                check_verdicts(prompt, parsed)
                return parsed

            assert self._calls is not None, "only the shared metric has a judge without calls"
            messages = [{"role": "user", "content": prompt}]
            return await _ask(self._calls, self._judge, messages, _RAGAS_PARAMETERS, accept)

    class RagasEmbeddings(BaseRagasEmbedding):
        """ragas' embeddings from ours: a vendor's are calls of the case, as its judge's are."""

        def __init__(self, calls: CaseCalls | None, judge: JudgeSetup) -> None:
            super().__init__()
            self._calls, self._judge = calls, judge

        def embed_text(self, text: str, **kwargs: Any) -> list[float]:
            raise TypeError("the eval is asynchronous; use aembed_text")

        async def aembed_text(self, text: str, **kwargs: Any) -> list[float]:
            return (await self.aembed_texts([text]))[0]

        async def aembed_texts(self, texts: list[str], **kwargs: Any) -> list[list[float]]:
            return (await self._rows(texts)).tolist()

        async def _rows(self, texts: list[str]) -> Floats:
            if self._judge.embedding is None:
                return await asyncio.to_thread(lambda: self._judge.embedder().embed(texts))
            assert self._calls is not None, "only the shared metric has embeddings without calls"
            return await self._calls.embed(self._judge.embedding, texts, cached=True)

    return _Ragas(
        RagasJudge,
        RagasEmbeddings,
        {
            "faithfulness": Faithfulness,
            "answer_relevancy": AnswerRelevancy,
            "context_precision": ContextPrecision,
            "context_recall": ContextRecall,
        },
    )
