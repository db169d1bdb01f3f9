"""What a run will ask of its vendors, before anything is paid."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tasks.plan import EvalPlan
from tasks.spool import Spool, run_folders
from tasks.vendor_endpoint import Mode, price_of
from touchstone.bundle import Endpoint
from touchstone.cases import GoldenCase
from touchstone.contract import plausible_tokens
from touchstone.cost import call_cost, most_tokens
from touchstone.scorer_specs import RagasScorer, RubricScorer, Scorer

_JUDGE_INPUT_TOKENS = 1500  # ragas' instructions and examples; the contexts come on top
_JUDGE_OUTPUT_TOKENS = (300, 2048)  # about, at most


@dataclass(frozen=True)
class Estimate:
    """Calls are exact but for retries; `expected` leans on an earlier run where there is one."""

    cases: int
    repeats: int
    generation_calls: int
    judge_calls: int
    embedding_calls: int
    expected_cost_usd: float | None
    worst_cost_usd: float | None
    cap_usd: float | None
    basis: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(plan: EvalPlan) -> Estimate:
    """Calls and cost of a planned run; cost is None when a price is unknown."""
    generation = len(plan.units)
    judged = plan.repeats * sum(_judge_calls(plan, case) for case in plan.cases)
    embedded = plan.repeats * sum(_embedding_calls(plan, case) for case in plan.cases)
    counts = {"generation": generation, "judge": judged, "embedding": embedded}
    earlier = _mean_tokens_of_earlier_run(plan)
    return Estimate(
        cases=len(plan.cases),
        repeats=plan.repeats,
        generation_calls=generation,
        judge_calls=judged,
        embedding_calls=embedded,
        expected_cost_usd=_cost(plan, counts, earlier or _guess(plan, worst=False)),
        worst_cost_usd=_cost(plan, counts, _guess(plan, worst=True)),
        cap_usd=plan.cap_usd,
        basis="tokens of the last run of this bundle" if earlier else "rendered prompts, a quarter of max_tokens",
    )


def _judge_calls(plan: EvalPlan, case: GoldenCase) -> int:
    contexts = plan.definition.retrieval.top_k if plan.definition.retrieval else 0
    calls = 0
    for scorer in _judging(plan, case):
        if isinstance(scorer, RubricScorer):
            calls += 1
        elif isinstance(scorer, RagasScorer):
            calls += _ragas_calls(scorer, contexts, bool(case.reference))
    return calls


def _embedding_calls(plan: EvalPlan, case: GoldenCase) -> int:
    """Answer relevancy embeds the question in one call, the judge's questions in another."""
    if plan.judge_embedding is None:
        return 0
    judging = (scorer for scorer in _judging(plan, case) if isinstance(scorer, RagasScorer))
    return 2 * sum(scorer.metric == "answer_relevancy" for scorer in judging)


def _judging(plan: EvalPlan, case: GoldenCase) -> list[Scorer]:
    """The scorers that look at this case; nobody judges a refusal that the golden set asks for."""
    if case.expect and case.expect.refuses:
        return []
    scorers = plan.golden.policy.scorers
    return [scorer for scorer in scorers if not scorer.segments or case.segment in scorer.segments]


def _ragas_calls(scorer: RagasScorer, contexts: int, has_reference: bool) -> int:
    if scorer.metric == "answer_relevancy":
        return scorer.strictness
    if contexts == 0 or (scorer.metric != "faithfulness" and not has_reference):
        return 0
    return {"faithfulness": 2, "context_precision": contexts, "context_recall": 1}[scorer.metric]


def _cost(plan: EvalPlan, counts: Mapping[str, int], tokens: Mapping[str, tuple[float, float]]) -> float | None:
    if not plan.bundle.model:
        return None  # an app tells its cost afterwards, or never
    called: tuple[tuple[str, Endpoint | None, Mode], ...] = (
        ("generation", plan.bundle.endpoint, "chat"),
        ("judge", plan.bundle.judge, "chat"),
        ("embedding", plan.judge_embedding, "embedding"),
    )
    total = 0.0
    for role, endpoint, mode in called:
        if endpoint is None or counts[role] == 0:
            continue
        into, out = tokens.get(role, (0.0, 0.0))
        cost = call_cost(price_of(endpoint, mode), round(into * counts[role]), round(out * counts[role]))
        if cost is None:
            return None
        total += cost
    return total


def _guess(plan: EvalPlan, *, worst: bool) -> dict[str, tuple[float, float]]:
    """Mean (input, output) tokens per call from the prompts; as output a quarter of max_tokens, or all of it."""
    if plan.definition.prompt is None:
        return {}
    parameters = plan.bundle.parameters or plan.definition.prompt.parameters
    context = plan.definition.retrieval.chunk_size * plan.definition.retrieval.top_k if plan.definition.retrieval else 0
    count = most_tokens if worst else plausible_tokens
    questions = sum(count(case.question) for case in plan.cases) / len(plan.cases)
    fixed = count(plan.definition.prompt.system) + count(plan.definition.prompt.template)
    return {
        "generation": (fixed + questions + context, (1.0 if worst else 0.25) * parameters.max_tokens),
        "judge": (_JUDGE_INPUT_TOKENS + context, _JUDGE_OUTPUT_TOKENS[worst]),
        "embedding": ((questions + _asked_back(plan) * (_JUDGE_OUTPUT_TOKENS[1] if worst else questions)) / 2, 0.0),
    }


def _asked_back(plan: EvalPlan) -> int:
    """How many questions the judge makes of an answer, for answer relevancy."""
    return max(
        (scorer.strictness for scorer in plan.golden.policy.scorers if isinstance(scorer, RagasScorer)), default=0
    )


def _mean_tokens_of_earlier_run(plan: EvalPlan) -> dict[str, tuple[float, float]] | None:
    for folder in reversed(run_folders(plan.settings.state)):
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["bundle_fingerprint"] != plan.manifest.bundle_fingerprint:
            continue
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for finished in Spool(folder).calls().values():
            if finished.call is not None and not finished.call.cached:
                total = sums[finished.call.role]
                total[0] += finished.call.input_tokens
                total[1] += finished.call.output_tokens
                total[2] += 1
        if "generation" in sums:
            return {role: (into / n, out / n) for role, (into, out, n) in sums.items()}
    return None
