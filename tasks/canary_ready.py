"""What must hold before a canary gets traffic: it can be judged, the judge can be paid, and its model is there."""

from __future__ import annotations

from tasks.vendor import Vendor
from tasks.vendor_endpoint import check_cap, check_endpoint
from tasks.vendor_errors import RequestRefused
from tasks.vendor_loop import wait_for
from touchstone.bundle import Endpoint
from touchstone.definition import Definition
from touchstone.errors import BadInput, CaseFailure, InvalidAnswer, Unmeasurable, VendorTimeout, VendorUnavailable
from touchstone.prompts import GenerationParameters
from touchstone.release_policy import CanaryPolicy
from touchstone.scorer_specs import JUDGED, RagasScorer, RefusalScorer, RegexScorer, RubricScorer, Scorer, TextScorer
from touchstone.settings import Settings

ANSWERED = "answered"  # the guardrail that every canary has: its own model answered, without an error
WEIGHTS = {ANSWERED: 0.1}  # in the average that shows harm: a bundle that fails to answer is soon found all the same
_FIELD = "policy.yaml: field release.canary"


def guardrails(policy: CanaryPolicy) -> list[str]:
    """The metrics that a canary must not lower. Raises BadInput when two have one name, or one cannot be judged."""
    for scorer in policy.scorers:
        scale_of(scorer)
    names = [metric.name for scorer in policy.scorers for metric in scorer.metrics] + [*policy.feedback, ANSWERED]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadInput(f"{_FIELD}: two guardrails are called {doubled[0]!r}; rename the scorer or the assessment")
    return names


def scale_of(scorer: Scorer) -> tuple[float, float]:
    """Smallest and largest score of a scorer that live traffic can use. Raises BadInput for one that it cannot."""
    usable = isinstance(scorer, RubricScorer | RegexScorer | TextScorer | RefusalScorer)
    if isinstance(scorer, RagasScorer):
        usable = scorer.metric in {"faithfulness", "answer_relevancy"}
    if not usable or scorer.scale is None:
        why = "has no scale" if scorer.scale is None else "needs a reference, which live traffic has not"
        raise BadInput(
            f"{_FIELD}.scorers: {scorer.name} (kind {scorer.kind}) {why}; a canary can use rubric, regex, contains, "
            "not_contains, refusal, and ragas' faithfulness and answer_relevancy"
        )
    return scorer.scale


def check_judge(champion: Definition, policy: CanaryPolicy) -> None:
    """Raise BadInput when the champion's judge, which scores both arms, is missing or cannot be paid."""
    judged = [scorer.name for scorer in policy.scorers if scorer.kind in JUDGED]
    if not judged:
        return
    if champion.bundle.judge is None or champion.judge_prompt is None:
        raise BadInput(
            f"{_FIELD}.scorers: {', '.join(judged)} need a judge, but the champion {champion.bundle.name} has none; "
            "add `judge: {model: ...}` to its bundle and release it, or list scorers that need no judge"
        )
    check_endpoint(champion.bundle.judge)
    check_cap(champion.bundle.judge, policy.max_cost_usd, "add `price: {...}` to the judge")


def check_model(settings: Settings, definition: Definition) -> None:
    """One cheap call: does the vendor serve the pinned model?

    Raises BadInput when the vendor refuses it (retired, unknown, no access), Unmeasurable when nobody answers.
    """
    if definition.bundle.model is None:
        return  # the user's own app: its address is not ours to probe
    endpoint = definition.bundle.endpoint
    check_endpoint(endpoint)
    try:
        wait_for(_probe(settings, endpoint))
    except RequestRefused as error:
        what = "canary on a retired model" if "404" in str(error) else "the vendor refuses the canary's model"
        raise BadInput(
            f"{what}: {endpoint.model}: {error}; nothing was started. Pin a model that is served, and let it pass "
            "the gate"
        ) from None
    except (VendorUnavailable, VendorTimeout) as error:
        raise Unmeasurable(f"{endpoint.model} does not answer now ({error}); nothing was started, try again") from None


async def _probe(settings: Settings, endpoint: Endpoint) -> None:
    vendor = Vendor(concurrency=1, deadline_s=min(settings.deadline_s, 30.0), attempts=2)
    messages = [{"role": "user", "content": "Reply with the word OK."}]
    try:
        await vendor.complete(endpoint, messages, GenerationParameters(max_tokens=64), role="probe")
    except (VendorUnavailable, VendorTimeout):
        raise
    except (InvalidAnswer, CaseFailure):
        return  # it answers, however badly: what it says is for the gate and the canary to judge
