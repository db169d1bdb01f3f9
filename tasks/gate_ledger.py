"""What a gate leaves behind: its decision in the ledger, always; and on a pass the candidate of the environment."""

from __future__ import annotations

import logging
from contextlib import closing

from tasks.gate_plan import GatePlan
from tasks.gating import store_report
from tasks.ledger import Ledger
from tasks.releases import append_release, read_release
from touchstone import release_steps
from touchstone.errors import LedgerConflict
from touchstone.gate_records import GateReport
from touchstone.ledger import EventKind, gate_subject
from touchstone.promotion import GateVerdict
from touchstone.release import Deployment
from touchstone.settings import Settings

Log = logging.Logger | logging.LoggerAdapter


def record_gate(settings: Settings, plan: GatePlan, report: GateReport, log: Log) -> GateReport:
    """Append the decision and, on a pass for the role `candidate`, the candidate. Once each, however often resumed.

    Raises LedgerConflict when the champion is another one than the gate compared with: the pass says nothing of it.
    """
    if not plan.record.request.record:
        return report
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        sequence = _recorded(ledger, report) or _append(ledger, plan, report)
        report = store_report(plan, report.model_copy(update={"recorded": sequence}))
        if report.decision.verdict is GateVerdict.PASS and report.role == "candidate":
            _make_candidate(ledger, plan, report)
            report = store_report(plan, report.model_copy(update={"is_candidate": True}))
        _deliver(settings, ledger, log)
    return report


def _recorded(ledger: Ledger, report: GateReport) -> int | None:
    """Sequence of this decision's event; an unmeasurable gate that was resumed to a verdict gets another one."""
    same = (report.gate_key, report.decision.verdict.value)
    for event in ledger.events(EventKind.GATE_DECIDED, gate_subject(report.bundle)):
        if (event.payload.get("gate_key"), event.payload.get("verdict")) == same:
            return event.sequence
    return None


def _append(ledger: Ledger, plan: GatePlan, report: GateReport) -> int:
    decision = report.decision
    payload = {
        "gate_key": report.gate_key,
        "bundle": report.bundle,
        "fingerprint": report.fingerprint,
        "against": report.against,
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "changed": list(decision.changed),
        "role": report.role,
        "run_keys": list(report.run_keys),
        "dataset": report.dataset,
        "dataset_digest": report.dataset_digest,
        "by": report.by,
    }
    if report.role == "fallback":  # the gateway hands it to apps, which have no files
        payload["definition"] = plan.record.deployed.model_dump(mode="json")
    content = report.model_dump_json().encode()
    return ledger.append(EventKind.GATE_DECIDED, gate_subject(report.bundle), payload, content=content).sequence


def _make_candidate(ledger: Ledger, plan: GatePlan, report: GateReport) -> None:
    state = read_release(ledger)
    serving = state.champion.deployment if state.champion else None
    known = [serving, state.candidate.deployment if state.candidate else None]
    if report.gate_key in {deployment.gate_key for deployment in known if deployment}:
        return
    if serving is not None and serving.fingerprint != report.against:
        raise LedgerConflict(
            f"{report.bundle} passed against {report.against_bundle or 'nothing'}, but {state.environment} serves "
            f"{serving.name} ({serving.fingerprint}) by now: it is no candidate; run the gate again"
        )
    deployment = Deployment(
        definition=plan.record.deployed,
        fingerprint=report.fingerprint,
        changed=report.decision.changed,
        gate_key=report.gate_key,
        dataset=report.dataset,
        scores=report.decision.scores,
        run_keys=report.run_keys,
        policy=plan.policy.release,
    )
    payload = release_steps.candidate(state, deployment, report.by, report.decision.reason)
    append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload)


def _deliver(settings: Settings, ledger: Ledger, log: Log) -> None:
    from tasks.outbox import deliver

    for warning in deliver(settings, ledger):
        log.warning("%s", warning)
