"""The promotion flow on a real Prefect server: it waits without a process, and ends once, whoever decides."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.ledger import Ledger
from tasks.promotions import ask, promote
from tasks.releases import append_release, read_release
from tasks.waiting_runs import answers_in
from tests.core.release_line import Line, champion, deployment, without_canary
from touchstone import release_steps as steps
from touchstone.ledger import EventKind
from touchstone.release_endings import asked_at, ending
from touchstone.settings import Settings

ADA = {"decision": "approve", "name": "Ada", "reason": "reads better", "signature": ""}
GRACE = ADA | {"name": "Grace"}


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


class Runs:
    """A release line, and flow runs of the deployment that are executed here as a worker would."""

    def __init__(self, root: Path) -> None:
        from flows.promotion import promotion

        self.settings = Settings(root=root)
        self.ledger = Ledger(self.settings.ledger, "default")
        self.flow = promotion
        made: Any = promotion.to_deployment(name="test")
        self.deployment_id = made.apply()

    @property
    def state(self) -> Any:
        return read_release(self.ledger)

    def candidate(self, name: str, **approval: Any) -> None:
        payload = steps.candidate(self.state, deployment(name, **without_canary(**approval)), "ci", "passed")
        append_release(self.ledger, self.state, EventKind.RELEASE_CANDIDATE, payload)

    def start(self, **event: Any) -> UUID:
        """Execute a new flow run until it ends or waits."""
        with self._client() as client:
            run = client.create_flow_run_from_deployment(self.deployment_id, parameters={"event": event})
        self.go_on(run.id)
        return run.id

    def go_on(self, id: UUID) -> None:
        from prefect.exceptions import Pause
        from prefect.flow_engine import run_flow_sync

        with self._client() as client:
            run = client.read_flow_run(id)
        with contextlib.suppress(Pause):  # how a suspended run leaves its process
            run_flow_sync(self.flow, flow_run=run, parameters=run.parameters, return_type="state")

    def resume(self, id: UUID, form: dict[str, Any]) -> str:
        """Fill in the form; what Prefect says to it."""
        with self._client() as client:
            answer = client.resume_flow_run(id, run_input=form)
        if answer.status.value == "ACCEPT":
            self.go_on(id)
        return answer.status.value

    def name_of(self, id: UUID) -> str:
        with self._client() as client:
            state = client.read_flow_run(id).state
        return (state and state.name) or ""

    def message_of(self, id: UUID) -> str:
        with self._client() as client:
            state = client.read_flow_run(id).state
        return (state and state.message) or ""

    def form_text(self, id: UUID) -> str:
        """What the form says above its fields."""
        with self._client() as client:
            inputs = client.filter_flow_run_input(id, "suspended-approval-", 50, set())
        return [str(found.decoded_value) for found in inputs if found.key.endswith("-description")][-1]

    def given(self) -> list[tuple[str, str]]:
        events = self.ledger.events(EventKind.APPROVAL_GIVEN)
        return [(event.payload["decision"], event.payload["by"]) for event in events]

    @staticmethod
    def _client() -> Any:
        from prefect.client.orchestration import get_client

        return get_client(sync_client=True)


@pytest.fixture
def runs(tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch, mlflow_database: Path) -> Runs:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / ".touchstone").mkdir()
    shutil.copy(mlflow_database, tmp_path / ".touchstone" / "mlflow.db")
    return Runs(tmp_path)


def test_it_waits_for_a_human_and_promotes_on_the_form(runs: Runs) -> None:
    from prefect.artifacts import Artifact

    runs.candidate("one", owner="Ada")
    run = runs.start()
    assert runs.name_of(run) == "Suspended"
    request = ask(runs.ledger)
    (asked,) = runs.ledger.events(EventKind.APPROVAL_ASKED)
    assert asked.payload["flow_run_id"] == str(run)  # what a notice links to, whichever process delivers it
    artifact = Artifact.get(request.approval_id)
    assert artifact
    page = str(getattr(artifact, "data", ""))
    assert "May one take all traffic of default?" in page
    assert "Ada answers for this release" in page
    assert "1 approval is needed" in runs.form_text(run)
    assert runs.resume(run, ADA | {"name": ""}) == "REJECT"  # no name: the form comes back, the run waits on
    assert runs.name_of(run) == "Suspended"
    runs.resume(run, ADA)
    assert (runs.name_of(run), champion(runs.state)) == ("Promoted", "one")
    assert runs.state.champion.promoted_by == "Ada"
    again = runs.start(sequence=1)  # the event came twice
    assert (runs.name_of(again), runs.given()) == ("Promoted", [("approve", "Ada")])


def test_who_is_no_approver_is_refused_and_the_run_waits_for_the_others(runs: Runs) -> None:
    runs.candidate("one", required=2, approvers=["Ada", "Grace"])
    run = runs.start()
    runs.resume(run, ADA | {"name": "Mallory"})
    assert runs.name_of(run) == "Suspended"
    assert "Not counted: Mallory may not approve" in runs.form_text(run)
    runs.resume(run, ADA)
    assert runs.name_of(run) == "Suspended"
    assert "Given: Ada" in runs.form_text(run)
    runs.resume(run, ADA | {"name": "ada"})
    assert runs.name_of(run) == "Suspended"
    assert runs.given() == [("approve", "Ada")]
    runs.resume(run, GRACE)
    assert (runs.name_of(run), champion(runs.state)) == ("Promoted", "one")
    assert runs.given() == [("approve", "Ada"), ("approve", "Grace")]


def test_a_denial_ends_it(runs: Runs) -> None:
    runs.candidate("one")
    run = runs.start()
    runs.resume(run, ADA | {"decision": "deny", "reason": "too long"})
    assert runs.name_of(run) == "Denied"
    assert "too long" in runs.message_of(run)
    assert (runs.state.candidate, runs.state.champion) == (None, None)


def test_an_approval_by_command_ends_the_run_that_waits(runs: Runs, touchstone: Any) -> None:
    runs.candidate("one")
    run = runs.start()
    code, answer = touchstone("approve", "--by", "Grace", "--reason", "fine", "--json")
    assert (code, answer["promoted"], answer["champion"]["bundle"]) == (0, True, "one")
    assert runs.name_of(run) == "Resuming"
    runs.go_on(run)
    assert runs.name_of(run) == "Promoted"
    assert runs.given() == [("approve", "Grace")]


def test_a_form_that_was_filled_in_for_another_candidate_promotes_nothing(runs: Runs) -> None:
    runs.candidate("one")
    run = runs.start()
    runs.candidate("two")
    runs.resume(run, ADA)
    assert runs.name_of(run) == "Superseded"
    assert (runs.state.champion, runs.given()) == (None, [])
    assert runs.state.candidate.approval is None


def test_without_required_approvals_it_promotes_at_once_and_without_a_candidate_does_nothing(runs: Runs) -> None:
    runs.candidate("one", required=0)
    assert runs.name_of(runs.start()) == "Promoted"
    assert runs.name_of(runs.start()) == "Nothing to promote"


def test_an_expired_question_is_a_failed_run_and_is_asked_again_by_the_next(runs: Runs) -> None:
    runs.candidate("one", expires_hours=1e-4)
    run = runs.start()
    first = ask(runs.ledger).approval_id
    time.sleep(0.4)
    again = runs.start()
    assert runs.name_of(again) == "Suspended"
    assert ask(runs.ledger).approval_id != first
    assert runs.resume(run, ADA) == "REJECT"
    assert runs.state.champion is None


def test_a_run_without_a_deployment_cannot_wait_and_says_how_to_answer(runs: Runs) -> None:
    runs.candidate("one")
    state = runs.flow(return_state=True)
    assert (state.name, state.is_failed()) == ("Not promoted", True)
    assert "`touchstone approve` answers it" in (state.message or "")


# --- without Prefect ---


def test_answers_are_sorted_out_by_question_and_order() -> None:
    found = answers_in(
        [
            ("suspended-approval-3-ab-2-response", {"name": "Grace"}),
            ("suspended-approval-3-ab-1-schema", {}),
            ("suspended-approval-3-ab-1-response", {"name": "Ada"}),
            ("suspended-approval-9-cd-10-schema", {}),
            ("something-else", {}),
        ]
    )
    assert found.asked == ("approval-3-ab", "approval-9-cd")
    assert [form["name"] for form in found.of("approval-3-ab")] == ["Ada", "Grace"]
    assert found.of("approval-9-cd") == []
    assert found.next_key("approval-9-cd") == "approval-9-cd-11"


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("Promoted", lambda line: (line.give("Ada"), line.promote())),
        ("Denied", lambda line: line.give("Ada", "deny")),
        ("Superseded", lambda line: line.candidate(deployment("three", **without_canary()))),
        ("Rolled back", lambda line: line.roll_back()),
    ],
)
def test_who_comes_late_is_told_how_it_ended(name: str, end: Any) -> None:
    line = Line()
    line.releases(["zero", "one"])
    line.candidate(deployment("two", **without_canary()))
    line.ask()
    since = asked_at(line.events, ["approval-1"])
    assert since == 6
    assert ending(line.events, since) is None
    end(line)
    line.release("later")
    found = ending(line.events, since)
    assert found
    assert found.name == name


def test_a_promotion_that_was_done_before_is_no_ending_of_a_later_candidate(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    ledger = Ledger(settings.ledger, "default")
    state = read_release(ledger)
    payload = steps.candidate(state, deployment("one", **without_canary(required=0)), "ci", "passed")
    append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload)
    done = promote(settings, ledger, "Ada", "good")
    assert ending(ledger.events(), done.event.sequence) is None
