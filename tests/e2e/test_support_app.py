"""The support app end to end: released by the ledger, told by the gateway, answered by vendors, seen in MLflow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from examples.support_app.traffic import messages, send
from tests.e2e.support_site import FALLBACKS, SupportSite

OPENAI, ANTHROPIC, GEMINI = "extractive-2026-01-15", "extractive-20260115", "extractive-001"


@pytest.fixture
def site(project, vendor) -> Iterator[SupportSite]:
    found = SupportSite(project, vendor)
    found.start_gateway()
    yield found
    found.close()


def test_an_answer_says_who_gave_it_and_on_which_texts(site: SupportSite) -> None:
    site.promote()
    with site.serving():
        answer = site.ask()
    assert answer["status"] == 200
    assert "30 days" in answer["answer"]
    assert answer["contexts"][0]["document_id"] == "billing/refund-subscriptions"
    assert (answer["bundle"], answer["arm"], answer["fallback"]) == ("support-app", "champion", False)
    assert answer["served_by"] == f"openai/{OPENAI}"


def test_traces_keep_the_contract_and_hold_no_personal_data(site: SupportSite) -> None:
    site.promote()
    site.line.canary(site.definition(name="support-next", parameters={"temperature": 0, "max_tokens": 150}))
    with site.serving():
        asked = "Within how many days can Pro subscriptions be refunded? Write to jo.doe@example.org."
        answers = [site.ask(asked, key=f"user-{n}") for n in range(12)]
    traces = site.traces()
    assert {trace.info.tags["touchstone.request_id"] for trace in traces} == {one["request_id"] for one in answers}
    arms = {one["request_id"]: one["arm"] for one in answers}
    assert set(arms.values()) == {"champion", "canary"}
    for trace in traces:
        tags = trace.info.tags
        assert tags["touchstone.arm"] == arms[tags["touchstone.request_id"]]
        assert tags["touchstone.bundle"] == ("support-next" if tags["touchstone.arm"] == "canary" else "support-app")
        assert (tags["touchstone.environment"], tags["touchstone.canary_id"]) == ("default", "c-1")
        assert (tags["touchstone.segment"], tags["touchstone.served_by"]) == ("billing", f"openai/{OPENAI}")
        assert tags["touchstone.fingerprint"]
        assert "touchstone.fallback" not in tags
        root = trace.data.spans[0]
        assert root.inputs["question"].endswith("Write to [email].")
        assert isinstance(root.outputs, str)
        retriever = next(span for span in trace.data.spans if span.span_type == "RETRIEVER")
        assert {"page_content", "metadata", "id"} <= set(retriever.outputs[0])
        assert "jo.doe" not in trace.to_json()
        assert "user-" not in trace.to_json()


def test_a_vendor_that_is_away_is_answered_for_by_a_fallback_that_passed_the_gate(site: SupportSite) -> None:
    site.promote("support-app-gemini")
    site.down(OPENAI)
    with site.serving():
        answers = [site.ask(key=f"u{n}") for n in range(4)]
        openai, gemini = site.http.get("/providers").json()
    assert {(one["fallback"], one["served_by"], one["bundle"]) for one in answers} == {
        (True, f"gemini/{GEMINI}", "support-app")
    }
    assert all("30 days" in one["answer"] for one in answers)
    assert (openai["breaker"], openai["asked"], openai["skipped"]) == ("open", 2, 2)
    assert (gemini["provider"], gemini["answered"]) == ("gemini", 4)
    assert {trace.info.tags["touchstone.fallback"] for trace in site.traces()} == {"true"}


@pytest.mark.parametrize(("allowed", "status"), [(False, 503), (True, 200)])
def test_an_ungated_fallback_answers_only_where_the_setting_allows_it(
    site: SupportSite, allowed: bool, status: int
) -> None:
    site.promote()
    site.down(OPENAI)
    with site.serving(allow_ungated_fallback=allowed):
        answer = site.ask()
    assert answer["status"] == status
    if allowed:
        assert answer["served_by"] == f"anthropic/{ANTHROPIC}"
        assert answer["fallback"]
    else:
        assert answer["kind"] == "vendor_error"
        assert site.traces()[0].info.tags["touchstone.failure"] == "vendor_error"


def test_the_gates_own_parity_check_lets_a_fallback_serve(site: SupportSite, touchstone) -> None:
    site.promote()
    check = ("gate", "--role", "fallback", "--bundle", "support-app-gemini", "--no-prefect", "--json")
    code, report = touchstone(*check)
    assert (code, report["role"], report["is_candidate"]) == (0, "fallback", False), report["decision"]["reason"]
    site.down(OPENAI)
    with site.serving():
        assert site.ask()["served_by"] == f"gemini/{GEMINI}"


def test_a_roll_back_reaches_the_app_by_itself(site: SupportSite) -> None:
    site.promote()
    site.line.promote(site.definition(name="support-next", parameters={"temperature": 0, "max_tokens": 150}))
    with site.serving():
        assert site.ask()["bundle"] == "support-next"
        site.line.roll_back()
        site.until(lambda: site.ask()["bundle"] == "support-app")


def test_the_last_good_state_serves_while_the_gateway_is_away(site: SupportSite) -> None:
    site.promote()
    with site.serving():
        port = urlsplit(site.gateway_url).port or 0
        site.stop_gateway()
        site.until(lambda: site.http.get("/health").json()["release"]["gateway"] == "away")
        assert site.ask()["status"] == 200
        site.start_gateway(port)
        site.until(lambda: site.http.get("/health").json()["release"]["gateway"] == "ok")


def test_a_canary_whose_index_cannot_be_searched_is_seen_to_fail(site: SupportSite) -> None:
    """Without a trace the canary would be judged on what is left of its traffic."""
    site.promote()
    gone = site.definition(name="support-next", parameters={"temperature": 0, "max_tokens": 150})
    assert gone.index
    site.line.canary(
        gone.model_copy(update={"index": gone.index.model_copy(update={"version": 999})}), changed=("retrieval",)
    )
    with site.serving():
        answers = [site.ask(key=f"user-{n}") for n in range(12)]
    failed = [one for one in answers if one["status"] == 503]
    assert 0 < len(failed) < 12
    assert failed[0]["error"].startswith("no contexts: index ")
    traces = {trace.info.tags["touchstone.request_id"]: trace for trace in site.traces()}
    assert len(traces) == 12
    assert {traces[one["request_id"]].info.tags["touchstone.arm"] for one in failed} == {"canary"}
    assert {traces[one["request_id"]].info.state.value for one in failed} == {"ERROR"}


def test_before_anything_is_released_the_app_says_so(site: SupportSite) -> None:
    with site.serving():
        answer = site.ask()
        assert answer["status"] == 503
        assert "nothing was ever released" in answer["error"]
        site.promote()
        site.until(lambda: site.ask()["status"] == 200)


def test_with_mlflow_away_answers_go_on_and_drops_are_counted(site: SupportSite, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    site.promote()
    with site.serving():
        assert site.ask()["status"] == 200

        def unsent() -> int:
            traces = site.http.get("/health").json()["traces"]
            assert traces["last_error"]
            return traces["waiting"] + traces["dropped"]

        site.until(lambda: unsent() == 1)
        assert site.ask()["status"] == 200


def test_an_outage_under_traffic_fails_no_answer_and_the_circuit_closes_after_it(site: SupportSite) -> None:
    site.promote(*FALLBACKS)
    with site.serving():
        before = asyncio.run(send(site.app_url, rate=40, requests=20, seed=1))
        site.down(OPENAI)
        during = asyncio.run(send(site.app_url, rate=40, requests=60, seed=2, multi_part=0.5))
        site.vendor.heal()
        site.until(lambda: not site.ask()["fallback"])
        openai = site.http.get("/providers").json()[0]
    assert (before.answered, before.fallbacks) == (20, 0)
    assert (during.answered, dict(during.failed)) == (60, {})
    assert during.fallbacks == 60
    assert openai["breaker"] == "closed"
    assert openai["skipped"] > 30
    assert len(site.traces()) >= 80


def test_traffic_is_the_same_for_a_seed_and_joins_two_questions_as_often_as_asked() -> None:
    first, again = messages(3, 0.5), messages(3, 0.5)
    found = [next(first) for _ in range(400)]
    assert found == [next(again) for _ in range(400)]
    doubles = [one for one in found if one.segment == "two-questions"]
    assert 150 < len(doubles) < 250
    assert all(" Also, " in one.question for one in doubles)
    assert len({one.key for one in found}) > 150
