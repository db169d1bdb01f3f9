"""A gate on two finished evals instead of new runs: allowed only where both are of the same question, and fresh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from tasks.gate_plan import GatePlan, GateRequest, plan_gate
from tasks.gating import gate_report, store_report
from tasks.plan import EvalManifest, read_manifest
from tasks.spool import Spool, existing_spool
from touchstone.definition import Definition
from touchstone.errors import BadInput
from touchstone.gate_records import GateReport
from touchstone.promotion import Stage, decide_gate
from touchstone.report import EvalReport
from touchstone.results import CaseResult
from touchstone.settings import Settings


def gate_on_runs(
    settings: Settings, request: GateRequest, run: str, against_run: str | None
) -> tuple[GatePlan, GateReport]:
    """Decide on finished runs, at one look that has all of alpha: nothing is repeated, and nothing paid.

    Raises BadInput when the runs cannot be compared, are not of the bundles as they are now, or are stale.
    """
    started = time.monotonic()
    spools = [existing_spool(settings.state, key) for key in (run, against_run) if key is not None]
    manifests = [read_manifest(spool) for spool in spools]
    plan = plan_gate(settings, request, manifests, [_definition(spool) for spool in spools])
    _check_complete(spools, manifests)
    _check_alike(plan, manifests)
    _check_fresh(plan, manifests)
    _check_bundles(plan, manifests)
    sides = [list(spool.cases().values()) for spool in spools]
    _check_cases(manifests, sides)
    decision = decide_gate(
        plan.golden.cases,  # also those that --limit left out: a pass without them would be none
        sides[0],
        sides[1] if len(sides) > 1 else None,
        plan.policy,
        changed=plan.record.changed,
        required_score=plan.required_score,
        stage=Stage(),
    )
    reports = [EvalReport.model_validate(spool.read_json("report.json")) for spool in spools]
    report = gate_report(plan, decision, reports, "", time.monotonic() - started)
    return plan, store_report(plan, report)


def _definition(spool: Spool) -> Definition:
    try:
        return Definition.model_validate(spool.read_json("definition.json"))
    except (BadInput, ValidationError):
        raise BadInput(
            f"run {spool.run_key} has no definition.json that this version can read; run the eval again"
        ) from None


def _check_complete(spools: Sequence[Spool], manifests: Sequence[EvalManifest]) -> None:
    for spool, manifest in zip(spools, manifests, strict=True):
        if not spool.has("report.json"):
            raise BadInput(f"run {manifest.run_key} is not finished: `touchstone eval run --resume {manifest.run_key}`")


def _check_alike(plan: GatePlan, manifests: Sequence[EvalManifest]) -> None:
    golden = plan.golden
    for manifest in manifests:
        if (manifest.dataset_name, manifest.dataset_digest) != (golden.name, golden.digest):
            raise BadInput(
                f"gate on different golden sets: run {manifest.run_key} is of {manifest.dataset_name} "
                f"({manifest.dataset_digest[:12]}), the gate of {golden.name} as it is now ({golden.digest[:12]})"
            )
        if manifest.scorers_digest != golden.policy.scorers_digest:
            raise BadInput(f"run {manifest.run_key} was scored by other scorers than {golden.policy_path} lists now")
    searched = {manifest.index_version for manifest in manifests[: 1 if "retrieval" in plan.record.changed else None]}
    if searched != {plan.record.deployed.index_version}:
        raise BadInput(
            f"stale evidence: the runs searched {', '.join(sorted(searched))}, readers of the candidate are served "
            f"{plan.record.deployed.index_version} now"
        )
    if len({manifest.judge_fingerprint for manifest in manifests}) > 1:
        raise BadInput("the runs were scored by different judges: another judge, other scores")


def _check_fresh(plan: GatePlan, manifests: Sequence[EvalManifest]) -> None:
    most = plan.policy.release.max_evidence_age_hours
    for manifest in manifests:
        age = (datetime.now(UTC) - datetime.fromisoformat(manifest.created_at)).total_seconds() / 3600
        if age > most:
            raise BadInput(
                f"stale evidence: run {manifest.run_key} is {age:.1f} hours old, release.max_evidence_age_hours is "
                f"{most:g}: the vendor may have moved since. Leave out --run and --against-run: the gate then runs both"
            )


def _check_bundles(plan: GatePlan, manifests: Sequence[EvalManifest]) -> None:
    wanted = [("candidate", plan.record.deployed)]
    if plan.record.champion is not None:
        wanted.append(("champion", plan.record.champion))
    if len(wanted) > len(manifests):
        raise BadInput(f"--against-run is missing: a run of the champion {wanted[1][1].bundle.name}")
    if len(manifests) > len(wanted):
        raise BadInput(
            f"there is no champion in {plan.record.environment}: name one by --against, or leave out the run"
        )
    for (role, definition), manifest in zip(wanted, manifests, strict=True):
        if manifest.bundle_fingerprint != definition.fingerprint:
            raise BadInput(
                f"run {manifest.run_key} is of {manifest.bundle_name} ({manifest.bundle_fingerprint}), but the {role} "
                f"is {definition.bundle.name} ({definition.fingerprint}) now"
            )


def _check_cases(manifests: Sequence[EvalManifest], sides: Sequence[Sequence[CaseResult]]) -> None:
    asked = [{(result.case_id, result.case_digest) for result in results} for results in sides]
    if len(asked) > 1 and asked[0] != asked[1]:
        raise BadInput(
            f"gate on different golden sets: runs {manifests[0].run_key} and {manifests[1].run_key} are of different "
            f"cases ({len(asked[0])} and {len(asked[1])}); --limit must be the same"
        )
    trials = [{result.trial for result in results} for results in sides]
    if len(trials) > 1 and trials[0] != trials[1]:
        raise BadInput("the runs have different --repeats: pairs of means over different numbers of trials")
