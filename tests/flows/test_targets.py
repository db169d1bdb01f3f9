"""The user's own app as the system under test, over real HTTP and as a Python callable."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flows.golden_eval import conduct, plan_run
from tasks.loading import load_settings
from tasks.plan import EvalRequest
from tests.conftest import Project

KEY = "sk-proj-abcdefghijklmnop1234567890"
CASES = [
    {
        "id": f"case-{number}",
        "question": f"When does Larkvane open on day {number}?",
        "reference": "It opens at 9.",
        "relevant_ids": ["hours"],
        "expect": {"contains": ["9"]},
    }
    for number in range(4)
]
SCORERS = [
    {"name": "ok", "kind": "expect"},
    {"name": "retrieval", "kind": "retrieval", "k": 3, "measures": ["mrr", "recall"]},
]
Reply = Callable[[dict[str, Any]], Any]
_names = itertools.count(1)


class App:
    """An app under test, served from a thread with its own event loop; `reply` is what it does now."""

    def __init__(self) -> None:
        self.reply: Reply = lambda body: {"answer": "It opens at 9."}
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        found = self.reply(body)
        if asyncio.iscoroutine(found):
            found = await found
        return found if isinstance(found, web.Response) else web.json_response(found)


@contextmanager
def serving(app: App) -> Iterator[App]:
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        application = web.Application()
        application.router.add_post("/answer", app.handle)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        app.url = f"http://127.0.0.1:{runner.addresses[0][1]}/answer"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield app
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def app() -> Iterator[App]:
    with serving(App()) as started:
        yield started


@pytest.fixture
def run(project: Project) -> Callable[..., dict[str, Any]]:
    """run({"http": ...}) -> the report; as `eval run` does it, without MLflow."""
    dataset = project.golden_set("hours", CASES, scorers=SCORERS)

    def run_eval(target: dict[str, Any], resume: str | None = None, **request: Any) -> dict[str, Any]:
        project.write("bundles/app.yaml", {"name": "app", "target": target})
        plan = plan_run(load_settings(), EvalRequest(bundle="app", dataset=dataset, **request), resume)
        return asyncio.run(conduct(plan)).model_dump(mode="json")

    return run_eval


@pytest.fixture
def command(project: Project, touchstone) -> Callable[..., tuple[int, dict[str, Any]]]:
    """command({"http": ...}) -> (exit code, JSON) of `touchstone eval run`."""
    dataset = project.golden_set("hours", CASES, scorers=SCORERS)

    def run_eval(target: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        project.write("bundles/app.yaml", {"name": "app", "target": target})
        return touchstone("eval", "run", "--bundle", "app", "--dataset", dataset, "--json")

    return run_eval


@pytest.fixture
def module(project: Project) -> Callable[[str], str]:
    """module("def answer(question): ...") -> the name of a module in the project's root."""

    def write(source: str) -> str:
        name = f"shop_{next(_names)}"  # a module is imported once per process
        project.write(f"{name}.py", source)
        return name

    return write


def everything_written(root: Path) -> str:
    state = root / ".touchstone"
    files = (path for path in state.rglob("*") if path.is_file())
    return "".join(path.read_bytes().decode(errors="replace") for path in files)


def test_eval_run_takes_an_app(command, app: App) -> None:
    code, report = command({"http": app.url})
    assert (code, report["verdict"], report["metrics"]["ok"]["mean"]) == (0, "stable", 1.0)
    app.reply = lambda body: web.Response(status=500)
    code, report = command({"http": app.url})
    assert (code, report["verdict"], report["failures"]) == (3, "unmeasurable", {"vendor_error": 4})


def test_an_app_is_asked_each_question_and_its_answers_are_scored(run, app: App) -> None:
    report = run({"http": app.url})
    assert (report["verdict"], report["metrics"]["ok"]["mean"], report["metrics"]["ok"]["n"]) == ("stable", 1.0, 4)
    asked = sorted(app.asked, key=lambda body: body["case_id"])
    assert asked == [{"question": case["question"], "case_id": case["id"]} for case in CASES]
    assert report["calls"] == 4
    assert report["cost_usd"] is None, "an app that tells no cost is not free"
    assert "mrr_at_3" not in report["metrics"]


