"""Flow runs that wait in Prefect for an answer: what they were told, and their end when the answer came elsewhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from touchstone.privacy import redact_secrets

FLOW = "promotion"
_KEY = re.compile(r"suspended-(approval-\d+-[0-9a-f]+)-(\d+)-(schema|response)")
_MOST = 200  # answers of one flow run, runs that wait


@dataclass(frozen=True)
class FormAnswers:
    """What one flow run has asked, and what was answered, in order."""

    asked: tuple[str, ...]  # approval ids
    given: tuple[tuple[str, dict[str, Any]], ...]  # (approval id, the form as it was filled in)
    forms: int  # that were shown

    def next_key(self, approval_id: str) -> str:
        """Of the next form; a key that was used once would be taken as answered."""
        return f"{approval_id}-{self.forms + 1}"

    def of(self, approval_id: str) -> list[dict[str, Any]]:
        return [form for asked, form in self.given if asked == approval_id]


def form_answers(flow_run_id: Any) -> FormAnswers:
    """Read from Prefect: a resumed flow run begins at the top, and has to know what it was told."""
    from uuid import UUID

    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        inputs = client.filter_flow_run_input(UUID(str(flow_run_id)), "suspended-approval-", _MOST, set())
    return answers_in([(found.key, found.decoded_value) for found in inputs])


def answers_in(inputs: Sequence[tuple[str, Any]]) -> FormAnswers:
    """Sorted out by the keys that Prefect keeps them under."""
    known = [(_KEY.fullmatch(key), value) for key, value in inputs]
    found = sorted(
        ((int(match[2]), match[1], match[3], value) for match, value in known if match), key=lambda one: one[:3]
    )
    return FormAnswers(
        asked=tuple(dict.fromkeys(approval_id for _, approval_id, _, _ in found)),
        given=tuple((approval_id, value) for _, approval_id, what, value in found if what == "response"),
        forms=max((number for number, _, _, _ in found), default=0),
    )


def end_waiting_runs(approval_id: str, form: dict[str, Any], *, but: Any = None) -> str | None:
    """Resume the flow runs that wait for an answer which was given elsewhere, so that they end.

    They find the answer in the ledger; `form` only has to be one that Prefect takes. Returns why one could not be
    told: it then waits until the question expires. Without a Prefect server there is none.
    """
    if not os.environ.get("PREFECT_API_URL") and "prefect" not in sys.modules:
        return None
    try:
        for flow_run_id in _waiting(approval_id):
            if str(flow_run_id) != str(but):
                _resume(flow_run_id, form)
    except Exception as error:  # whatever Prefect says: the decision stands in the ledger
        why = redact_secrets(f"{type(error).__name__}: {error}").splitlines()[0]
        return f"the flow run that waits for {approval_id} could not be told, and waits until it expires: {why}"
    return None


def _waiting(approval_id: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    paused = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=[StateType.PAUSED]))
    with get_client(sync_client=True, httpx_settings={"timeout": 5}) as client:
        runs = client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[FLOW])),
            flow_run_filter=filters.FlowRunFilter(state=paused),
            limit=_MOST,
        )
    keys = [(run.id, (run.state.state_details.pause_key or "") if run.state else "") for run in runs]
    return [id for id, key in keys if key.startswith(f"{approval_id}-")]


def _resume(flow_run_id: Any, form: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.responses import SetStateStatus

    with get_client(sync_client=True, httpx_settings={"timeout": 5}) as client:
        answer = client.resume_flow_run(flow_run_id, run_input=form)
    if answer.status is not SetStateStatus.ACCEPT:  # HTTP says 200 in any case
        raise RuntimeError(getattr(answer.details, "reason", None) or answer.status.value)
