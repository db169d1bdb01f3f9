"""Two runs of one golden set, read from their spools: which cases fell between them, and between which definitions."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from tasks.ledger import Ledger
from tasks.loading import GoldenSet, load_golden_set
from tasks.plan import EvalManifest, read_manifest
from tasks.releases import read_release
from tasks.spool import Spool, existing_spool, run_folders
from touchstone.attribution_records import Fallen, LeftOut
from touchstone.cases import GoldenCase
from touchstone.definition import Definition
from touchstone.drift import Baseline
from touchstone.errors import BadInput
from touchstone.factor_swaps import movers, scorer_of
from touchstone.ledger import EventKind, drift_subject
from touchstone.results import Answer, CaseResult
from touchstone.scorer_specs import JUDGED, Scorer
from touchstone.scorers import deterministic_scores
from touchstone.settings import Settings

_WORTH = 0.25  # of the largest fall: what fell by less is mostly noise of a graded score


@dataclass(frozen=True)
class PastRun:
    """A finished run as its spool has it."""

    manifest: EvalManifest
    definition: Definition
    results: Mapping[str, tuple[CaseResult, ...]]  # by case, in order of trial

    @property
    def key(self) -> str:
        return self.manifest.run_key


@dataclass(frozen=True)
class Fall:
    """What fell. `golden` holds just these cases, in the order of the hash of their ids, and the one scorer."""

    before: PastRun
    after: PastRun
    metric: str
    scorer: Scorer
    golden: GoldenSet
    fallen: tuple[Fallen, ...]
    fell: int
    rose: int
    mean_before: float
    mean_after: float
    left_out: LeftOut

    @property
    def judged(self) -> bool:
        return self.scorer.kind in JUDGED

    def answers(self, run: PastRun) -> dict[str, Answer]:
        """The first recorded answer to each case that fell."""
        found = {case.id: run.results[case.id][0].answer for case in self.golden.cases}
        return {case_id: answer for case_id, answer in found.items() if answer is not None}


def read_fall(settings: Settings, before_key: str, after_key: str, metric: str | None = None) -> Fall:
    """What fell between two runs. Raises BadInput when they cannot be compared, or when nothing fell.

    Scores without a judge are counted anew from the recorded answers, so that a scorer edited meanwhile is no cause.
    """
    if before_key == after_key:
        raise BadInput(f"{before_key} is named twice: give the run before and the run after the fall")
    before, after = (read_run(settings, key) for key in (before_key, after_key))
    if before.manifest.dataset_name != after.manifest.dataset_name:
        raise BadInput(
            f"{before_key} is of the golden set {before.manifest.dataset_name}, {after_key} of "
            f"{after.manifest.dataset_name}: give two runs of one golden set"
        )
    request = after.manifest.request
    golden = load_golden_set(settings.root, request.dataset, request.policy)
    metric = metric or next(
        (spec.name for spec in golden.policy.metrics if spec.higher_is_better is not None),
        golden.policy.metrics[0].name,
    )
    movers(golden.policy, metric)
    scorer = scorer_of(golden.policy, metric)
    _check_scorers(before, after, golden, scorer)
    cases, left_out = _comparable(before, after, golden)
    was, now = ({case.id: _score(run, case, scorer, metric) for case in cases} for run in (before, after))
    unscored = tuple(case.id for case in cases if was[case.id] is None or now[case.id] is None)
    pairs = {id: (a, b) for id in was if (a := was[id]) is not None and (b := now[id]) is not None}
    if not pairs:
        raise BadInput(f"no case has a score of {metric} in both {before_key} and {after_key}: nothing can be compared")
    fallen = _fallen(pairs)
    if not fallen:
        raise BadInput(
            f"no case scores lower in {metric} in {after_key} than in {before_key}: nothing fell"
            f"{_elsewhere(before, after, golden, metric)}"
        )
    chosen = {case.case_id for case in fallen}
    ordered = sorted((case for case in cases if case.id in chosen), key=lambda case: _hash(case.id))
    policy = golden.policy.model_copy(update={"scorers": (scorer,)})
    by_id = {case.case_id: case for case in fallen}
    return Fall(
        before=before,
        after=after,
        metric=metric,
        scorer=scorer,
        golden=replace(golden, cases=tuple(ordered), policy=policy),
        fallen=tuple(by_id[case.id] for case in ordered),
        fell=sum(b < a for a, b in pairs.values()),
        rose=sum(b > a for a, b in pairs.values()),
        mean_before=math.fsum(a for a, _ in pairs.values()) / len(pairs),
        mean_after=math.fsum(b for _, b in pairs.values()) / len(pairs),
        left_out=left_out.model_copy(update={"unscored": unscored}),
    )


def read_run(settings: Settings, run_key: str) -> PastRun:
    """A run with its definition. Raises BadInput for one that is unfinished or was made by an older touchstone."""
    spool = existing_spool(settings.state, run_key)
    manifest = read_manifest(spool)
    if not spool.has("definition.json"):
        raise BadInput(
            f"run {run_key} keeps no definition (an older touchstone made it), so nothing of it can be swapped back; "
            "make a new run of that bundle"
        )
    try:
        definition = Definition.model_validate(spool.read_json("definition.json"))
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadInput(f"{spool.folder / 'definition.json'}: field {field}: another touchstone wrote it") from None
    results: dict[str, list[CaseResult]] = defaultdict(list)
    for (case_id, _), result in sorted(spool.cases().items(), key=lambda item: item[0][1]):
        results[case_id].append(result)
    return PastRun(manifest, definition, {case_id: tuple(trials) for case_id, trials in results.items()})


def latest_run(settings: Settings) -> str:
    """The last finished eval. Raises BadInput when there is none."""
    for spool in reversed(_in_order(settings)):
        if spool.has("report.json") and spool.read_json("manifest.json").get("purpose") == "eval":
            return spool.run_key
    raise BadInput("no eval has finished yet; `touchstone eval run` makes one")


def run_before(settings: Settings, after_key: str, change_point: str | None = None) -> str:
    """The run to compare with: the last of the frozen baseline, or the last good one of this bundle and golden set.

    With a change point, the last run before it. Raises BadInput when there is none.
    """
    after = read_manifest(existing_spool(settings.state, after_key))
    if change_point is None and (frozen := _last_of_baseline(settings, after)) is not None:
        return frozen
    earlier: list[str] = []
    for spool in _in_order(settings):
        if spool.run_key in {after_key, change_point}:
            break
        if _is_good(spool, after):
            earlier.append(spool.run_key)
    if not earlier:
        raise BadInput(
            f"no good run of {after.bundle_name} on {after.dataset_name} comes before {after_key}; "
            "name one with --before"
        )
    return earlier[-1]


def release_runs(settings: Settings) -> tuple[str, str]:
    """The evidence runs of the champion before and of the present one. Raises BadInput when there are no two."""
    ledger = Ledger(settings.ledger, settings.environment)
    try:
        state = read_release(ledger)
    finally:
        ledger.close()
    if state.champion is None or not state.previous:
        raise BadInput(
            f"{settings.environment} has no champion before the present one; name runs with --before and --after"
        )
    deployments = (state.previous[-1].deployment, state.champion.deployment)
    for deployment in deployments:
        if not deployment.run_keys:
            raise BadInput(f"the release of {deployment.name} names no run as its evidence; use --before and --after")
    return deployments[0].run_keys[0], deployments[1].run_keys[0]


def _in_order(settings: Settings) -> list[Spool]:
    """All runs, oldest first; their names tell the second only."""
    spools = [Spool(folder) for folder in run_folders(settings.state)]
    return sorted(spools, key=lambda spool: spool.read_json("manifest.json").get("created_at", ""))


def _last_of_baseline(settings: Settings, after: EvalManifest) -> str | None:
    subject = drift_subject(after.bundle_name, after.bundle_fingerprint, after.dataset_name)
    ledger = Ledger(settings.ledger, settings.environment)
    try:
        frozen = ledger.latest(EventKind.BASELINE_FROZEN, subject)
        keys = Baseline.model_validate_json(ledger.content(frozen)).run_keys if frozen else ()
    finally:
        ledger.close()
    known = {folder.name for folder in run_folders(settings.state)}
    return next((key for key in reversed(keys) if key in known and key != after.run_key), None)


def _is_good(spool: Spool, after: EvalManifest) -> bool:
    if not (spool.has("report.json") and spool.has("definition.json")):
        return False
    manifest, report = spool.read_json("manifest.json"), spool.read_json("report.json")
    same = (manifest["bundle_name"], manifest["dataset_name"]) == (after.bundle_name, after.dataset_name)
    return same and report.get("verdict") in {"stable", "calibration"}


def _check_scorers(before: PastRun, after: PastRun, golden: GoldenSet, scorer: Scorer) -> None:
    digests = {before.manifest.scorers_digest, after.manifest.scorers_digest, golden.policy.scorers_digest}
    if scorer.kind in JUDGED and len(digests) > 1:
        raise BadInput(
            f"{golden.policy_path}: the scorers changed since one of the runs, and a judge's scores cannot be counted "
            f"anew for nothing: restore them, or run both bundles again. {scorer.name} is judged"
        )


def _comparable(before: PastRun, after: PastRun, golden: GoldenSet) -> tuple[list[GoldenCase], LeftOut]:
    """The cases that are the same in both runs and now."""
    cases, edited, known = [], [], set()
    for case in golden.cases:
        known.add(case.id)
        if case.id not in before.results or case.id not in after.results:
            continue
        digests = {run.results[case.id][0].case_digest for run in (before, after)}
        if digests == {case.digest}:
            cases.append(case)
        else:
            edited.append(case.id)
    gone = (before.results.keys() ^ after.results.keys()) | (before.results.keys() - known)
    return cases, LeftOut(edited=tuple(edited), gone=tuple(sorted(gone)))


def _score(run: PastRun, case: GoldenCase, scorer: Scorer, metric: str) -> float | None:
    """Mean over the trials that have a score."""
    values = []
    for result in run.results[case.id]:
        if result.answer is None:
            continue
        recorded = scorer.kind in JUDGED
        scores = result.scores if recorded else deterministic_scores(scorer, case, result.answer)
        score = scores.get(metric)
        if score is not None and score.value is not None:
            values.append(score.value)
    return math.fsum(values) / len(values) if values else None


def _fallen(pairs: Mapping[str, tuple[float, float]]) -> list[Fallen]:
    largest = max(was - now for was, now in pairs.values())
    if largest <= 0:
        return []
    return [
        Fallen(case_id=case_id, before=was, after=now)
        for case_id, (was, now) in pairs.items()
        if was - now >= _WORTH * largest
    ]


def _elsewhere(before: PastRun, after: PastRun, golden: GoldenSet, metric: str) -> str:
    """Other metrics that did fall, for the message."""
    cases, _ = _comparable(before, after, golden)
    names = []
    for spec in golden.policy.metrics:
        if spec.name == metric or spec.higher_is_better is None:
            continue
        scorer = scorer_of(golden.policy, spec.name)
        drop = [_drop(before, after, case, scorer, spec.name) for case in cases]
        if any(value > 0 for value in drop):
            names.append(spec.name)
    return f". {', '.join(names)} fell somewhere: --metric {names[0]}" if names else ""


def _drop(before: PastRun, after: PastRun, case: GoldenCase, scorer: Scorer, metric: str) -> float:
    was, now = (_score(run, case, scorer, metric) for run in (before, after))
    return was - now if was is not None and now is not None else 0.0


def _hash(case_id: str) -> str:
    return hashlib.sha256(case_id.encode()).hexdigest()
