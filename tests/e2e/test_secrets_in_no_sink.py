"""Secrets of every planted format go through the whole product, and are in none of the places where it stores texts."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from emulator.server import EmulatorOptions, running
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.tracking_traffic import LiveAnswer, TrafficSender
from tests.conftest import Project, VendorControl
from tests.secret_formats import forms, planted
from touchstone.results import Failure, FailureKind, Retrieval, RetrievedChunk

ANSWERS, ERRORS, DOCUMENTS, LIVE, REASONS, LOGS = (
    planted(where) for where in ("answers", "errors", "documents", "live", "reasons", "logs")
)
PLANTED = {
    f"{where}: {name}": secret
    for where, secrets in (
        *(("answers", ANSWERS), ("errors", ERRORS), ("documents", DOCUMENTS), ("live", LIVE)),
        *(("reasons", REASONS), ("logs", LOGS)),
    )
    for name, (_, secret) in secrets.items()
}
SNAPSHOT = "leaky-2026-01-15"
POLICY = {
    "gate": {"ok": {"margin": 0.9, "floor": 0.5}},
    "release": {"max_repeats": 1, "forbidden_pii": [], "approval": {"required": 1}, "canary": {"required": False}},
    "maximum_failure_share": 0.9,
    "spend_cap_usd": 50,
}
SCORERS = [
    {"name": "ok", "kind": "expect"},
    {"name": "judge", "kind": "rubric", "dimensions": ["accuracy"], "segments": ["answered"]},
]


def test_planted_formats_are_at_least_fifty() -> None:
    assert len(ANSWERS) >= 50
    assert len(set(PLANTED.values())) == len(PLANTED)


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[VendorControl]:
    """A vendor whose snapshot says secrets; its errors quote the prompt."""
    recording = tmp_path / "leaky.jsonl"
    lines = [{"model": SNAPSHOT, "prompt": case["question"], "answer": answer} for case, answer in _answered()]
    recording.write_text("\n".join(map(json.dumps, lines)))
    with running(EmulatorOptions(recordings=(recording,))) as url:
        yield VendorControl(url)


def _answered() -> list[tuple[dict[str, Any], str]]:
    """Cases with what the vendor says to each."""
    found = []
    for number, text in enumerate(_by_four(ANSWERS)):
        question = f"How do I open door {number}?"
        case = {"id": f"door-{number}", "question": question, "expect": {"contains": ["9"]}, "segment": "answered"}
        found.append((case, f"Door {number} opens at 9. Use this:\n{text}\nand call 020 7946 0958."))
    return found


def _by_four(secrets: Mapping[str, tuple[str, str]], before: str = "") -> list[str]:
    """Four to a text, each begun by `before`."""
    texts = [f"{before}{text}\n" for text, _ in secrets.values()]
    return ["\n".join(texts[start : start + 4]) for start in range(0, len(texts), 4)]


def _refused() -> list[dict[str, Any]]:
    return [
        {"id": f"why-{number}", "question": f"Why not\n{text}\n?", "expect": {"contains": ["9"]}}
        for number, (text, _) in enumerate(ERRORS.values())
    ]


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def test_no_planted_secret_is_stored_anywhere(
    project: Project,
    vendor: VendorControl,
    touchstone: Callable[..., tuple[int, Any]],
    prefect_api: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.root / "summary.md"))
    judge = {"model": "openai/judge-2026-01-15", "api_base": vendor.api_base, "prompt": "judge@1.0.0"}
    judge |= {"price": {"input_per_million": 1, "output_per_million": 2}}
    project.prompt_bundle("leaky", vendor, model=f"openai/{SNAPSHOT}", judge=judge)
    said = [case for case, _ in _answered()]
    everything = project.golden_set("all", [*said, *_refused()], scorers=SCORERS, **POLICY)
    answered = project.golden_set("answered", said, scorers=SCORERS, **POLICY)
    seen = []

    code, report = touchstone("eval", "run", "--bundle", "leaky", "--dataset", everything, "--prefect", "--json")
    assert (code, report["n_scored"], report["n_failed"]) == (0, len(said), len(ERRORS))
    assert report["pii"]["key"] >= len(ANSWERS)
    assert report["pii"]["phone"] == len(said)
    seen.append(json.dumps(report))

    junit = ("--junit", str(project.root / "gate.xml"), "--github")
    _, gated = touchstone("gate", "--bundle", "leaky", "--dataset", answered, "--no-prefect", "--json", *junit)
    assert gated["is_candidate"], gated["decision"]["reason"]
    seen.append(json.dumps(gated))
    _release(touchstone)

    _retrieve(project, vendor, touchstone)
    _send_traffic()
    seen += _crash_a_flow()

    stored = dict(_stored(project)) | {f"printed {n}": text.encode() for n, text in enumerate(seen)}
    stored |= {"log": caplog.text.encode(), "artifacts": _artifacts()}
    places = " ".join(stored)
    for place in (
        "cases.jsonl",
        "mlflow.db",
        "ledger.db",
        "response_cache.db",
        "cases.parquet",
        "gate.xml",
        "summary.md",
    ):
        assert place in places, f"nothing was written to {place}"
    assert b"pii/phone" in stored["mlflow.db as text"]
    assert _found(stored) == {}
    _see_that_the_search_would_find_them(stored)


def _release(touchstone: Callable[..., tuple[int, Any]]) -> None:
    touchstone("promote", "--by", "Ada", "--json")
    reasons = [text for text, _ in REASONS.values()]
    half = len(reasons) // 2
    for start in range(0, half, 10):  # each is recorded, and the last one decides
        touchstone("approve", "--by", f"Ada {start}", "--reason", "\n".join(reasons[start : start + 10]), "--json")
    touchstone("promote", "--by", "Ada", "--reason", "\n".join(reasons[half : half + 10]), "--json")
    settings = load_settings()
    from tasks.releases import read_release
    from touchstone.ledger import EventKind

    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        assert read_release(ledger).champion is not None
        for name, (text, _) in REASONS.items():  # also what no command has cleaned before
            ledger.append(
                EventKind.QUERIES_CHECKED,
                "index:none",
                {"reason": f"because {text}"},
                content=json.dumps({"note": [text], "state": name}).encode(),
            )


def _retrieve(project: Project, vendor: VendorControl, touchstone: Callable[..., tuple[int, Any]]) -> None:
    for number, text in enumerate(_by_four(DOCUMENTS, "The lock of the room takes ")):
        project.write(f"vault/room-{number}.md", f"# Room {number}\n\n{text}")
    fields = {
        "name": "vault",
        "version": "1.0.0",
        "source": {"path": "vault"},
        "embedding_model": "hashing",
        "top_k": 4,
    }
    project.write("retrieval_configs_own/vault.yaml", fields)
    prompt = {"user": "Context: {context}\nQuestion: {question}"}
    project.prompt_bundle("keeper", vendor, prompt=prompt, retrieval="retrieval_configs_own/vault.yaml")
    cases = [
        {
            "id": f"room-{number}",
            "question": f"What does the lock of room {number} take?",
            "expect": {"contains": ["x"]},
        }
        for number in range(len(_by_four(DOCUMENTS)))
    ]
    dataset = project.golden_set("rooms", cases)
    _, report = touchstone("eval", "run", "--bundle", "keeper", "--dataset", dataset, "--no-prefect", "--json")
    assert report["n_failed"] == 0
    assert report["pii"]["key"] > 5, "the answers quote the documents"


def _send_traffic() -> None:
    with closing(TrafficSender(load_settings())) as sender:
        for number, (text, _) in enumerate(LIVE.values()):
            chunk = RetrievedChunk(chunk_id="c", document_id="d", text=f"it is {text}", rank=1, score=1.0, title=text)
            retrieval = Retrieval(
                query=text, chunks=(chunk,), latency_ms=1, embedding_model="m", index_version="i@1", search="s"
            )
            failure = Failure(kind=FailureKind.VENDOR_ERROR, reason=f"refused: {text}") if number % 2 else None
            sender.offer(
                LiveAnswer(
                    request_id=f"r{number}",
                    environment="default",
                    bundle="b",
                    fingerprint="f",
                    arm="champion",
                    question=f"is it {text}",
                    answer=None if failure else f"yes, {text}",
                    failure=failure,
                    started_at=time.time(),
                    seconds=0.1,
                    retrieval=retrieval,
                    retrieval_config="help",
                )
            )
    assert sender.report()["dropped"] == 0


def _crash_a_flow() -> list[str]:
    """What Prefect's API holds of a flow that logs secrets, and ends with an error of somebody else that has one."""
    from prefect import flow, get_run_logger
    from prefect.client.orchestration import get_client
    from prefect.logging.handlers import APILogHandler

    from tasks.environment import apply_defaults

    @flow
    def careless() -> None:
        apply_defaults()
        for text, _ in LOGS.values():
            get_run_logger().warning("the vendor said %s", text)
        try:
            raise KeyError(next(iter(LOGS.values()))[0])
        except KeyError:
            get_run_logger().exception("and then")
        raise RuntimeError(f"no luck with {' '.join(text for text, _ in LOGS.values())}")

    state = careless(return_state=True)
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        logs: list[str] = []
        while page := client.request("POST", "/logs/filter", json={"limit": 200, "offset": len(logs)}).json():
            logs += [json.dumps(line) for line in page]
        runs = client.request("POST", "/flow_runs/filter", json={}).text
        events = client.request("POST", "/events/filter", json={}).text
    assert sum("the vendor said" in line for line in logs) == len(LOGS)
    assert any("Traceback" in line for line in logs)
    assert "no luck with" in (state.message or "")
    assert "no luck with" in runs
    return [*logs, runs, events, state.message or ""]


