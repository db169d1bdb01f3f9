"""The judge: answers the schemas that ragas' prompts and our rubric ask for, by lexical comparison alone."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from emulator import rubric
from emulator.entailment import ATTRIBUTED, agreement, coverage, support
from emulator.language import content, is_refusal, names, numbers, words
from emulator.passages import passages, without_citations

USEFUL = 0.55  # a context holds this share of the answer's words: it was useful
_MARK = "\ninput: "


class UnreadablePayload(ValueError):
    """The prompt names a known schema, and what follows its last `input:` is not what that schema needs."""


def statements(text: str) -> list[str]:
    """The statements an answer makes, one per sentence, list item or half sentence after a semicolon."""
    units = [unit.text for unit in passages(without_citations(text))]
    if not units:
        return [text.strip()] if text.strip() else []
    return [part.strip() for unit in units for part in _halves(unit) if part.strip(" .;")]


def _halves(unit: str) -> list[str]:
    parts = re.split(r";\s+(?=\S+\s+\S+\s+\S+)", unit)
    # A table row reads "Plan: Pro; Price: $20.": its halves mean nothing alone.
    return [unit] if any(":" in part for part in parts) else parts


def _statements(data: Mapping[str, Any]) -> object:
    return {"statements": statements(str(data.get("answer", data.get("text", ""))))}


def _entailed(data: Mapping[str, Any]) -> object:
    return {"statements": [_verdict(str(each), str(data["context"])) for each in data["statements"]]}


def _verdict(statement: str, context: str) -> dict[str, object]:
    found = support(statement, context)
    return {"statement": statement, "reason": found.reason, "verdict": int(found.holds())}


def _context_useful(data: Mapping[str, Any]) -> object:
    question, context, answer = str(data["question"]), str(data["context"]), str(data["answer"])
    if is_refusal(answer):
        return {"reason": "The answer is a refusal; no context led to it.", "verdict": 0}
    carried = any(support(part, context).holds() for part in statements(answer))
    share, on_topic = coverage(answer, context), coverage(question, context)
    short = len(frozenset(content(answer))) < 3
    useful = (carried or share >= USEFUL) and (not short or on_topic >= 0.5)
    reason = f"The context holds {share:.0%} of the answer's and {on_topic:.0%} of the question's content words."
    return {"reason": reason, "verdict": int(useful)}


def _recalled(data: Mapping[str, Any]) -> object:
    context = str(data["context"])
    rows = []
    for statement in statements(str(data["answer"])):
        found = support(statement, context)
        attributed = int(found.holds(ATTRIBUTED) and not is_refusal(statement))
        rows.append({"statement": statement, "reason": found.reason, "attributed": attributed})
    return {"classifications": rows}


def _claims(data: Mapping[str, Any]) -> object:
    return {"claims": statements(str(data["response"]))}


_VERB = re.compile(
    r"^(?P<subject>[^,;:]{2,80}?)\s+(?P<verb>is|are|was|were|can|must|may|will|should|has|have|does|do)\s+(?P<rest>.+)$"
)


def _question_behind(data: Mapping[str, Any]) -> object:
    response = str(data["response"]).strip()
    if not response or is_refusal(response):
        return {"question": "What was asked?", "noncommittal": 1}
    units = statements(response)
    first = max(units[:2], key=lambda unit: len(frozenset(content(unit)))).rstrip(".!") if units else response
    match = _VERB.match(first)
    if match:
        subject = match["subject"][0].lower() + match["subject"][1:]
        return {"question": f"What {match['verb']} {subject} {match['rest']}?", "noncommittal": 0}
    return {"question": f"What about {first[0].lower() + first[1:]}?", "noncommittal": 0}


def _classified(data: Mapping[str, Any]) -> object:
    given, truth = [str(each) for each in data["answer"]], [str(each) for each in data["ground_truth"]]
    all_given, all_truth = "\n\n".join(given), "\n\n".join(truth)
    rows: dict[str, list[dict[str, str]]] = {"TP": [], "FP": [], "FN": []}
    for statement in given:
        found = support(statement, all_truth)
        rows["TP" if found.holds(ATTRIBUTED) else "FP"].append({"statement": statement, "reason": found.reason})
    for statement in truth:
        found = support(statement, all_given)
        if not found.holds(ATTRIBUTED):
            rows["FN"].append({"statement": statement, "reason": found.reason})
    return rows


def _overall(data: Mapping[str, Any]) -> object:
    contexts = data.get("retrieved_contexts") or data.get("reference_contexts") or []
    scores, reason = rubric.score(
        str(data.get("user_input") or ""), str(data.get("response") or ""), [str(each) for each in contexts],
        data.get("reference"), ["completeness" if data.get("reference") else "faithfulness"],
    )  # fmt: skip
    return {"feedback": reason, "score": next(iter(scores.values()))}


def _accuracy(data: Mapping[str, Any]) -> object:
    agreed = agreement(str(data["user_answer"]), str(data["reference_answer"]))
    return {"rating": 4 if agreed >= 0.7 else 2 if agreed >= 0.4 else 0}


def _relevance(data: Mapping[str, Any]) -> object:
    share = coverage(str(data["user_input"]), str(data["context"]))
    return {"rating": 2 if share >= 0.7 else 1 if share >= 0.4 else 0}


def _groundedness(data: Mapping[str, Any]) -> object:
    parts = statements(str(data["response"]))
    share = sum(support(part, str(data["context"])).holds() for part in parts) / max(1, len(parts))
    return {"rating": 2 if share >= 0.9 else 1 if share >= 0.4 else 0}


def _entities(data: Mapping[str, Any]) -> object:
    text = str(data["text"])
    wanted = names(text) | numbers(text)
    return {"entities": [word for word in dict.fromkeys(words(text)) if {word} & wanted or set(content(word)) & wanted]}


def _rubric(data: Mapping[str, Any]) -> object:
    scores, reason = rubric.score(
        str(data["question"]), str(data["answer"]), [str(each) for each in data.get("contexts") or []],
        data.get("reference"), [str(each) for each in data["dimensions"]],
    )  # fmt: skip
    return {"scores": scores, "reason": reason}


SCHEMAS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "StatementGeneratorOutput": _statements,
    "NLIStatementOutput": _entailed,
    "StatementFaithfulnessOutput": _entailed,
    "ContextPrecisionOutput": _context_useful,
    "ContextRecallOutput": _recalled,
    "ClaimDecompositionOutput": _claims,
    "AnswerRelevanceOutput": _question_behind,
    "ClassificationWithReason": _classified,
    "RubricScoreOutput": _overall,
    "InstanceRubricScoreOutput": _overall,
    "AnswerAccuracyOutput": _accuracy,
    "ContextRelevanceOutput": _relevance,
    "ResponseGroundednessOutput": _groundedness,
    "EntitiesList": _entities,
    "RubricScores": _rubric,
}
_TITLE = re.compile(r'"title"\s*:\s*"(' + "|".join(SCHEMAS) + r')"')
_decode = json.JSONDecoder().raw_decode


def schema_asked(prompt: str) -> str | None:
    """The schema title that a judge prompt names, or None when this is no prompt for the judge."""
    mark = prompt.rfind(_MARK)
    match = _TITLE.search(prompt, 0, mark) if mark >= 0 else None
    return match.group(1) if match else None


def judge(schema: str, prompt: str) -> str:
    """The judge's answer, as JSON text in the named schema."""
    payload = prompt[prompt.rfind(_MARK) + len(_MARK) :].lstrip()
    try:
        data, _ = _decode(payload)
        return orjson.dumps(SCHEMAS[schema](data)).decode()
    except KeyError as error:
        raise UnreadablePayload(f"{schema}: the input lacks the field {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UnreadablePayload(f"{schema}: the input after the last 'input:' cannot be read: {error}") from None
