"""What people and programs are shown of a release: the deployment record, the state, the history."""

from __future__ import annotations

from typing import Any

from touchstone.ledger import EventKind, LedgerEvent
from touchstone.release import ApprovalRequest, Candidate, Deployment, Promotion, ReleaseState


def deployment_record(promotion: Promotion) -> dict[str, Any]:
    """What is served, since when, by whose word, and on which evidence."""
    return describe(promotion.deployment) | {
        "sequence": promotion.sequence,
        "promoted_at": promotion.promoted_at,
        "promoted_by": promotion.promoted_by,
        "reason": promotion.reason,
    }


def describe(deployment: Deployment) -> dict[str, Any]:
    """A bundle as the gate passed it."""
    definition = deployment.definition
    return {
        "bundle": deployment.name,
        "fingerprint": deployment.fingerprint,
        "model": definition.model,
        "prompt_version": definition.prompt_version or None,
        "retrieval_config_version": definition.retrieval_version or None,
        "index_version": definition.index_version or None,
        "changed": list(deployment.changed),
        "dataset": deployment.dataset,
        "scores": dict(deployment.scores),
        "evidence_run_keys": list(deployment.run_keys),
        "gate_key": deployment.gate_key,
    }


def show(state: ReleaseState) -> dict[str, Any]:
    """The object that `touchstone release show --json` prints."""
    candidate = state.candidate
    return {
        "environment": state.environment,
        "sequence": state.sequence,
        "champion": deployment_record(state.champion) if state.champion else None,
        "served_since_sequence": state.served_since or None,
        "candidate": _candidate(candidate) if candidate else None,
        "canary": state.canary.model_dump(mode="json") if state.canary else None,
        "approval": approval(candidate.approval) if candidate and candidate.approval else None,
        "previous": [deployment_record(promotion) for promotion in reversed(state.previous)],
    }


def approval(request: ApprovalRequest) -> dict[str, Any]:
    """The open question: who must answer, who has, and until when."""
    return {
        "approval_id": request.approval_id,
        "fingerprint": request.fingerprint,
        "owner": request.owner,
        "required": request.required,
        "approvers": [approver.name for approver in request.approvers],
        "given": [given.model_dump(mode="json") for given in request.given],
        "asked_at": request.asked_at,
        "expires_at": request.expires_at,
        "complete": request.is_complete,
    }


def history_row(event: LedgerEvent) -> dict[str, Any]:
    """One release event: what it did, to which bundle, by whose word."""
    payload = event.payload
    deployed = payload.get("deployment")
    return {
        "sequence": event.sequence,
        "at": event.at,
        "kind": event.kind.value,
        "bundle": deployed["definition"]["bundle"]["name"] if deployed else None,
        "fingerprint": deployed["fingerprint"] if deployed else payload.get("fingerprint") or payload.get("from"),
        "by": payload.get("by"),
        "reason": payload.get("reason"),
        "detail": _detail(event),
    }


def _detail(event: LedgerEvent) -> str:
    payload = event.payload
    if event.kind in {EventKind.CANARY_STARTED, EventKind.CANARY_WIDENED}:
        return f"{payload['share']:.0%} of traffic"
    if event.kind is EventKind.APPROVAL_ASKED:
        return f"{payload['required']} needed until {payload['expires_at']}"
    if event.kind is EventKind.APPROVAL_GIVEN:
        return f"{payload['decision']} by {payload['via']}"
    if event.kind is EventKind.RELEASE_ROLLED_BACK:
        to = f", back to event {payload['to_sequence']}" if payload["what"] == "champion" else ""
        return f"{payload['what']}{to}"
    return ""


def _candidate(candidate: Candidate) -> dict[str, Any]:
    rules = candidate.deployment.policy
    return describe(candidate.deployment) | {
        "sequence": candidate.sequence,
        "passed_at": candidate.passed_at,
        "canary_required": rules.canary.required,
        "approvals_required": rules.approval.required,
    }