def _artifacts() -> bytes:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={})
    assert "eval-leaky-all" in found.text
    return found.content


def _stored(project: Project) -> Iterator[tuple[str, bytes]]:
    """Every file the product wrote, as bytes and as its readers see it.

    Not the index: it is a copy of the documents, and `scan.pii: quarantine` keeps such chunks out of it.
    """
    files = [path for path in project.state.rglob("*") if path.is_file() and "lance" not in path.parts]
    for path in (*files, project.root / "gate.xml", project.root / "summary.md"):
        yield str(path.relative_to(project.root)), path.read_bytes()
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:  # a long text lies in pieces in the file
                yield f"{path.name} as text", "\n".join(database.iterdump()).encode(errors="replace")
        if path.suffix == ".parquet":
            import pandas

            yield f"{path.name} as text", pandas.read_parquet(path).to_json().encode()
    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:  # contents are compressed
        for event in ledger.events():
            if event.content_digest:
                yield f"content of {event.kind} {event.sequence}", ledger.content(event)


def _found(stored: Mapping[str, bytes]) -> dict[str, list[str]]:
    everything = b"\n".join(stored.values())
    hits = [name for name, secret in PLANTED.items() if any(form in everything for form in forms(secret))]
    return {
        name: [place for place, content in stored.items() if any(form in content for form in forms(PLANTED[name]))][:4]
        for name in hits
    }


def _see_that_the_search_would_find_them(stored: Mapping[str, bytes]) -> None:
    """The texts around them are there: the secrets went all the way."""
    whole = b"\n".join(content for place, content in stored.items() if place.startswith((".touchstone", "ledger")))
    assert len(re.findall(rb"Door \d+ opens at 9\. Use this:", whole)) > 40
    assert _found({"one": next(iter(PLANTED.values())).encode()})
    assert logging.getLogRecordFactory() is not logging.LogRecord
