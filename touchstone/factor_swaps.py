"""What differs between two definitions, and the later one with some of that as it was before."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from touchstone.definition import Definition, changed_factors
from touchstone.errors import BadInput
from touchstone.index import IndexVersion
from touchstone.policy import Policy
from touchstone.prompts import Prompt, placeholders
from touchstone.release_index import index_fits
from touchstone.retrieval_config import RetrievalConfig
from touchstone.scorer_specs import JUDGED, RagasScorer, RetrievalScorer, Scorer

Swap = Literal["judge", "model", "prompt", "retrieval", "index"]
SWAPS: tuple[Swap, ...] = ("judge", "model", "prompt", "retrieval", "index")  # the cheapest to replay first

NAMES: dict[Swap, str] = {
    "judge": "judge",
    "model": "model",
    "prompt": "prompt",
    "retrieval": "retrieval config",
    "index": "index version",
}
_ENDPOINT = ("model", "api_base", "api_key_env", "price", "allow_unpinned", "target")


def differing(before: Definition, after: Definition) -> tuple[Swap, ...]:
    """The factors that differ. An app brings its own prompt and retrieval: what it is counts as the model.

    The index counts on its own where each config can search either version; else it goes with its config.
    """
    found: set[Swap] = set()
    if before.bundle.target or after.bundle.target:
        if before.bundle.target != after.bundle.target:
            found.add("model")
    else:
        found.update(changed_factors(before, after))
        if _index_fingerprint(before) != _index_fingerprint(after):
            found.add("retrieval")
        if _index_differs(before, after):
            found.add("index")
    if _judge(before) != _judge(after):
        found.add("judge")
    return tuple(factor for factor in SWAPS if factor in found)


def swapped(before: Definition, after: Definition, factors: Collection[Swap]) -> Definition:
    """`after` with these factors as in `before`.

    Raises BadInput when that is nothing that could run: a prompt that needs a context without retrieval.
    """
    if "model" in factors and (before.bundle.target is None) != (after.bundle.target is None):
        return _with_judge(before, before if "judge" in factors else after)
    bundle: dict[str, object] = {}
    changes: dict[str, object] = {}
    if "model" in factors:
        bundle |= {name: getattr(before.bundle, name) for name in _ENDPOINT}
    if "prompt" in factors:
        bundle |= {"prompt": before.bundle.prompt, "parameters": before.bundle.parameters}
        changes["prompt"] = before.prompt
    if "retrieval" in factors:
        bundle["retrieval"] = before.bundle.retrieval
        changes["retrieval"] = before.retrieval
        changes["index"] = after.index if _fits(before.retrieval, after.index) else before.index
    if "index" in factors:
        changes["index"] = before.index
    found = after.model_copy(update=changes | {"bundle": after.bundle.model_copy(update=bundle)})
    if _needs_context(found.prompt) and found.retrieval is None:
        raise BadInput(f"the prompt {found.prompt_version} needs a context, and no retrieval would give it one")
    return _with_judge(found, before) if "judge" in factors else found


def movers(policy: Policy, metric: str) -> tuple[Swap, ...]:
    """The factors that can move a metric at all. Raises BadInput for one that cannot fall."""
    spec = next((spec for spec in policy.metrics if spec.name == metric), None)
    if spec is None:
        raise BadInput(f"no scorer yields the metric {metric!r}; known: {', '.join(m.name for m in policy.metrics)}")
    if spec.higher_is_better is None:
        raise BadInput(f"{metric} has no better direction, so it cannot have fallen; name another with --metric")
    scorer = scorer_of(policy, metric)
    found = set(SWAPS)
    if scorer.kind not in JUDGED:
        found.discard("judge")
    if isinstance(scorer, RetrievalScorer) or (
        isinstance(scorer, RagasScorer) and scorer.metric in {"context_precision", "context_recall"}
    ):
        found -= {"model", "prompt"}  # it looks at what was found, not at what was answered
    return tuple(factor for factor in SWAPS if factor in found)


def scorer_of(policy: Policy, metric: str) -> Scorer:
    """The scorer that yields a metric of the policy."""
    return next(scorer for scorer in policy.scorers if metric in {spec.name for spec in scorer.metrics})


def _with_judge(definition: Definition, of: Definition) -> Definition:
    bundle = definition.bundle.model_copy(update={"judge": of.bundle.judge})
    return definition.model_copy(update={"bundle": bundle, "judge_prompt": of.judge_prompt})


def _judge(definition: Definition) -> object:
    judge = definition.bundle.judge
    return (definition.judge_fingerprint, judge.api_base, judge.embedding.api_base) if judge else None


def _index_fingerprint(definition: Definition) -> str:
    return definition.retrieval.index_fingerprint if definition.retrieval else ""


def _index_differs(before: Definition, after: Definition) -> bool:
    if before.index is None or after.index is None:
        return False
    same = (before.index.table, before.index.content_digest) == (after.index.table, after.index.content_digest)
    return not same and _fits(before.retrieval, after.index) and _fits(after.retrieval, before.index)


def _fits(config: RetrievalConfig | None, index: IndexVersion | None) -> bool:
    """The config can search this index as it means to."""
    return config is not None and index is not None and index_fits(index, config)


def _needs_context(prompt: Prompt | None) -> bool:
    return prompt is not None and "context" in placeholders(prompt.system) | placeholders(prompt.template)
