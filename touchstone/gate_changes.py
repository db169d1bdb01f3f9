"""Which cases moved between champion and candidate, and what both said: what a person reads after the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from touchstone.cases import GoldenCase
from touchstone.gate_records import CaseChange, Comparison
from touchstone.pii import scrub
from touchstone.policy import Policy
from touchstone.report import case_scores
from touchstone.results import CaseResult

_MOST_CHANGES = 20
_MOST_TEXT = 400

Results = Sequence[CaseResult]


def case_changes(
    cases: Sequence[GoldenCase],
    candidate: Results,
    champion: Results | None,
    policy: Policy,
    rows: Sequence[Comparison],
) -> tuple[list[CaseChange], list[CaseChange]]:
    """The largest loss and the largest gain of each case, largest first; of what stands in the way before the rest."""
    if champion is None:
        return [], []
    blocked = {row.metric for row in rows if row.verdict == "inferior" or row.verdict == "undecided"}
    moved: list[tuple[bool, float, CaseChange]] = []
    for metric in dict.fromkeys(row.metric for row in rows):
        low, high = policy.scale_of(metric)
        new, old = case_scores(candidate, metric), case_scores(champion, metric)
        for case in cases:
            if case.id in new and case.id in old:
                after, before = (sum(trials) / len(trials) for trials in (new[case.id], old[case.id]))
                change = CaseChange(
                    case_id=case.id, segment=case.segment, metric=metric, champion=before, candidate=after
                )
                moved.append((metric not in blocked, (after - before) / (high - low), change))
    worse = sorted((item for item in moved if item[1] < -1e-9), key=lambda item: (item[0], item[1]))
    better = sorted((item for item in moved if item[1] > 1e-9), key=lambda item: -item[1])
    return _first_of_each_case(worse), _first_of_each_case(better)


def _first_of_each_case(moved: Sequence[tuple[bool, float, CaseChange]]) -> list[CaseChange]:
    first: dict[str, CaseChange] = {}
    for _, _, change in moved:
        first.setdefault(change.case_id, change)
    return list(first.values())


def described(changes: Sequence[CaseChange], candidate: Results, champion: Results | None) -> tuple[CaseChange, ...]:
    """With question and answers of the trial that shows the change best."""
    found = []
    for change in changes[:_MOST_CHANGES]:
        worst = min if change.candidate < change.champion else max
        best = max if change.candidate < change.champion else min
        new, old = _trial(candidate, change, worst), _trial(champion or (), change, best)
        texts = {
            "question": new.question if new else "",
            "candidate_answer": new.answer.text if new and new.answer else "",
            "champion_answer": old.answer.text if old and old.answer else "",
        }
        found.append(change.model_copy(update={name: _shortened(text) for name, text in texts.items()}))
    return tuple(found)


def _trial(results: Results, change: CaseChange, choose: Callable[..., CaseResult]) -> CaseResult | None:
    scored = [
        (score.value, result)
        for result in results
        if result.case_id == change.case_id and (score := result.scores.get(change.metric)) and score.value is not None
    ]
    return choose(scored, key=lambda pair: pair[0])[1] if scored else None  # pyright: ignore[reportIndexIssue]


def _shortened(text: str) -> str:
    """Scrubbed of personal data, and short enough to be shown."""
    clean = scrub(" ".join(text.split()))
    return clean if len(clean) <= _MOST_TEXT else f"{clean[: _MOST_TEXT - 1]}…"
