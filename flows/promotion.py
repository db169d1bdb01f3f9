"""Ask people whether the candidate may take all traffic, wait for their word, and let it out."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field, ValidationError

from tasks.approval_page import approval_page, create_approval_artifact, question
from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.outbox import deliver
from tasks.promotions import ask, decide, finish, promote, repair
from tasks.releases import read_release
from tasks.waiting_runs import FLOW, FormAnswers, end_waiting_runs, form_answers
from touchstone.errors import BadInput, LedgerConflict, TouchstoneError
from touchstone.ledger import RELEASE_SUBJECT
from touchstone.release import ApprovalRequest
from touchstone.release_endings import Ending, asked_at, ending
from touchstone.settings import Settings


class ApprovalForm(RunInput):
    """What Prefect asks on the page of the waiting flow run."""

    decision: Literal["approve", "deny"] = Field(description="Deny drops the candidate: it leaves its canary, too")
    name: str = Field(min_length=1, max_length=200, description="Yours, as the policy writes it; it is recorded")
    reason: str = Field(min_length=1, max_length=2000, description="It is recorded")
    signature: str = Field(default="", description="Only where the policy names your public key")


def _flow_run_name() -> str:
    """`promotion of support-cited`; the bundle is known where an event asked."""
    bundle = (flow_run.parameters.get("event") or {}).get("bundle")
    return f"promotion of {bundle}" if bundle else "promotion"


@flow(name=FLOW, flow_run_name=_flow_run_name)
def promotion(event: dict[str, Any] | None = None) -> State:
    """Ask for the approvals that the candidate's policy wants, wait for them, and promote it.

    The flow run is suspended until somebody resumes it with the form: no process waits. An answer that does not count
    (no approver, another candidate, unsigned) is told, and the run waits on. Fails when nobody decided in time.

    Args:
        event: Payload of the event that asked for this (touchstone.release.graduated); empty: by hand.
    """
    apply_defaults()
    settings, log = load_settings(), get_run_logger()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        answers = form_answers(flow_run.id)
        found = _already(ledger, event or {}, answers) or _decided(settings, ledger, answers)
        try:
            repair(settings, ledger)  # where a process died between a release and its index
        except TouchstoneError as error:
            log.error("%s", error)
        for warning in deliver(settings, ledger):
            log.warning("%s", warning)
    log.info("%s: %s", found.name, found.message)
    state = Completed if found.is_fine else Failed
    return state(name=found.name, message=found.message)


def _already(ledger: Ledger, event: dict[str, Any], answers: FormAnswers) -> Ending | None:
    """How it ended, where somebody else was faster; None: the candidate that this run is about is still there."""
    events = ledger.events(subject=RELEASE_SUBJECT)
    since = asked_at(events, answers.asked) or event.get("sequence")
    if since and (found := ending(events, since)):
        return found
    candidate = read_release(ledger).candidate
    if candidate is None:
        return Ending("Nothing to promote", f"{ledger.environment} has no candidate")
    if answers.asked and candidate.approval and candidate.approval.approval_id not in answers.asked:
        return Ending("Expired", f"the question was asked again: {candidate.approval.approval_id}")
    return None


def _decided(settings: Settings, ledger: Ledger, answers: FormAnswers) -> Ending:
    """The end of the candidate's way; suspends the flow run while people have to be heard."""
    refused: list[str] = []
    try:
        candidate = read_release(ledger).candidate
        if candidate and not candidate.deployment.policy.approval.required:
            promote(settings, ledger, "the promotion flow", "the canary graduated, and no approval is asked for")
            return _end(ledger, candidate.sequence)
        request = ask(ledger, again=not answers.asked)
        for form in answers.of(request.approval_id):
            refused += _recorded(settings, ledger, request.approval_id, form)
        finish(settings, ledger)
    except TouchstoneError as error:
        return Ending("Not promoted", str(error))
    now = read_release(ledger).candidate
    if now is None or now.approval is None or now.approval.approval_id != request.approval_id:
        return _end(ledger, asked_at(ledger.events(subject=RELEASE_SUBJECT), [request.approval_id]) or 0)
    if now.approval.is_expired(datetime.now(UTC)):
        return Ending("Expired", f"nobody decided until {request.expires_at}; run this deployment again to ask again")
    return _wait(settings, ledger, now.approval, answers, refused)


def _recorded(settings: Settings, ledger: Ledger, approval_id: str, form: dict[str, Any]) -> list[str]:
    """Record one filled-in form; why it does not count. One that was recorded before the run was resumed is passed."""
    try:
        word = ApprovalForm.model_validate(form)
        candidate = read_release(ledger).candidate
        known = candidate.approval.approved_by if candidate and candidate.approval else ()
        if word.decision == "approve" and word.name in known:
            return []
        decided = decide(
            *(settings, ledger, word.decision, word.name, word.reason),
            via="prefect",
            approval_id=approval_id,
            signature=word.signature or None,
        )
    except (BadInput, LedgerConflict, ValidationError) as error:
        get_run_logger().warning("not counted: %s", error)
        return [str(error)]
    if decided.is_promoted or word.decision == "deny":
        form_again = {"decision": word.decision, "name": word.name, "reason": word.reason}
        if warning := end_waiting_runs(approval_id, form_again, but=flow_run.id):
            get_run_logger().warning("%s", warning)
    return []


def _end(ledger: Ledger, since: int) -> Ending:
    found = ending(ledger.events(subject=RELEASE_SUBJECT), since)
    return found or Ending("Not promoted", "the release moved on; see `touchstone release history`")


def _wait(
    settings: Settings, ledger: Ledger, request: ApprovalRequest, answers: FormAnswers, refused: list[str]
) -> Ending:
    """Show the question, tell everybody, and leave the process; it returns only where Prefect cannot wait."""
    create_approval_artifact(request, approval_page(ledger, read_release(ledger), request, refused))
    for warning in deliver(settings, ledger):
        get_run_logger().warning("%s", warning)
    asked = "\n\n".join([*(f"Not counted: {why}" for why in refused), question(request)])
    seconds = (datetime.fromisoformat(request.expires_at) - datetime.now(UTC)).total_seconds()
    try:
        suspend_flow_run(
            wait_for_input=ApprovalForm.with_initial_data(description=asked),
            timeout=max(1, int(seconds)),
            key=answers.next_key(request.approval_id),
        )
    except RuntimeError as error:  # a flow run without a deployment cannot wait
        return Ending("Not promoted", f"{error} {request.approval_id} is open: `touchstone approve` answers it")
    raise AssertionError("a form is never shown twice under one key")
