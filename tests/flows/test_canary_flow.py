"""A canary from its first share to its end: real ledger, real MLflow store, traces as an app sends them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from tasks import canaries
from tasks.canaries import Looked, look
from tasks.canary_evidence import OVERLAP
from tests.conftest import Project, VendorControl
from tests.tasks.live_traffic import BAD, FAST, GOOD, RULE, LiveTraffic
from touchstone.errors import BadInput, LedgerConflict
from touchstone.ledger import EventKind, canary_subject
from touchstone.release import CanaryStatus

RUBRIC = {"name": "judge", "kind": "rubric", "dimensions": ["faithfulness"]}
NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture
def live(project: Project) -> LiveTraffic:
    """Judged by a rule, so that no vendor is called."""
    return LiveTraffic(project, NOBODY)


def seen(live: LiveTraffic, now: datetime) -> Looked:
    with live.ledger() as ledger:
        looked = look(live.settings, ledger, now)
    assert looked is not None
    return looked


def recorded(live: LiveTraffic) -> list[dict[str, Any]]:
    with live.ledger() as ledger:
        return canaries.looks(ledger, "new-canary")


def test_an_equal_canary_climbs_the_ladder_and_graduates(live: LiveTraffic) -> None:
    first = seen(live, live.serve(live.begin(), 30))
    assert (first.verdict, first.payload["n_canary"], first.payload["n_champion"]) == ("widen", 30, 60)
    assert live.state.canary is not None
    assert live.state.canary.share == 0.25

    early = seen(live, live.share_since + timedelta(seconds=5))
    assert (early.verdict, early.payload["n_canary"]) == ("continue", 30)
    assert "0 of 10 judged requests at 25%" in early.reason

    last = seen(live, live.serve(live.share_since + timedelta(seconds=10), 15))
    assert last.verdict == "graduate", last.reason
    assert live.state.canary.status is CanaryStatus.GRADUATED
    assert [one["verdict"] for one in recorded(live)] == ["widen", "continue", "graduate"]


def test_a_harmful_canary_is_rolled_back(live: LiveTraffic) -> None:
    looked = seen(live, live.serve(live.begin(), 20, canary=BAD))
    assert looked.verdict == "rollback"
    assert "good -1.000 over 20 requests" in looked.reason
    assert live.state.candidate is None
    with live.ledger() as ledger:
        event = ledger.events(newest=1)[0]
    assert (event.kind, event.payload["by"]) == (EventKind.RELEASE_ROLLED_BACK, "touchstone canary")


def test_a_canary_that_only_fails_is_rolled_back_for_that(live: LiveTraffic) -> None:
    """A retired model: every request is an error, or another vendor's answer, so that there is nothing to judge."""
    looked = seen(live, live.serve(live.begin(), 15, canary="", failing=True))
    assert looked.verdict == "rollback"
    assert "answered -1.000 over 15 requests" in looked.reason
    assert looked.payload["unanswered"] == {"canary: error": 15}


def test_no_traffic_is_unmeasurable_and_its_time_runs_out_into_hold(live: LiveTraffic) -> None:
    begun = live.begin()
    silent = seen(live, begun + timedelta(minutes=31))
    assert silent.verdict == "unmeasurable"
    assert "none came at all" in silent.reason
    assert seen(live, begun + timedelta(minutes=121)).verdict == "hold"
    assert live.state.canary is not None
    assert live.state.canary.status is CanaryStatus.HELD
    assert seen(live, begun + timedelta(minutes=122)).step is None  # it is held already


def test_traces_without_request_id_are_named_and_count_for_nothing(live: LiveTraffic) -> None:
    begun = live.begin()
    live.serve(begun, 20, request_id=None)
    looked = seen(live, begun + timedelta(minutes=40))
    assert looked.verdict == "unmeasurable"
    assert "60 without a request id" in looked.reason
    assert looked.payload["left_out"] == {"without a request id": 60}


def test_a_held_canary_that_does_harm_is_rolled_back(live: LiveTraffic) -> None:
    late = live.begin() + timedelta(minutes=125)
    assert seen(live, late).verdict == "hold"
    assert seen(live, live.serve(late, 20, canary=BAD)).verdict == "rollback"
    assert live.state.candidate is None


def test_looks_in_between_change_nothing_of_the_evidence(live: LiveTraffic) -> None:
    """Each look reads half an hour again, and reloads its state from the ledger; no request counts twice."""
    end = live.begin()
    for _ in range(3):
        end = live.serve(end, 2)
        seen(live, end)
    end = live.serve(end, 2)
    looked = seen(live, end)
    assert looked.payload["n_canary"] == 8
    assert looked.payload["e_values"]["answered"]["n"] == 8
    with live.ledger() as ledger:
        _, state = canaries.last_look(ledger, "new-canary")
    assert state is not None
    assert all(len(used) == 24 for used in state.used.values())
    again = seen(live, end + timedelta(seconds=1))
    assert again.payload["e_values"] == looked.payload["e_values"]