def test_what_an_app_tells_of_itself_is_recorded(run, app: App) -> None:
    usage = {"input_tokens": 30, "output_tokens": 5, "cost_usd": 0.25}
    app.reply = lambda body: {"answer": "At 9.", "model": "gpt-4o-2024-11-20", "fingerprint": "fp_1", **usage}
    report = run({"http": app.url})
    assert report["served_models"] == {"gpt-4o-2024-11-20": 4}
    assert report["fingerprints"] == {"fp_1": 4}
    assert (report["cost_usd"], report["input_tokens"], report["output_tokens"]) == (1.0, 120, 20)


def test_the_contexts_of_an_app_are_scored_as_its_retrieval(run, app: App) -> None:
    hours, other = {"id": "1", "document_id": "hours", "text": "It opens at 9."}, "We ship to Norway."
    app.reply = lambda body: {"answer": "At 9.", "contexts": [other, hours]}
    report = run({"http": app.url})
    assert report["metrics"]["mrr_at_3"]["mean"] == 0.5
    assert report["metrics"]["recall_at_3"]["mean"] == 1.0
    app.reply = lambda body: {"answer": "At 9.", "contexts": []}
    report = run({"http": app.url})
    assert report["metrics"]["recall_at_3"]["mean"] == 0.0


BAD_REPLIES = [
    (lambda body: web.Response(status=500, text="out of memory"), "vendor_error", "answered 500: out of memory"),
    (lambda body: web.Response(status=404), "vendor_error", "answered 404"),
    (lambda body: web.Response(text="It opens at 9."), "invalid", "did not answer JSON"),
    (lambda body: web.Response(text=""), "invalid", ""),
    (lambda body: web.Response(body=b"\xff\xfe{"), "invalid", ""),
    (lambda body: {"text": "It opens at 9."}, "invalid", "field answer: Field required"),
    (lambda body: {"answer": ""}, "invalid", "field answer"),
    (lambda body: {"answer": None}, "invalid", "field answer"),
    (lambda body: {"answer": "At 9.", "contexts": [{"id": "1"}]}, "invalid", "field contexts.0"),
    (lambda body: {"answer": "At 9.", "cost_usd": -1}, "invalid", "field cost_usd"),
    (lambda body: web.Response(text='{"answer": "At 9.", "cost_usd": NaN}'), "invalid", "field cost_usd"),
    (lambda body: ["It opens at 9."], "invalid", ""),
]


@pytest.mark.parametrize(("reply", "kind", "reason"), BAD_REPLIES, ids=[str(n) for n in range(len(BAD_REPLIES))])
def test_a_bad_reply_is_its_typed_failure(run, app: App, reply: Reply, kind: str, reason: str) -> None:
    app.reply = reply
    report = run({"http": app.url})
    assert (report["verdict"], report["failures"], report["metrics"]) == ("unmeasurable", {kind: 4}, {})
    assert reason in report["failure_examples"][kind]


def test_one_bad_reply_among_good_ones_is_left_out_of_the_mean(run, app: App) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return web.Response(status=503) if body["case_id"] == "case-2" else {"answer": "It opens at 9."}

    app.reply = reply
    report = run({"http": app.url})
    assert report["failures"] == {"vendor_error": 1}
    assert (report["metrics"]["ok"]["mean"], report["metrics"]["ok"]["n"]) == (1.0, 3)


def test_an_app_that_is_too_slow_is_a_timeout(run, app: App) -> None:
    app.reply = lambda body: asyncio.sleep(30)
    report = run({"http": app.url, "timeout_s": 0.2})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"timeout": 4})
    assert "within 0.2 s" in report["failure_examples"]["timeout"]


def test_waiting_for_a_free_place_is_not_the_apps_time(run, app: App) -> None:
    async def slow() -> dict[str, str]:
        await asyncio.sleep(0.8)  # four of them, one after the other, take longer than the time-out
        return {"answer": "It opens at 9."}

    app.reply = lambda body: slow()
    report = run({"http": app.url, "timeout_s": 2.9}, concurrency=1)
    assert (report["verdict"], report["failures"]) == ("stable", {})


def test_nobody_at_the_address_is_a_vendor_error(run) -> None:
    report = run({"http": "http://127.0.0.1:1/answer"})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"vendor_error": 4})


