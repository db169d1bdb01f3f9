"""A golden set's judge against its human labels, metric by metric."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.label_files import labels_path, read_labels
from tasks.label_judging import judge_settled, judged_metrics
from tasks.loading import GoldenSet, load_golden_set
from touchstone.calibration import Calibration, Rated, calibrate, settle
from touchstone.errors import BadInput, Unmeasurable
from touchstone.label_policy import Question
from touchstone.settings import Settings

_JUDGED_POLICY = "policy-judged.yaml"


@dataclass(frozen=True)
class JudgeReport:
    """A metric's calibration, and where its scores came from; `failures` are answers without one, by reason."""

    calibration: Calibration
    recorded: int
    judged_now: int
    failures: dict[str, int]
    spent_usd: float


def calibrate_judge(
    settings: Settings,
    dataset: str,
    *,
    metric: str | None = None,
    bundle: str = "support",
    policy: str | None = None,
    rescore: bool = False,
) -> list[JudgeReport]:
    """Every labelled metric that a judge scores too, or `metric` alone.

    Thresholds and questions are of the golden set's policy.yaml; the judge's scorers those of its canary, then those
    of `policy`, or of policy-judged.yaml where there is one. Raises Unmeasurable without labels, BadInput for a metric
    that is not asked, or that no judge scores.
    """
    golden = load_golden_set(settings.root, dataset)
    has_judged = (golden.path / _JUDGED_POLICY).is_file()
    judged = load_golden_set(settings.root, dataset, policy or (_JUDGED_POLICY if has_judged else None))
    labels = read_labels(golden)
    labelled = {label.metric for label in labels}
    questions = _questions(golden, labelled, metric)
    scorers, reports = judged_metrics(golden, judged), []
    for question in questions:
        scorer = scorers.get(question.judged_by)
        if scorer is None:
            continue  # asked for another purpose
        floors = golden.policy.labels.calibration
        settled, ties = settle([label for label in labels if label.metric == question.metric], floors.pass_at)
        found = judge_settled(settings, golden, bundle, scorer, question.judged_by, settled, rescore=rescore)
        rated = [
            Rated(settled[place].passes, score >= floors.pass_at, settled[place].label.weight)
            for place, score in sorted(found.scores.items())
        ]
        result = calibrate(
            question.metric,
            question.judged_by,
            rated,
            floors,
            n_labelled=len(settled),
            ties=ties,
            maximum_unjudged=golden.policy.maximum_failure_share,
        )
        judged_now = len(found.scores) - found.recorded
        reports.append(JudgeReport(result, found.recorded, judged_now, dict(found.failures), found.spent_usd))
    if not reports:
        names = ", ".join(question.judged_by for question in questions)
        raise BadInput(
            f"policy.yaml: field labels.questions: no judge scores {names}, which `judge` of the question names; "
            f"known: {', '.join(scorers) or 'none'} (--policy names another policy file)"
        )
    return reports


def _questions(golden: GoldenSet, labelled: set[str], metric: str | None) -> list[Question]:
    asked = golden.policy.labels.questions
    if metric is not None and golden.policy.labels.question(metric) is None:
        known = ", ".join(question.metric for question in asked)
        raise BadInput(f"--metric {metric}: is not asked; known (policy.yaml, labels.questions): {known}")
    found = [question for question in asked if question.metric in labelled and metric in {None, question.metric}]
    if not found:
        what = f"of {metric} " if metric else ""
        raise Unmeasurable(f"{labels_path(golden)}: no labels {what}yet; `touchstone labels sample`, then `import`")
    return found
