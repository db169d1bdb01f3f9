"""The judge answers ragas' own metrics and our rubric, and tells good answers from bad ones."""

import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics.collections import (
    AnswerCorrectness,
    AnswerRelevancy,
    ContextPrecisionWithoutReference,
    ContextPrecisionWithReference,
    ContextRecall,
    FactualCorrectness,
    Faithfulness,
    NoiseSensitivity,
)

QUESTION = "How long do I have to return an item?"
FAITHFUL = "You can return most items within 30 days of delivery. Items on final sale cannot be returned. [refunds]"
INVENTED = "We send a drone to pick your parcel up. Our chief executive calls every buyer personally."


class Judge(InstructorBaseRagasLLM):
    """The smallest client that ragas accepts: LiteLLM, JSON, pydantic."""

    def __init__(self, url: str) -> None:
        self.url = url

    def generate(self, prompt: str, response_model: type[Any]) -> Any:
        raise TypeError("these tests ask asynchronously only")

    async def agenerate(self, prompt: str, response_model: type[Any]) -> Any:
        response = await litellm.acompletion(
            model="openai/judge-2025-01-01",
            api_base=f"{self.url}/v1",
            api_key="sk-offline",
            messages=[{"role": "user", "content": prompt}],
            response_format={"type": "json_object"},
            max_retries=0,
        )
        return response_model.model_validate_json(response.choices[0].message.content)


class Embeddings(BaseRagasEmbedding):
    """The emulator's own embeddings."""

    def __init__(self, url: str) -> None:
        self.url = url

    def embed_text(self, text: str, **more: Any) -> list[float]:
        raise TypeError("these tests ask asynchronously only")

    async def aembed_text(self, text: str, **more: Any) -> list[float]:
        response = await litellm.aembedding(
            model="openai/e", api_base=f"{self.url}/v1", api_key="sk-offline", input=[text]
        )
        return response.data[0]["embedding"]


@pytest.fixture
def judge(emulator: Any) -> Judge:
    return Judge(emulator.url)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (FAITHFUL, 1.0),
        (INVENTED, 0.0),
        ("You can return most items within 30 days of delivery. A drone picks your parcel up at the door.", 0.5),
        ("You can return most items within 45 days of delivery.", 0.0),
        ("Items on final sale can be returned.", 0.0),
        ("I can't find that in our help center.", 1.0),
    ],
)
async def test_faithfulness(judge: Judge, kb: Any, answer: str, expected: float) -> None:
    contexts = [kb.text("refunds"), kb.text("battery")]
    result = await Faithfulness(llm=judge).ascore(user_input=QUESTION, response=answer, retrieved_contexts=contexts)
    assert result.value == expected


async def test_a_table_row_that_was_quoted_is_faithful(judge: Judge, kb: Any) -> None:
    quoted = await Faithfulness(llm=judge).ascore(
        user_input="What does express shipping cost?",
        response="Method: Express; Price: $14.50; Time: 1 business day.",
        retrieved_contexts=[kb.text("shipping")],
    )
    assert quoted.value == 1.0


async def test_answer_relevancy_prefers_an_answer_to_the_point(emulator: Any, judge: Judge) -> None:
    metric = AnswerRelevancy(llm=judge, embeddings=Embeddings(emulator.url), strictness=1)
    relevant = await metric.ascore(user_input=QUESTION, response="You have 30 days to return an item.")
    beside = await metric.ascore(user_input=QUESTION, response="The battery is charged with a cable.")
    refused = await metric.ascore(user_input=QUESTION, response="I do not know.")
    assert relevant.value > 0.5 > 0.3 > beside.value > refused.value == 0


async def test_context_precision_sees_the_rank_of_the_useful_context(judge: Judge, kb: Any) -> None:
    metric, reference = ContextPrecisionWithReference(llm=judge), "Items can be returned within 30 days of delivery."
    contexts = [kb.text("refunds"), kb.text("battery"), kb.text("account")]
    first = await metric.ascore(user_input=QUESTION, reference=reference, retrieved_contexts=contexts)
    last = await metric.ascore(user_input=QUESTION, reference=reference, retrieved_contexts=contexts[::-1])
    assert first.value == pytest.approx(1)
    assert last.value == pytest.approx(1 / 3)


async def test_context_precision_works_without_a_reference(judge: Judge, kb: Any) -> None:
    metric = ContextPrecisionWithoutReference(llm=judge)
    contexts = [kb.text("battery"), kb.text("refunds")]
    result = await metric.ascore(user_input=QUESTION, response=FAITHFUL, retrieved_contexts=contexts)
    assert result.value == pytest.approx(0.5)


