"""What the terminal shows of a release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from cli.output import out
from tasks.promotions import Decided
from touchstone.release import Candidate, Promotion, ReleaseState


def print_state(state: ReleaseState, behind: str | None) -> None:
    """Champion first; what is not there takes no line."""
    if state.champion is None:
        out.print(f"{state.environment} serves nothing yet; `touchstone gate --bundle B` makes a candidate")
    else:
        _champion(state.champion)
    if behind:
        out.print(f"[yellow]{escape(behind)}[/]")
    if state.candidate:
        _candidate(state.candidate)
    for promotion in reversed(state.previous):
        when = f"promoted {_minute(promotion.promoted_at)} by {escape(promotion.promoted_by)}"
        out.print(f"[dim]before[/]     {promotion.deployment.name}  {when}  (--to {promotion.sequence})")


def print_history(environment: str, rows: Sequence[dict[str, Any]]) -> None:
    """One line per event, and its reason."""
    if not rows:
        out.print(f"nothing was ever released in {environment}")
    for row in rows:
        parts = [row["bundle"] or "", row["detail"], f"by {row['by']}" if row["by"] else ""]
        told = ", ".join(part for part in parts if part)
        out.print(f"{row['sequence']:>5}  {_minute(row['at'])}  [bold]{row['kind']}[/]  {escape(told)}")
        if row["reason"]:
            out.print(f"       {escape(row['reason'])}", style="dim")


def print_decided(decided: Decided, decision: str) -> None:
    """What one person's word led to."""
    if decision == "deny":
        out.print("[bold red]DENIED[/]  the candidate is off all traffic and is not promoted")
    elif decided.is_promoted and decided.state.champion:
        champion = decided.state.champion
        out.print(f"[bold green]PROMOTED[/]  {champion.deployment.name} takes all traffic (event {champion.sequence})")
    else:
        out.print(f"[green]APPROVED[/]  {escape(decided.open or '')}")
    if decided.promoted and decided.promoted.index_error:
        out.print(f"[yellow]{escape(decided.promoted.index_error)}[/]")


def _champion(promotion: Promotion) -> None:
    deployment = promotion.deployment
    definition = deployment.definition
    out.print(f"[bold green]CHAMPION[/]   [bold]{deployment.name}[/]  {deployment.fingerprint}")
    out.print(f"           promoted {_minute(promotion.promoted_at)} by {escape(promotion.promoted_by)}")
    if promotion.reason:
        out.print(f"           {escape(promotion.reason)}")
    versions = [definition.model, definition.prompt_version, definition.retrieval_version, definition.index_version]
    out.print(f"           {escape(', '.join(version for version in versions if version))}")
    _evidence(deployment.scores, deployment.run_keys)


def _candidate(candidate: Candidate) -> None:
    deployment, canary, request = candidate.deployment, candidate.canary, candidate.approval
    changed = f", changed: {', '.join(deployment.changed)}" if deployment.changed else ""
    out.print(f"[bold cyan]CANDIDATE[/]  [bold]{deployment.name}[/]  {deployment.fingerprint}{changed}")
    out.print(f"           passed the gate {_minute(candidate.passed_at)}")
    _evidence(deployment.scores, deployment.run_keys)
    if canary:
        why = f": {canary.reason}" if canary.reason else ""
        out.print(f"           canary {canary.status} at {canary.share:.0%} of traffic{escape(why)}")
    if request:
        given = f" by {', '.join(request.approved_by)}" if request.given else ""
        until = f"until {_minute(request.expires_at)}"
        who = f"; may approve: {', '.join(one.name for one in request.approvers)}" if request.approvers else ""
        count = f"{len(request.approved_by)} of {request.required} approvals{given}"
        out.print(f"           {request.approval_id}: {escape(count)}, {until}{escape(who)}")


def _evidence(scores: dict[str, float], run_keys: Sequence[str]) -> None:
    if scores:
        out.print(f"           {', '.join(f'{name} {score:.3f}' for name, score in scores.items())}")
    if run_keys:
        out.print(f"           evidence {', '.join(run_keys)}", style="dim")


def _minute(moment: str) -> str:
    """To the minute, in UTC as it is stored."""
    return moment[:16].replace("T", " ")