def test_a_resumed_run_asks_the_app_nothing_again(run, app: App) -> None:
    report = run({"http": app.url})
    assert run({"http": app.url}, resume=report["run_key"])["metrics"] == report["metrics"]
    assert len(app.asked) == 4


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://shop:hunter2222@127.0.0.1:1/answer", "keep secrets out of the address"),
        (f"http://127.0.0.1:1/answer?key={KEY}", "keep secrets out of the address"),
        ("localhost:8000/answer", "not an http"),
        ("ftp://127.0.0.1/answer", "not an http"),
    ],
)
def test_an_address_with_a_secret_or_of_another_kind_is_bad_input(command, project, url: str, complaint: str) -> None:
    code, message = command({"http": url})
    assert code == 2
    assert complaint in message["error"]
    assert "hunter2222" not in message["error"]
    assert KEY not in message["error"]
    assert not list((project.state / "runs").glob("*"))


@pytest.mark.parametrize("padding", [0, 175, 3000])
def test_a_key_that_an_app_echoes_is_written_nowhere(run, app: App, project: Project, padding: int) -> None:
    app.reply = lambda body: web.Response(status=401, text=f"{'x' * padding} invalid key {KEY}")
    report = run({"http": app.url})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"vendor_error": 4})
    assert KEY[:12] not in report["failure_examples"]["vendor_error"]
    assert KEY[:12] not in everything_written(project.root)


@pytest.mark.parametrize(
    "source",
    [
        "def answer(question):\n    return 'It opens at 9.' if 'Larkvane' in question else 'no'",
        "async def answer(question):\n    return 'It opens at 9.' if 'Larkvane' in question else 'no'",
        "def answer(question):\n    return {'answer': 'At 9.', 'contexts': [{'text': 't', 'document_id': 'hours'}]}",
    ],
)
def test_a_callable_in_the_projects_root_answers(run, module, source: str) -> None:
    report = run({"python": f"{module(source)}:answer"})
    assert (report["verdict"], report["metrics"]["ok"]["mean"], report["metrics"]["ok"]["n"]) == ("stable", 1.0, 4)
    assert ("mrr_at_3" in report["metrics"]) == ("contexts" in source)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_callable_that_raises_is_a_vendor_error_without_its_secrets(run, module, project, kind: str) -> None:
    source = f"{kind} answer(question):\n    raise RuntimeError('401: invalid key ' + 'sk-proj-' + {KEY[8:]!r})"
    report = run({"python": f"{module(source)}:answer"})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"vendor_error": 4})
    assert "raised RuntimeError: 401" in report["failure_examples"]["vendor_error"]
    assert KEY not in report["failure_examples"]["vendor_error"] + everything_written(project.root)


def test_a_callable_that_is_too_slow_is_a_timeout(run, module) -> None:
    source = "import asyncio\nasync def answer(question):\n    await asyncio.sleep(30)"
    report = run({"python": f"{module(source)}:answer", "timeout_s": 0.2})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"timeout": 4})


def test_a_callable_that_answers_nothing_is_invalid(run, module) -> None:
    report = run({"python": f"{module('def answer(question): pass')}:answer"})
    assert (report["verdict"], report["failures"]) == ("unmeasurable", {"invalid": 4})


@pytest.mark.parametrize(
    ("source", "name", "complaint"),
    [
        ("", "answer", "cannot be imported"),
        ("answer = 'It opens at 9.'", "answer", "is not callable"),
        ("def answer(question:", "answer", "cannot be imported"),
        ("import os\nos.environ['NO_SUCH_VARIABLE_OF_THE_SHOP']", "answer", "cannot be imported: KeyError"),
    ],
)
def test_a_wrong_reference_is_bad_input_before_anything_is_written(
    command, module, project: Project, source: str, name: str, complaint: str
) -> None:
    code, message = command({"python": f"{module(source)}:{name}"})
    assert code == 2
    assert complaint in message["error"]
    assert not list((project.state / "runs").glob("*"))


@pytest.mark.parametrize("reference", ["no_such_module_of_ours:answer", "json:nothing"])
def test_a_reference_to_nothing_is_bad_input(command, reference: str) -> None:
    code, message = command({"python": reference})
    assert code == 2
    assert f"{reference!r} cannot be imported" in message["error"]
