"""Release state is the fold of the events: one champion, at most one candidate, and a way back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.release_line import Line, champion, deployment, earlier, without_canary
from touchstone.errors import BadInput, Unmeasurable
from touchstone.ledger import EventKind
from touchstone.release import CanaryStatus, fold


@pytest.fixture
def line() -> Line:
    return Line()


def test_an_environment_without_events_serves_nothing(line: Line) -> None:
    assert (line.state.champion, line.state.candidate, line.state.sequence) == (None, None, 0)


def test_other_events_change_nothing_not_even_the_sequence(line: Line) -> None:
    line.release("one")
    before = line.state
    assert line.take(EventKind.GATE_DECIDED, {"verdict": "pass"}) == before


def test_a_candidate_serves_nobody(line: Line) -> None:
    line.release("one")
    state = line.candidate(deployment("two"))
    assert champion(state) == "one"
    assert state.candidate
    assert (state.candidate.deployment.name, state.canary) == ("two", None)


def test_the_canary_goes_up_the_ladder_with_the_same_salt(line: Line) -> None:
    line.release("one")
    line.candidate(deployment("two"))
    started = line.canary().canary
    widened = line.widen().canary
    assert started
    assert widened
    assert (started.share, widened.share) == (0.05, 0.25)
    assert widened.salt == started.salt
    assert widened.started_at == started.started_at < widened.share_since


def test_a_held_canary_serves_its_share_on_and_says_why(line: Line) -> None:
    line.release("one")
    line.candidate(deployment("two"))
    line.canary()
    canary = line.hold().canary
    assert canary
    assert (canary.status, canary.share, canary.reason) == (CanaryStatus.HELD, 0.05, "two hours are over")


def test_a_promotion_records_who_when_and_on_which_evidence(line: Line) -> None:
    line.candidate(deployment("one", **without_canary(required=0)))
    state = line.promote("Grace")
    assert state.champion
    assert (state.champion.promoted_by, state.champion.promoted_at) == ("Grace", line.now.isoformat())
    assert state.champion.deployment.scores == {"passed": 0.9}
    assert state.champion.deployment.run_keys == ("one-run", "champion-run")
    assert state.champion.deployment.gate_key == "gate-one"
    assert state.champion.sequence == state.served_since == state.sequence == 2
    assert state.candidate is None


def test_a_roll_back_returns_to_the_champion_before_with_its_own_record(line: Line) -> None:
    line.release("one")
    first = line.state.champion
    line.release("two")
    state = line.roll_back()
    assert state.champion == first
    assert state.previous == ()
    assert state.served_since == state.sequence == 5


def test_roll_backs_go_further_and_further_back(line: Line) -> None:
    line.releases(["one", "two", "three"])
    assert champion(line.roll_back()) == "two"
    assert champion(line.roll_back()) == "one"


def test_a_roll_back_to_an_event_skips_what_came_after_it(line: Line) -> None:
    line.releases(["one", "two", "three", "four"])
    state = line.roll_back(to=2)
    assert (champion(state), earlier(state)) == ("one", [])


def test_what_was_rolled_back_from_is_not_what_a_later_roll_back_returns_to(line: Line) -> None:
    line.releases(["one", "two"])
    line.roll_back()
    state = line.release("three")
    assert earlier(state) == ["one"]
    assert champion(line.roll_back()) == "one"


def test_a_champion_s_roll_back_drops_the_candidate_that_was_compared_with_it(line: Line) -> None:
    line.releases(["one", "two"])
    line.candidate(deployment("three"))
    assert line.roll_back().candidate is None


def test_a_canary_s_roll_back_leaves_the_champion(line: Line) -> None:
    line.releases(["one", "two"])
    line.candidate(deployment("three"))
    line.canary()
    state = line.roll_back_canary()
    assert (champion(state), state.candidate, earlier(state)) == ("two", None, ["one"])


def test_a_denial_drops_the_candidate(line: Line) -> None:
    line.candidate(deployment("one"))
    line.ask()
    state = line.give("Ada", "deny")
    assert (state.candidate, state.champion) == (None, None)


def test_a_later_gate_on_the_same_candidate_keeps_nothing_of_an_older_approval(line: Line) -> None:
    line.candidate(deployment("one"))
    line.ask()
    line.give("Ada")
    state = line.candidate(deployment("one"))
    assert state.candidate
    assert state.candidate.approval is None
    with pytest.raises(BadInput, match="needs 1 approvals and has 0"):
        line.promote()


def test_an_approval_of_another_question_counts_for_nothing(line: Line) -> None:
    line.candidate(deployment("one"))
    line.ask("approval-1")
    forged = {"approval_id": "approval-0", "decision": "approve", "by": "Ada", "reason": "x", "via": "command"}
    state = line.take(EventKind.APPROVAL_GIVEN, forged)
    assert state.candidate
    assert state.candidate.approval
    assert state.candidate.approval.given == ()


def test_a_policy_that_was_edited_later_changes_nothing_for_a_candidate(line: Line) -> None:
    line.candidate(deployment("one", approval={"required": 2}))
    line.ask()
    line.give("Ada")
    assert line.state.candidate
    assert line.state.candidate.approval
    assert not line.state.candidate.approval.is_complete


@pytest.mark.parametrize("broken", [{}, {"deployment": {"definition": 1}}, {"deployment": None}])
def test_an_event_that_cannot_be_read_is_said_and_not_guessed_over(line: Line, broken: dict[str, Any]) -> None:
    line.release("one")
    with pytest.raises(Unmeasurable, match=r"ledger event 3 \(release.candidate\) cannot be read"):
        line.take(EventKind.RELEASE_CANDIDATE, broken)


def test_an_erased_event_is_named(line: Line) -> None:
    line.release("one")
    line.events[0] = line.events[0].model_copy(update={"payload": {}, "salt": None})
    with pytest.raises(Unmeasurable, match=r"event 1 .* was erased"):
        _ = line.state


def test_a_roll_back_to_what_was_never_promoted_is_not_guessed(line: Line) -> None:
    line.release("one")
    with pytest.raises(Unmeasurable, match="cannot be read"):
        line.take(EventKind.RELEASE_ROLLED_BACK, {"what": "champion", "to_sequence": 99})


STEPS = ("candidate", "canary", "widen", "hold", "graduate", "stop", "ask", "give", "deny", "promote", "back", "drop")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), max_size=40))
def test_whatever_people_try_there_is_one_champion_and_events_lead_to_it(tries: list[tuple[str, int]]) -> None:
    line = Line()
    for name, number in tries:
        before = line.state
        try:
            _try(line, name, number)
        except BadInput:
            assert line.state == before  # a refusal changes nothing
        _check(line)


def _try(line: Line, name: str, number: int) -> None:
    approval_id = f"approval-{len(line.events)}"
    canary = {"required": number % 2 == 0}
    request = line.state.candidate.approval if line.state.candidate else None
    asked = request.approval_id if request else "approval-0"
    acts = {
        "candidate": lambda: line.candidate(deployment(f"b{number}", canary=canary, approval={"required": number % 3})),
        "canary": lambda: line.canary(f"canary-{len(line.events)}"),
        "widen": line.widen,
        "hold": line.hold,
        "graduate": line.graduate,
        "stop": line.stop,
        "ask": lambda: line.ask(approval_id),
        "give": lambda: line.give(f"person {number}", approval_id=asked),
        "deny": lambda: line.give(f"person {number}", "deny", approval_id=asked),
        "promote": line.promote,
        "back": lambda: line.roll_back(None if number < 2 else number * 2),
        "drop": line.roll_back_canary,
    }
    acts[name]()


def _check(line: Line) -> None:
    state = line.state
    promoted = {event.sequence: event for event in line.events if event.kind is EventKind.RELEASE_PROMOTED}
    kept = [*state.previous, *([state.champion] if state.champion else [])]
    assert (state.champion is None) == (not promoted)  # once there is one, there is always one
    assert [promotion.sequence for promotion in kept] == sorted({promotion.sequence for promotion in kept})
    for promotion in kept:
        assert promotion.deployment.fingerprint == promoted[promotion.sequence].payload["fingerprint"]
    if state.candidate and state.champion:
        assert state.candidate.deployment.fingerprint != state.champion.deployment.fingerprint
        assert state.candidate.sequence > state.served_since  # compared with the champion that serves
    assert state == fold("default", line.events)
    for event in promoted.values():
        _check_promotion(line, event.sequence)


def _check_promotion(line: Line, sequence: int) -> None:
    """It had all that its policy asks for, since the gate passed it last."""
    before = fold("default", line.events[: sequence - 1])
    assert before.candidate
    rules = before.candidate.deployment.policy
    since = [event for event in line.events[: sequence - 1] if event.sequence > before.candidate.sequence]
    if rules.canary.required and before.champion:
        assert any(event.kind is EventKind.CANARY_GRADUATED for event in since)
    people = {event.payload["by"] for event in since if event.kind is EventKind.APPROVAL_GIVEN}
    assert len(people) >= rules.approval.required
