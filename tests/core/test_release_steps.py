"""The steps of a release: what each asks of the state, and what it says when that is missing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tests.core.release_line import START, Line, champion, deployment, without_canary
from touchstone import release_steps as steps
from touchstone.errors import BadInput
from touchstone.release_policy import ApprovalPolicy
from touchstone.release_steps import give_approval

KEY = "ab" * 32


@pytest.fixture
def line() -> Line:
    """With a champion, `one`."""
    line = Line()
    line.release("one")
    return line


def asked(**approval: Any) -> Line:
    """A first release whose approval was asked for."""
    line = Line()
    line.candidate(deployment("one", approval=approval))
    line.ask()
    return line


def test_the_champion_is_no_candidate(line: Line) -> None:
    with pytest.raises(BadInput, match="one is the champion of default already"):
        line.candidate(deployment("one"))


def test_a_newer_candidate_replaces_one_that_waits(line: Line) -> None:
    line.candidate(deployment("two"))
    state = line.candidate(deployment("three"))
    assert state.candidate
    assert state.candidate.deployment.name == "three"


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_candidate_on_traffic_is_not_replaced_not_even_by_itself(line: Line, name: str) -> None:
    line.candidate(deployment("two"))
    line.canary()
    with pytest.raises(BadInput, match="two is on canary traffic in default; `touchstone canary stop`"):
        line.candidate(deployment(name))


def test_a_canary_needs_a_candidate(line: Line) -> None:
    with pytest.raises(BadInput, match=r"no candidate .*; `touchstone gate"):
        line.canary()


def test_a_canary_needs_a_champion_to_be_compared_with() -> None:
    line = Line()
    line.candidate(deployment("one"))
    with pytest.raises(BadInput, match="no champion to compare"):
        line.canary()


def test_there_is_one_canary_at_a_time(line: Line) -> None:
    line.candidate(deployment("two"))
    line.canary()
    with pytest.raises(BadInput, match="on a canary already"):
        line.canary("canary-2")


def test_a_canary_widens_to_the_end_of_its_ladder(line: Line) -> None:
    line.candidate(deployment("two"))
    line.canary()
    line.widen()
    with pytest.raises(BadInput, match="largest share already: 25%"):
        line.widen()


@pytest.mark.parametrize("step", [Line.widen, Line.hold, Line.graduate])
def test_a_graduated_canary_is_decided(line: Line, step: Any) -> None:
    line.candidate(deployment("two"))
    line.canary()
    line.graduate()
    with pytest.raises(BadInput, match="has graduated already"):
        step(line)


def test_a_canary_is_held_once(line: Line) -> None:
    line.candidate(deployment("two"))
    line.canary()
    line.hold()
    with pytest.raises(BadInput, match="held already: two hours"):
        line.hold()


def test_a_held_canary_may_still_graduate(line: Line) -> None:
    line.candidate(deployment("two"))
    line.canary()
    line.hold()
    assert line.graduate().canary


@pytest.mark.parametrize("step", [Line.widen, Line.hold, Line.graduate, Line.stop, Line.roll_back_canary])
def test_without_a_canary_there_is_nothing_to_widen_or_to_end(line: Line, step: Any) -> None:
    line.candidate(deployment("two"))
    with pytest.raises(BadInput, match="no canary is running"):
        step(line)


def test_a_graduated_canary_can_be_stopped_and_rolled_back(line: Line) -> None:
    for end in (Line.stop, Line.roll_back_canary):
        line.candidate(deployment("two"))
        line.canary()
        line.graduate()
        assert end(line).candidate is None


def test_nothing_is_promoted_before_its_canary_has_graduated(line: Line) -> None:
    line.candidate(deployment("two", approval={"required": 0}))
    with pytest.raises(BadInput, match="never on live traffic"):
        line.promote()
    line.canary()
    with pytest.raises(BadInput, match="has not graduated, it is running; `touchstone canary look` judges it"):
        line.promote()
    line.hold()
    with pytest.raises(BadInput, match="it is held: two hours are over"):
        line.promote()
    line.graduate()
    assert champion(line.promote()) == "two"


def test_the_first_release_needs_no_canary() -> None:
    line = Line()
    line.candidate(deployment("one", approval={"required": 0}))
    assert champion(line.promote()) == "one"


def test_a_policy_may_ask_for_no_canary(line: Line) -> None:
    line.candidate(deployment("two", **without_canary(required=0)))
    assert champion(line.promote()) == "two"


def test_nothing_is_promoted_without_its_approvals() -> None:
    line = Line()
    line.candidate(deployment("one", approval={"required": 2}))
    with pytest.raises(BadInput, match="needs 2 approvals and has 0"):
        line.promote()
    line.ask()
    line.give("Ada")
    with pytest.raises(BadInput, match="needs 2 approvals and has 1"):
        line.promote()
    line.give("Grace")
    assert champion(line.promote()) == "one"


def test_who_comes_after_the_promotion_is_told_of_it() -> None:
    line = Line()
    line.release("one")
    with pytest.raises(BadInput, match=r"no candidate \(event 2: Ada promoted one\)"):
        line.promote()


def test_approval_is_asked_for_after_the_canary(line: Line) -> None:
    line.candidate(deployment("two"))
    with pytest.raises(BadInput, match="never on live traffic"):
        line.ask()
    line.canary()
    with pytest.raises(BadInput, match="not graduated"):
        line.ask()
    line.graduate()
    assert line.ask()


def test_a_policy_without_approvals_is_not_asked() -> None:
    line = Line()
    line.candidate(deployment("one", approval={"required": 0}))
    with pytest.raises(BadInput, match="asks for no approval: `touchstone promote`"):
        line.ask()


def test_a_question_says_who_may_answer_and_until_when() -> None:
    line = asked(owner="Ada", approvers=["Ada", "Grace"], expires_hours=2)
    request = line.state.candidate and line.state.candidate.approval
    assert request
    assert (request.owner, request.required, [approver.name for approver in request.approvers]) == (
        "Ada",
        1,
        ["Ada", "Grace"],
    )
    assert request.expires_at == (START + timedelta(hours=2, minutes=1)).isoformat()


def test_an_open_question_is_not_asked_twice_and_an_expired_one_is() -> None:
    line = asked(expires_hours=1, required=2)
    line.give("Ada")
    with pytest.raises(BadInput, match="approval-1 is open"):
        line.ask("approval-2")
    line.now += timedelta(hours=1)
    candidate = line.ask("approval-2").candidate
    assert candidate
    request = candidate.approval
    assert request
    assert (request.approval_id, request.given) == ("approval-2", ())  # who approved the old one is asked again


def test_an_expired_question_takes_no_answer() -> None:
    line = asked(expires_hours=1)
    line.now += timedelta(hours=1)
    with pytest.raises(BadInput, match=r"approval-1 expired at .*`touchstone promote` asks again"):
        line.give("Ada")


def test_an_approval_expires_also_after_it_was_given() -> None:
    line = asked(expires_hours=1)
    line.give("Ada")
    line.now += timedelta(hours=1)
    with pytest.raises(BadInput, match="approval-1 expired"):
        line.promote()


def test_an_answer_to_another_question_is_refused() -> None:
    line = asked()
    with pytest.raises(BadInput, match="approval approval-0 is not open in default: approval-1 is"):
        line.give("Ada", approval_id="approval-0")


def test_an_answer_without_a_question_is_refused(line: Line) -> None:
    with pytest.raises(BadInput, match="not open in default: none is"):
        line.give("Ada")


def test_who_is_no_approver_is_refused() -> None:
    line = asked(approvers=["Ada", "Grace"])
    with pytest.raises(BadInput, match="Mallory may not approve approval-1; the policy names Ada, Grace"):
        line.give("Mallory")
    with pytest.raises(BadInput, match="Mallory may not"):
        line.give("Mallory", "deny")


def test_where_the_policy_names_nobody_anybody_may_approve() -> None:
    assert champion_after(asked(), "Mallory") == "one"


def test_one_person_counts_once_however_the_name_is_written() -> None:
    line = asked(required=2)
    line.give("Ada Lovelace")
    for name in ("Ada Lovelace", "ada lovelace", "  Ada   Lovelace "):
        with pytest.raises(BadInput, match="has approved approval-1 already; 2 people have to"):
            line.give(name)


def test_who_approved_may_still_deny() -> None:
    line = asked(required=2)
    line.give("Ada")
    assert line.give("Ada", "deny").candidate is None


def test_a_key_in_the_policy_makes_an_unsigned_approval_worthless() -> None:
    line = asked(approvers=[{"name": "Ada", "public_key": KEY}])
    for decision in ("approve", "deny"):
        with pytest.raises(BadInput, match="approval of Ada is not signed by the key"):
            line.give("Ada", decision, signature="00")
    assert line.give("Ada", signature="5a", is_signed=True).candidate


@pytest.mark.parametrize(("by", "reason"), [("", "good"), ("  ", "good"), ("Ada", " ")])
def test_an_approval_needs_a_name_and_a_reason(by: str, reason: str) -> None:
    line = asked()
    with pytest.raises(BadInput, match="your name and a reason"):
        give_approval(line.state, "approve", by, reason, approval_id="approval-1", via="command", now=line.now)


def test_a_decision_is_approve_or_deny() -> None:
    with pytest.raises(BadInput, match="write approve or deny"):
        asked().give("Ada", "maybe")


def test_an_approval_is_for_exactly_one_fingerprint() -> None:
    line = asked()
    line.give("Ada")
    candidate = line.state.candidate
    assert candidate
    other = candidate.model_copy(update={"deployment": deployment("two")})
    swapped = line.state.model_copy(update={"candidate": other})
    with pytest.raises(BadInput, match="approval-1 approves"):
        steps.promote(swapped, "Ada", "good", line.now)


def test_without_a_champion_nothing_can_be_rolled_back() -> None:
    with pytest.raises(BadInput, match="no champion, so there is nothing"):
        Line().roll_back()


def test_the_first_champion_has_no_way_back(line: Line) -> None:
    with pytest.raises(BadInput, match="no champion before"):
        line.roll_back()


def test_a_roll_back_to_an_unknown_event_names_those_that_can_be_returned_to(line: Line) -> None:
    line.releases(["two", "three"])
    with pytest.raises(BadInput, match=r"event 5 promoted no earlier champion of default; these did: 2 \(one\), 4"):
        line.roll_back(5)


@pytest.mark.parametrize(
    "approvers",
    [["Ada", "ada"], [{"name": "Ada", "public_key": KEY}, {"name": "Grace", "public_key": KEY}]],
)
def test_a_policy_does_not_let_one_person_count_as_two(approvers: list[Any]) -> None:
    with pytest.raises(ValidationError, match="one person would count twice"):
        ApprovalPolicy.model_validate({"required": 1, "approvers": approvers})


def test_a_public_key_that_is_none_says_what_one_looks_like() -> None:
    with pytest.raises(ValidationError, match="64 hexadecimal digits"):
        ApprovalPolicy.model_validate({"approvers": [{"name": "Grace", "public_key": "6b1f"}]})


def champion_after(line: Line, by: str) -> str | None:
    line.give(by)
    return champion(line.promote())
