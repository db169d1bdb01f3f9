"""Query drift from the retrieval log to the terminal, the ledger and Prefect's page: real log, ledger and flow run."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.query_drift import conduct
from tasks.announce_queries import event_payload, markdown, query_chart
from tasks.ledger import Ledger
from tasks.loading import load_retrieval_config, load_settings
from tasks.query_windows import past_checks
from tasks.retrieval_log import log_retrieval
from touchstone.ledger import EventKind, LedgerEvent, index_subject
from touchstone.query_drift import QueryDriftDecision
from touchstone.results import Retrieval

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
KNOWN = {
    "refund": ["refund for the annual plan", "money back after cancelling", "refund window of my invoice"],
    "router": ["router blinks orange", "reset the router password", "router loses the wireless signal"],
    "parcel": ["parcel has not arrived", "change the delivery address of a parcel", "track my parcel today"],
}
NEW = {"visa": ["visa for a conference abroad", "embassy appointment for my passport", "visa photograph requirements"]}


class Production:
    """A project of one retrieval config, and the queries that its production asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "docs").mkdir()
        (root / "docs" / "a.md").write_text("A document.")
        self.configure()
        self._random = random.Random(1)

    def configure(self, **query_drift: Any) -> None:
        config = {
            "name": "shop",
            "version": "1.0.0",
            "source": {"path": "docs"},
            "embedding_model": "hashing",
            "query_drift": {"windows": 2, "minimum_queries": 50} | query_drift,
        }
        (self.root / "retrieval_configs").mkdir(exist_ok=True)
        (self.root / "retrieval_configs" / "shop.yaml").write_text(json.dumps(config))

    def ask(self, day: int, topics: dict[str, list[str]], count: int = 120, extra: str = "", **fields: Any) -> None:
        """`count` queries in the 24 hours that end `day` days before now."""
        questions = [question for topic in topics.values() for question in topic]
        for number in range(count):
            query = f"{self._random.choice(questions)} {self._random.randrange(30)}{extra}"
            at = NOW - timedelta(days=day) - timedelta(hours=24 * (number + 0.5) / count)
            self._log(at, query, {"config": "shop"} | fields)

    def _log(self, at: datetime, query: str, fields: dict[str, Any]) -> None:
        """As `log_retrieval` writes it, at another time."""
        found = Retrieval(
            query=query, chunks=(), latency_ms=1, embedding_model="hashing", index_version="t@1", search="semantic"
        )
        scratch = self.root / "scratch"
        log_retrieval(scratch, found, **fields)
        line = next(scratch.iterdir())
        record = json.loads(line.read_text()) | {"time": at.isoformat(timespec="milliseconds")}
        line.unlink()
        folder = self.root / ".touchstone" / "retrievals"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{at:%Y-%m-%d}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def check(self, day: int = 0) -> QueryDriftDecision:
        """The check that ran `day` days before now."""
        settings = load_settings()
        return conduct(settings, load_retrieval_config(settings.root, "shop")[0], NOW - timedelta(days=day))

    def events(self) -> list[LedgerEvent]:
        settings = load_settings()
        with closing(Ledger(settings.ledger, settings.environment)) as ledger:
            return ledger.events(EventKind.QUERIES_CHECKED, index_subject("shop"))


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Production:
    """Five days of known topics, until three days before now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    production = Production(tmp_path)
    for day in range(3, 8):
        production.ask(day, KNOWN)
    return production


def test_the_same_topics_are_stable(production: Production) -> None:
    production.ask(2, KNOWN)
    decision = production.check(day=2)
    assert (decision.verdict, decision.transition, decision.counted) == ("stable", None, True)
    assert (decision.windows.n, decision.windows.reference_n) == (120, 600)
    (event,) = production.events()
    assert (event.payload["verdict"], event.payload["n"], event.payload["reference_n"]) == ("stable", 120, 600)


def test_new_topics_are_flagged_then_drifted_and_do_not_spoil_the_reference(production: Production) -> None:
    for day in (2, 1):
        production.ask(day, NEW)
    production.ask(0, KNOWN)
    flagged, drifted, quiet = (production.check(day) for day in (2, 1, 0))
    assert (flagged.verdict, flagged.transition) == ("flagged", "flagged")
    assert (drifted.verdict, drifted.transition) == ("drifted", "drifted")
    assert (quiet.window_verdict, quiet.verdict, quiet.transition) == ("stable", "drifted", None)
    assert quiet.windows.reference_end == flagged.windows.start  # what drifted is no part of what it is compared with
    assert any("visa" in example.text or "embassy" in example.text for example in flagged.examples)


def test_what_evals_ask_and_other_configs_is_no_production(production: Production) -> None:
    production.ask(2, KNOWN)
    production.ask(2, NEW, run_key="support-1")
    production.ask(2, NEW, config="other")
    decision = production.check(day=2)
    assert (decision.verdict, decision.windows.n) == ("stable", 120)


def test_too_few_queries_are_unmeasurable_and_recorded(production: Production) -> None:
    production.ask(2, NEW, count=49)
    decision = production.check(day=2)
    assert decision.verdict == "unmeasurable"
    assert "49 production queries in the newest window" in decision.reason
    (event,) = production.events()
    assert event.payload["psi"] is None


def test_running_twice_in_one_window_counts_once(production: Production) -> None:
    for day in (2, 1):
        production.ask(day, NEW)
    assert [production.check(day=2).verdict for _ in range(4)] == ["flagged"] * 4
    assert [event.payload["counted"] for event in production.events()] == [True, False, False, False]
    assert production.check(day=1).verdict == "drifted"


def test_checks_at_once_count_one_window_and_tell_one_transition(production: Production) -> None:
    production.ask(2, NEW)
    with ThreadPoolExecutor(4) as pool:
        decisions = list(pool.map(lambda _: production.check(day=2), range(4)))
    assert sum(decision.counted for decision in decisions) == 1
    assert sum(decision.transition is not None for decision in decisions) == 1
    assert len(production.events()) == 4


def test_quoted_queries_lie_in_erasable_content_and_hold_no_address(production: Production) -> None:
    production.ask(2, NEW, extra=" reply to jane.doe@mail.example.com")
    decision = production.check(day=2)
    (event,) = production.events()
    assert decision.examples
    assert "jane.doe" not in decision.model_dump_json()
    assert decision.examples[0].text not in json.dumps(event.payload)
    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        assert QueryDriftDecision.model_validate_json(ledger.content(event)) == decision


def test_the_terminal_says_the_level_and_its_exit_code(production: Production, touchstone) -> None:
    production.configure(windows=1)
    code, answer = touchstone("drift", "queries", "--config", "shop", "--json")
    assert (code, answer["verdict"], answer["n"], answer["psi"]) == (3, "unmeasurable", 0, None)
    for day in (2, 1, 0):
        production.ask(day, KNOWN)
    code, answer = touchstone("drift", "queries", "--config", "shop", "--json")
    assert (code, answer["verdict"], answer["config"]) == (0, "stable", "shop")
    assert abs(answer["psi"]) < 0.1


def test_the_terminal_exits_1_when_it_drifted(production: Production, touchstone) -> None:
    production.configure(windows=1)
    for day in (2, 1):
        production.ask(day, KNOWN)
    production.ask(0, NEW)
    code, text = touchstone("drift", "queries", "--config", "retrieval_configs/shop.yaml")
    assert code == 1
    for part in ("DRIFTED", "beyond a limit that acts", "cosine of the centroids", "least like the reference: "):
        assert part in text


def test_an_unknown_config_is_bad_input(production: Production, touchstone) -> None:
    code, answer = touchstone("drift", "queries", "--config", "nowhere", "--json")
    assert code == 2
    assert "known: shop" in answer["error"]


def test_the_page_and_the_event_say_the_figures(production: Production) -> None:
    production.ask(2, NEW)
    decision = production.check(day=2)
    settings = load_settings()
    config, _ = load_retrieval_config(settings.root, "shop")
    chart = query_chart(past_checks(settings, config, 60), config.query_drift)
    assert chart is not None
    assert chart.startswith(b"\x89PNG")
    page = markdown(decision, config, chart)
    for part in (
        "## FLAGGED: queries of shop",
        "| cosine of the centroids |",
        "data:image/png;base64,",
        "`embassy appointment",
    ):
        assert part in page
    payload = event_payload(decision, config)
    assert all(value is not None and not isinstance(value, dict | list) for value in payload.values())
    assert (payload["event"], payload["config"], payload["n"]) == ("touchstone.queries.flagged", "shop", 120)


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def events_named(client: Any, name: str) -> list[dict[str, Any]]:
    """What Prefect's server received; it takes events in after a moment."""
    for _ in range(60):
        answer = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
        if found := answer.json()["events"]:
            return found
        time.sleep(0.5)
    return []


def test_a_flow_run_completes_under_the_levels_name_and_is_announced(
    production: Production, prefect_server: None
) -> None:
    from prefect.artifacts import Artifact
    from prefect.client.orchestration import get_client

    from flows.query_drift import query_drift

    production.configure(windows=1)
    for day in (2, 1):
        production.ask(day, KNOWN)
    production.ask(0, NEW)
    state = query_drift(config="shop", return_state=True)
    assert (state.name, state.is_completed()) == ("Drifted", True)
    artifact = Artifact.get("query-drift-shop")
    assert artifact is not None
    assert artifact.description is not None
    assert artifact.description.startswith("drifted: ")
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        (event,) = events_named(client, "touchstone.queries.drifted")
    assert run.name == "query-drift shop"
    assert event["resource"]["prefect.resource.id"] == "touchstone.index.shop"
    assert event["resource"]["touchstone.retrieval_config"] == "shop"
    assert (event["payload"]["verdict"], event["payload"]["config"]) == ("drifted", "shop")