def test_a_trace_that_comes_late_is_counted_once(live: LiveTraffic) -> None:
    begun = live.begin()
    end = live.serve(begun, 4)
    seen(live, end)
    live.serve(begun, 2)  # of the same two minutes, sent after the look
    assert seen(live, end + timedelta(minutes=1)).payload["n_canary"] == 6


def test_a_request_at_the_edge_of_what_is_remembered_is_counted_once(live: LiveTraffic) -> None:
    """Traces are found by the millisecond, a look has its time to the microsecond."""
    served = live.begin() + timedelta(seconds=30)
    at = served.replace(microsecond=served.microsecond // 1000 * 1000)
    live.send([live.trace(at, "canary", GOOD), live.trace(at, "champion", GOOD)])
    edge = at + OVERLAP + timedelta(microseconds=500)
    assert [seen(live, edge + timedelta(minutes=later)).payload["n_canary"] for later in (0, 1)] == [1, 1]


def test_a_watcher_whose_clock_is_behind_counts_nothing_twice(live: LiveTraffic) -> None:
    begun = live.begin()
    live.serve(begun, 4)
    counted = [seen(live, begun + OVERLAP + timedelta(minutes=minutes)).payload["n_canary"] for minutes in (10, 0, 1)]
    assert counted == [4, 4, 4]


def test_two_looks_at_once_count_once(live: LiveTraffic) -> None:
    end = live.serve(live.begin(), 4)

    def one(_: int) -> str:
        try:
            return seen(live, end).verdict
        except LedgerConflict:
            return "conflict"

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(3)))
    assert found.count("continue") >= 1
    assert {one["n_canary"] for one in recorded(live)} == {4}
    assert [one["look"] for one in recorded(live)] == list(range(1, found.count("continue") + 1))


