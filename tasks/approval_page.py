"""What an approver sees on the page of the waiting flow run: the question, the evidence, who may answer, until when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.prefect_sinks import create_markdown_artifact
from touchstone.errors import BadInput
from touchstone.gate_records import GateReport
from touchstone.ledger import EventKind, canary_subject, gate_subject
from touchstone.release import ApprovalRequest, Candidate, Promotion, ReleaseState
from touchstone.release_record import describe

_SHOWN = ("model", "prompt_version", "retrieval_config_version", "index_version", "fingerprint")


def create_approval_artifact(request: ApprovalRequest, page: str) -> None:
    """One key per question: what it came to replaces what was asked."""
    apply_defaults()
    create_markdown_artifact(page, key=request.approval_id, description=f"approval of {request.fingerprint}")


def approval_page(ledger: Ledger, state: ReleaseState, request: ApprovalRequest, refused: Sequence[str] = ()) -> str:
    """Markdown; `refused` are answers that did not count, and why."""
    candidate = state.candidate
    if candidate is None:
        return f"# {request.approval_id}\n\nThere is nothing to approve any more."
    lines = [
        f"# May {candidate.deployment.name} take all traffic of {state.environment}?",
        "",
        question(request),
        "",
        *(f"> Not counted: {_plain(why)}" for why in refused),
        "",
        "Resume this flow run to answer, or `touchstone approve --reason WHY` / `touchstone deny --reason WHY`.",
        "",
        *_difference(candidate, state.champion),
        "",
        *_canary(ledger, candidate),
        "",
        *_gate(ledger, candidate),
    ]
    return "\n".join(lines)


def question(request: ApprovalRequest) -> str:
    """Who has to answer, who has, and until when."""
    people = ", ".join(f"{approver.name}{' (signed)' if approver.public_key else ''}" for approver in request.approvers)
    owner = f" {request.owner} answers for this release." if request.owner else ""
    given = f" Given: {', '.join(request.approved_by)}." if request.given else ""
    needed = "1 approval is" if request.required == 1 else f"{request.required} approvals are"
    return _plain(
        f"{needed} needed, by {people or 'anybody who gives a name'}, until "
        f"{request.expires_at[:16].replace('T', ' ')} UTC.{given}{owner}"
    )


def _difference(candidate: Candidate, champion: Promotion | None) -> list[str]:
    new = describe(candidate.deployment)
    old = describe(champion.deployment) if champion else {}
    changed = ", ".join(candidate.deployment.changed) or "nothing that the gate names"
    against = f"against {old['bundle']}" if old else "the first release"
    rows = [f"## What changes: {changed}, {against}", "", "| | champion | candidate |", "|---|---|---|"]
    for name in _SHOWN:
        if new.get(name) or old.get(name):
            mark = "**" if new.get(name) != old.get(name) else ""
            rows.append(f"| {name} | {_cell(old.get(name))} | {mark}{_cell(new.get(name))}{mark} |")
    return rows


def _canary(ledger: Ledger, candidate: Candidate) -> list[str]:
    if candidate.canary is None:
        return ["## Canary", "", "It was on no canary traffic: the policy, or a first release, asks for none."]
    looked = ledger.latest(EventKind.CANARY_LOOKED, canary_subject(candidate.canary.canary_id))
    lines = [f"## Canary: {candidate.canary.status}", "", _plain(candidate.canary.reason)]
    if looked:
        seen = looked.payload
        lines += [
            "",
            f"Look {seen.get('look')}: {seen.get('n_canary')} requests of the canary were judged beside "
            f"{seen.get('n_champion')} of the champion.",
        ]
    return lines


def _gate(ledger: Ledger, candidate: Candidate) -> list[str]:
    """The gate's own page, where its content is still there."""
    from tasks.announce_gate import markdown

    deployment = candidate.deployment
    events = ledger.events(EventKind.GATE_DECIDED, gate_subject(deployment.name))
    event = next((one for one in reversed(events) if one.payload.get("gate_key") == deployment.gate_key), None)
    means = ", ".join(f"{name} {mean:.3f}" for name, mean in deployment.scores.items())
    lines = [f"## Gate {deployment.gate_key}", "", f"On {deployment.dataset}: {means or 'no means recorded'}."]
    if event is None:
        return lines
    try:
        return [*lines, "", markdown(GateReport.model_validate_json(ledger.content(event)))]
    except (BadInput, ValidationError):  # erased, or of another version: the decision itself is in the payload
        return [*lines, "", _plain(str(event.payload.get("reason", "")))]


def _cell(value: Any) -> str:
    """As code: Prefect's page takes support@1.0.0 for a mail address."""
    return f"`{' '.join(str(value).split()).replace('`', '').replace('|', chr(92) + '|')}`" if value else "–"


def _plain(text: str) -> str:
    """As text: a name or a reason must not become a link or a table of its own."""
    for mark in "\\`*_{}[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