async def test_context_recall_counts_the_reference_statements_found(judge: Judge, kb: Any) -> None:
    metric = ContextRecall(llm=judge)
    reference = "Items can be returned within 30 days of delivery. The warranty lasts two years."
    result = await metric.ascore(user_input=QUESTION, retrieved_contexts=[kb.text("refunds")], reference=reference)
    assert result.value == 0.5


async def test_factual_correctness_compares_claims_both_ways(judge: Judge) -> None:
    metric, reference = FactualCorrectness(llm=judge), "Items can be returned within 30 days. Gift cards are final."
    assert (await metric.ascore(response=reference, reference=reference)).value == 1.0
    assert (await metric.ascore(response="Items can be returned within 30 days.", reference=reference)).value == 0.67
    assert (await metric.ascore(response="Items can be returned within 10 days.", reference=reference)).value == 0.0


async def test_answer_correctness_and_noise_sensitivity_are_understood(emulator: Any, judge: Judge, kb: Any) -> None:
    right = "Items can be returned within 30 days of delivery."
    correctness = AnswerCorrectness(llm=judge, embeddings=Embeddings(emulator.url))
    assert (await correctness.ascore(user_input=QUESTION, response=right, reference=right)).value > 0.95
    noise = await NoiseSensitivity(llm=judge).ascore(
        user_input=QUESTION, response=right, reference=right, retrieved_contexts=[kb.text("refunds")]
    )
    assert noise.value == 0.0


class RubricScores(BaseModel):
    """Our rubric's answer."""

    scores: dict[str, int]
    reason: str


async def grade(judge: Judge, answer: str, reference: str | None, contexts: list[str]) -> dict[str, int]:
    dimensions = ["faithfulness", "relevance", "completeness", "tone"]
    payload = {
        "question": QUESTION,
        "answer": answer,
        "contexts": contexts,
        "reference": reference,
        "dimensions": dimensions,
    }
    prompt = (
        f"Grade the answer.\n{json.dumps(RubricScores.model_json_schema())}\ninput: {json.dumps(payload)}\nOutput: "
    )
    return (await judge.agenerate(prompt, RubricScores)).scores


async def test_the_rubric_separates_good_wrong_and_refused_answers(judge: Judge, kb: Any) -> None:
    reference, contexts = "You can return items within 30 days of delivery.", [kb.text("refunds")]
    good = await grade(judge, "You can return most items within 30 days of delivery.", reference, contexts)
    wrong = await grade(judge, INVENTED, reference, contexts)
    refused = await grade(judge, "I do not know.", reference, contexts)

    assert good == {"faithfulness": 5, "relevance": 5, "completeness": 5, "tone": 5}
    assert max(wrong.values()) <= 2
    assert (refused["faithfulness"], refused["relevance"], refused["completeness"]) == (5, 1, 1)


async def test_a_cited_source_costs_no_faithfulness(judge: Judge, kb: Any) -> None:
    answer = "Parcels arrive. You can return most items within 30 days of delivery."
    plain = await grade(judge, answer, None, [kb.text("refunds")])
    cited = await grade(judge, f"{answer} [orders/late-parcels] [billing/refunds]", None, [kb.text("refunds")])
    assert cited["faithfulness"] == plain["faithfulness"]


async def test_a_refusal_that_was_due_earns_full_marks(judge: Judge, kb: Any) -> None:
    due = await grade(judge, kb.refusal, "I cannot answer that from the documents.", [kb.text("battery")])
    assert set(due.values()) == {5}
    guessed = await grade(judge, INVENTED, "I cannot answer that from the documents.", [kb.text("battery")])
    assert guessed["relevance"] == guessed["completeness"] == 1


async def test_a_payload_without_its_fields_is_refused_by_name(judge: Judge) -> None:
    prompt = f"{json.dumps(RubricScores.model_json_schema())}\ninput: {{}}\nOutput: "
    with pytest.raises(litellm.exceptions.BadRequestError, match="RubricScores: the input lacks the field 'question'"):
        await judge.agenerate(prompt, RubricScores)


async def test_the_judge_is_reached_as_anthropic_and_gemini_too(emulator: Any) -> None:
    payload = {"question": "q", "answer": "One thing. Another thing."}
    prompt = f'{{"title": "StatementGeneratorOutput"}}\ninput: {json.dumps(payload)}\nOutput: '
    for vendor in ("anthropic", "gemini"):
        text = await emulator.text(prompt, vendor=vendor, response_format={"type": "json_object"})
        assert json.loads(text) == {"statements": ["One thing.", "Another thing."]}
