"""`touchstone hooks`: what came, what it would start, sent as each kind of sender would, tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.inbox import WebhookInbox
from tests.gateway.webhook_site import SECRETS, WEBHOOKS, HookSite, hook_site
from touchstone.inbox import HookStatus
from touchstone.webhooks import Action, Hook

Touchstone = Callable[..., tuple[int, Any]]
BODIES = {
    "standard": {"type": "prompt.changed", "data": {"n": 1}},
    "github": {"after": "abc", "commits": [{"added": ["prompts/support/1.1.0.yaml"]}]},
    "mlflow": {"entity": "prompt_version", "action": "created", "data": {"name": "support"}},
    "ci": {"data": {"n": 2}},
    "plain": {"type": "built", "data": {"n": 3}},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HookSite]:
    """A gateway, and a project whose commands find it and its inbox."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "touchstone.yaml").write_text(json.dumps({"webhooks": WEBHOOKS.model_dump(mode="json")}))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with hook_site(tmp_path) as running:
        monkeypatch.setenv("TOUCHSTONE_GATEWAY_URL", running.url)
        monkeypatch.setenv("TOUCHSTONE_INBOX_URL", f"sqlite:///{tmp_path / 'inbox.db'}")
        yield running


def event_of(source: str) -> tuple[str, ...]:
    return {"github": ("--event", "push"), "ci": ("--event", "built")}.get(source, ())


@pytest.mark.parametrize("source", BODIES)
def test_a_body_is_sent_as_its_source_would_and_starts_what_was_said(
    site: HookSite, touchstone: Touchstone, source: str
) -> None:
    Path("body.json").write_text(json.dumps(BODIES[source]))
    code, said = touchstone("hooks", "check", "body.json", "--source", source, *event_of(source))
    assert (code, said.startswith("run gate/support  {")) == (0, True)
    assert site.inbox.listed() == []

    code, answer = touchstone("hooks", "send", "body.json", "--source", source, *event_of(source))
    assert (code, "202" in answer, '"accepted"' in answer) == (0, True, True)
    [row] = touchstone("hooks", "list", "--json")[1]["hooks"]
    assert (row["hook"]["source"], row["status"]) == (source, "waiting")
    assert json.loads(said.split("  ", 1)[1]) == row["hook"]["actions"][0]["parameters"]


def test_what_failed_is_listed_with_its_reason_and_tried_again(site: HookSite, touchstone: Touchstone) -> None:
    action = Action(kind="run", target="gate/nowhere")
    at = datetime.now(UTC).isoformat()
    with closing(WebhookInbox(f"sqlite:///{Path.cwd() / 'inbox.db'}")) as inbox:
        for id in ("one", "two"):
            asyncio.run(inbox.put(Hook(id=id, source="github", event="push", received_at=at, actions=(action,))))
            inbox.finish(id, HookStatus.FAILED, ["failed: Prefect has no deployment [gate/nowhere]:key:"])
        assert "failed: Prefect has no deployment [gate/nowhere]:key:" in touchstone("hooks", "list")[1]
        assert touchstone("hooks", "retry", "one")[0] == 0
        assert inbox.counted() == {HookStatus.WAITING: 1, HookStatus.FAILED: 1}
        assert touchstone("hooks", "retry", "one")[0] == 2  # it has not failed again
        assert touchstone("hooks", "retry", "--failed")[0] == 0
        assert inbox.counted() == {HookStatus.WAITING: 2}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("check", "gone.json", "--source", "github"), 2, "gone.json: No such file"),
        (("check", "broken.json", "--source", "github"), 2, "broken.json: not JSON"),
        (("check", "body.json", "--source", "gitlab"), 2, "--source gitlab: touchstone.yaml has standard, github"),
        (("send", "body.json", "--source", "unset"), 2, "NEVER_SET: is not set"),
        (("list", "--status", "lost"), 2, "--status lost: it is one of waiting, done, failed, ignored"),
        (("retry",), 2, "give either the ID of one webhook or --failed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_told_with_the_fix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    touchstone: Touchstone,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    webhooks = WEBHOOKS.model_dump(mode="json")
    webhooks["sources"]["unset"] = {"kind": "github", "secret_env": "NEVER_SET"}
    Path("touchstone.yaml").write_text(json.dumps({"webhooks": webhooks}))
    Path("body.json").write_text("{}")
    Path("broken.json").write_text("{")
    errors: list[str] = []
    monkeypatch.setattr("cli.main.print", lambda *text, **_: errors.append(" ".join(text)), raising=False)
    assert touchstone("hooks", *arguments)[0] == code
    assert said in errors[-1]


def test_a_gateway_that_is_away_is_told_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touchstone: Touchstone
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOUCHSTONE_GATEWAY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GITHUB_SECRET", SECRETS["GITHUB_SECRET"])
    Path("touchstone.yaml").write_text(json.dumps({"webhooks": WEBHOOKS.model_dump(mode="json")}))
    Path("body.json").write_text("{}")
    assert touchstone("hooks", "send", "body.json", "--source", "github")[0] == 3