def test_who_read_the_same_look_before_is_told_so(live: LiveTraffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two machines no lock helps: the second append is refused by the ledger."""
    end = live.serve(live.begin(), 4)
    gather = canaries.gather

    def slow(*arguments: Any) -> Any:
        found = gather(*arguments)
        with live.ledger() as other:  # somebody else's look, from another machine
            payload = {"canary_id": "new-canary", "look": 1, "verdict": "continue", "reason": ""}
            other.append(EventKind.CANARY_LOOKED, canary_subject("new-canary"), payload, content=b"{}")
        return found

    monkeypatch.setattr(canaries, "gather", slow)
    with pytest.raises(LedgerConflict):
        seen(live, end)
    assert len(recorded(live)) == 1


def test_a_crash_between_look_and_step_is_made_good_by_the_next_look(
    live: LiveTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = live.serve(live.begin(), 20, canary=BAD)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(canaries, "append_release", crash)
        with pytest.raises(KeyboardInterrupt):
            seen(live, end)
    assert [one["verdict"] for one in recorded(live)] == ["rollback"]
    assert live.state.candidate is not None

    looked = seen(live, end + timedelta(minutes=1))
    assert (looked.verdict, looked.taken_up) == ("rollback", True)
    assert live.state.candidate is None
    assert live.kinds().count("release.rolled_back") == 1
    assert len(recorded(live)) == 1


def test_feedback_of_users_is_a_guardrail(project: Project) -> None:
    live = LiveTraffic(project, NOBODY, feedback=["thumbs"])
    begun = live.begin()
    traces = []
    for number in range(12):
        for arm in ("canary", "champion"):
            at = begun + timedelta(seconds=number)
            traces.append(live.trace(at, arm, GOOD))
            traces[-1][0].assessments.append(_thumb(arm == "champion", traces[-1][0].trace_id))
    live.send(traces)
    looked = seen(live, begun + timedelta(minutes=2))
    assert looked.verdict == "rollback"
    assert "thumbs -1.000 over 12 requests" in looked.reason


def _thumb(value: bool, trace_id: str) -> Any:
    from mlflow.entities import AssessmentSource, Feedback

    made = Feedback(name="thumbs", value=value, source=AssessmentSource("HUMAN", "user"), trace_id=trace_id)
    made.create_time_ms = made.last_update_time_ms = 1
    return made


class TestJudged:
    """The champion's judge scores both arms, over HTTP."""

    @pytest.fixture
    def live(self, project: Project, vendor: VendorControl) -> LiveTraffic:
        return LiveTraffic(project, vendor.api_base, scorers=[RUBRIC], max_cost_usd=1.0)

    def test_both_arms_get_one_judge_and_the_scores_are_seen_in_mlflow(
        self, live: LiveTraffic, vendor: VendorControl
    ) -> None:
        end = live.serve(live.begin(), 4, ratio=1)
        looked = seen(live, end)
        assert looked.payload["e_values"]["judge_faithfulness"]["n"] == 4
        assert looked.payload["spent_usd"] > 0
        assert looked.warnings == []
        assert vendor.counters()["calls"] == 8
        seen(live, end + timedelta(minutes=1))
        assert vendor.counters()["calls"] == 8

        from tasks.tracking_address import connected

        with connected(live.settings) as client:
            traces = client.search_traces(locations=[live.experiment_id], include_spans=False)
        assert all([a.name for a in trace.info.assessments] == ["judge_faithfulness"] for trace in traces)

    def test_a_look_that_was_killed_pays_nothing_twice(
        self, live: LiveTraffic, vendor: VendorControl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = live.serve(live.begin(), 4, ratio=1)

        def crash(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(canaries, "decide_look", crash)
            with pytest.raises(KeyboardInterrupt):
                seen(live, end)
        (live.project.state / "response_cache.db").unlink()  # what is spooled is enough
        assert seen(live, end).payload["n_canary"] == 4
        assert vendor.counters()["completed"] == 8

    def test_a_judge_that_fails_is_no_score_and_the_requests_are_judged_later(
        self, live: LiveTraffic, vendor: VendorControl
    ) -> None:
        end = live.serve(live.begin(), 4, ratio=1)
        vendor.fault("deprecated")
        looked = seen(live, end)
        assert looked.verdict == "unmeasurable"
        assert "8 of 8 scores could not be had" in looked.reason
        assert "the model is gone" in looked.reason
        assert looked.payload["e_values"]["judge_faithfulness"]["n"] == 0
        vendor.heal()
        assert seen(live, end + timedelta(minutes=1)).payload["e_values"]["judge_faithfulness"]["n"] == 4

    def test_the_spend_cap_makes_the_look_unmeasurable(self, project: Project, vendor: VendorControl) -> None:
        live = LiveTraffic(project, vendor.api_base, scorers=[RUBRIC], max_cost_usd=0.0001)
        looked = seen(live, live.serve(live.begin(), 4, ratio=1))
        assert looked.verdict == "unmeasurable"
        assert "of a cap of 0.000100" in looked.reason

    def test_the_command_starts_looks_and_stops(
        self, live: LiveTraffic, vendor: VendorControl, touchstone: Any
    ) -> None:
        vendor.fault("deprecated")
        code, answer = touchstone("canary", "start", "--json")
        assert code == 2
        assert "canary on a retired model" in answer["error"]
        assert live.state.canary is None

        vendor.heal()
        code, answer = touchstone("canary", "start", "--by", "ada", "--json")
        assert (code, answer["bundle"], answer["share"]) == (0, "new", 0.05)
        code, answer = touchstone("canary", "look", "--json")
        assert (code, answer["verdict"], answer["n_canary"]) == (0, "continue", 0)
        code, answer = touchstone("canary", "status", "--json")
        assert (code, answer["canary"]["status"], len(answer["looks"])) == (0, "running", 1)
        assert touchstone("canary", "stop", "--reason", "enough", "--by", "ada", "--json")[0] == 0
        assert touchstone("canary", "look", "--json")[0] == 3
        assert "no canary is running" in touchstone("canary", "status")[1]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"scorers": [{"name": "f1", "kind": "token_f1"}]}, r"release\.canary\.scorers: f1 \(kind token_f1\) needs"),
        ({"scorers": [{"name": "words", "kind": "length"}]}, r"words \(kind length\) has no scale"),
        ({"feedback": ["good"]}, "two guardrails are called 'good'"),
    ],
)
def test_a_policy_that_live_traffic_cannot_be_judged_by_is_refused_before_it_gets_any(
    project: Project, policy: dict[str, Any], said: str
) -> None:
    live = LiveTraffic(project, NOBODY, **policy)
    with live.ledger() as ledger, pytest.raises(BadInput, match=said):
        canaries.start_canary(live.settings, ledger, "ada")
    assert live.state.canary is None


def test_the_artifact_shows_share_evidence_and_past_looks(live: LiveTraffic) -> None:
    from tasks.announce_canary import markdown

    begun = live.begin()
    live.serve(begun, 3, request_id=None)
    looked = seen(live, live.serve(begun, 20))
    text = markdown(looked.summary(), recorded(live))
    assert "## WIDEN: new at 5% of traffic" in text
    assert "| good | 20 | +0.000 |" in text
    assert "9 without a request id" in text
    assert "| 1 | " in text
    json.dumps(looked.summary(), allow_nan=False)
    assert FAST["scorers"] == [RULE]
