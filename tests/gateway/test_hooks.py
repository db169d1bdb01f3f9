"""Webhooks over real HTTP into a real inbox: who proved himself is kept once, nobody else is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.signatures import read_secrets
from tests.gateway.webhook_site import SECRETS, STANDARD, WEBHOOKS, HookSite, fresh_id, hook_site, sign
from touchstone.errors import BadInput, Unmeasurable
from touchstone.inbox import HookStatus
from touchstone.webhooks import Webhooks

KINDS = ("standard", "github", "mlflow", "ci", "plain", "prefect")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HookSite]:
    with hook_site(tmp_path_factory.mktemp("hooks")) as found:
        yield found


def body_of(source: str) -> dict[str, Any]:
    """What makes a rule of this source start something; never the same twice."""
    unique = fresh_id()
    return {
        "standard": {"type": "prompt.changed", "data": unique},
        "github": {"after": unique, "commits": [{"modified": ["prompts/support/1.1.0.yaml", "README.md"]}]},
        "mlflow": {"entity": "prompt_version", "action": "created", "data": {"name": "support", "version": unique}},
        "ci": {"data": unique},
        "plain": {"type": "built", "data": unique},
        "prefect": {"type": "suite-silent", "alarm": "suite-silent", "id": unique, "data": {"resource": "suite.x"}},
    }[source]


def signing(source: str) -> dict[str, Any]:
    return {"event": "built"} if source == "ci" else {}


@pytest.mark.parametrize("source", KINDS)
def test_each_kind_is_accepted_once_and_planned(site: HookSite, source: str) -> None:
    body, puts = json.dumps(body_of(source)).encode(), site.puts
    headers = sign(source, body, **signing(source))
    first = site.post(source, body, headers)
    assert (first.status_code, first.json()["status"]) == (202, "accepted")
    again = site.post(source, body, headers)
    assert (again.status_code, again.json()) == (200, first.json() | {"status": "duplicate"})
    row = site.row(first)
    assert row.status == HookStatus.WAITING
    assert [action.kind for action in row.hook.actions] == ["alarm" if source == "prefect" else "run"]
    assert site.puts == puts + 1


def test_only_what_a_rule_asks_for_is_kept(site: HookSite) -> None:
    body = body_of("github") | {"pusher": {"email": "ann@example.org"}}
    row = site.row(site.post("github", body))
    assert row.hook.event == "push"
    assert row.hook.actions[0].target == "gate/support"
    assert row.hook.actions[0].parameters == {
        "event": {"paths": ["prompts/support/1.1.0.yaml"], "commit": body["after"]}
    }
    assert "ann@" not in row.model_dump_json()


def test_mlflows_event_is_entity_and_action(site: HookSite) -> None:
    assert site.row(site.post("mlflow", body_of("mlflow"))).hook.event == "prompt_version.created"


def test_an_alarm_of_prefect_goes_to_the_inbox_with_its_facts(site: HookSite) -> None:
    action = site.row(site.post("prefect", body_of("prefect"))).hook.actions[0]
    assert (action.target, action.parameters) == ("suite-silent", {"resource": "suite.x"})


def test_personal_data_and_secrets_that_rules_ask_for_are_scrubbed(site: HookSite) -> None:
    said = {"mail ann@example.org": ["call +44 20 7946 0958"], "note": {"of": "sk-abcdef1234567890abcdef"}, "n": 3}
    kept = site.row(site.post("standard", {"type": "prompt.changed", "data": said})).hook.actions[0].parameters
    assert kept == {"data": {"mail [email]": ["call [phone]"], "note": {"of": "[redacted]"}, "n": 3}}


def test_what_no_rule_wants_is_ignored_and_githubs_ping_too(site: HookSite) -> None:
    puts = site.puts
    ping = site.post("github", {"zen": fresh_id()}, event="ping")
    other = site.post("standard", {"type": "invoice.paid", "id": fresh_id()})
    for answer in (ping, other):
        assert (answer.status_code, answer.json()["status"]) == (202, "ignored")
        assert site.row(answer).status == HookStatus.IGNORED
    assert site.puts == puts


def test_while_secrets_rotate_old_and_new_are_taken(site: HookSite) -> None:
    for secret in SECRETS["GITHUB_SECRET"].split():
        assert site.post("github", body_of("github"), secret=secret).status_code == 202
    both = sign("standard", b"{}", delivery="msg-rotating")
    forged = "v1,AAAAZzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="
    both["webhook-signature"] = f"v2,x {forged} {both['webhook-signature']}"
    assert site.post("standard", b"{}", both).status_code == 202


def test_a_replay_under_a_fresh_delivery_id_is_a_duplicate(site: HookSite) -> None:
    body = body_of("github")
    first = site.post("github", body)
    again = site.post("github", body, delivery="another-id", event="pull_request")
    assert (again.status_code, again.json()) == (200, {"id": first.json()["id"], "status": "duplicate"})


@pytest.mark.parametrize("source", KINDS)
def test_a_forged_webhook_is_a_401_that_does_not_say_what_is_wrong(site: HookSite, source: str) -> None:
    body = json.dumps(body_of(source)).encode()
    right = sign(source, body, **signing(source))
    wrong = sign(source, body, secret="whsec_bm90IHRoZSByaWdodCBzZWNyZXQgYXQgYWxs", **signing(source))
    forged = [wrong, {}, *({**right, name: ""} for name in right if "Event" not in name and "GitHub-Del" not in name)]
    if source != "prefect":  # a token signs nothing
        assert site.post(source, body + b" ", right).status_code == 401
        assert site.post(source, body[:-1], right).status_code == 401
    if source in {"standard", "mlflow"}:
        forged += [{**right, name: f"{value[:-1]}{(int(value[-1], 36) + 1) % 10}"} for name, value in right.items()
                   if "signature" not in name.lower()]  # fmt: skip
    answers = [site.post(source, body, headers) for headers in forged]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("source", ["standard", "mlflow", "ci"])
def test_a_proved_time_out_of_tolerance_is_told_with_the_difference(site: HookSite, source: str) -> None:
    for ahead, side in ((-1000, "behind"), (1000, "ahead of")):
        answer = site.post(source, body_of(source), at=time.time() + ahead)
        assert answer.status_code == 400
        assert side in answer.json()["error"]
        assert any(f"{near} s {side}" in answer.json()["error"] for near in range(995, 1005))
    forged = site.post(source, body_of(source), at=time.time() - 1000, secret="whsec_bm90IHRoZSByaWdodCBzZWNyZXQ")
    assert "clock" not in forged.text


HOSTILE = {
    "no JSON": b"hello",
    "empty": b"",
    "cut": b'{"type": "prompt.',
    "no UTF-8": b'{"type": "\xff\xfe"}',
    "deep": b"[" * 30_000,
    "deep and whole": b'{"type":"prompt.changed","data":' + b"[" * 200 + b"]" * 200 + b"}",
    "a huge integer": b'{"type":"prompt.changed","data":' + b"9" * 5000 + b"}",
    "more than 64 bits": b'{"type":"prompt.changed","data":' + b"9" * 30 + b"}",
    "NaN": b'{"type":"prompt.changed","data":NaN}',
    "beyond doubles": b'{"type":"prompt.changed","data":1e999}',
    "a strange event": b'{"type":"prompt.\\u0000"}',
    "no name as event": b'{"type":{"a":1}}',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_signed_but_malformed_body_is_a_400(site: HookSite, what: str) -> None:
    assert site.post("prefect", HOSTILE[what]).status_code in {202, 400}  # a token proves any bytes; none is a 500
    expected = {401} if what == "no UTF-8" else {400}  # Standard Webhooks signs text
    assert {site.post("standard", HOSTILE[what]).status_code} == expected


def test_odd_json_is_kept_as_far_as_stores_can(site: HookSite) -> None:
    body = (
        b'{"type":"prompt.changed","data":["\\ud800","a\\u0000b","\xc3\xa9"],"data":["\\ud800","a\\u0000b","\xc3\xa9"]}'
    )
    row = site.row(site.post("standard", body))
    assert row.hook.actions[0].parameters == {"data": ["?", "ab", "é"]}
    assert site.post("standard", b"[1, 2]").json()["status"] == "ignored"


def test_a_body_above_the_limit_is_a_413_told_or_not(site: HookSite) -> None:
    big = b" " * (64 * 1024 + 1)
    assert site.post("github", big).status_code == 413
    chunks = (big[start : start + 8192] for start in range(0, len(big), 8192))
    chunked = site.http.post("/hooks/github", content=chunks, headers=sign("github", big))
    assert chunked.status_code == 413
    assert "max_body_kb" in chunked.json()["error"]


def test_an_unknown_source_is_a_404_and_a_form_a_415(site: HookSite) -> None:
    assert site.post("nobody", {}, {}).status_code == 404
    form = site.http.post("/hooks/github", data={"payload": "{}"})
    assert form.status_code == 415
    assert "application/json" in form.json()["error"]


def test_secrets_that_are_missing_short_or_no_base64_name_variable_and_source() -> None:
    for changed, said in (
        ({"MLFLOW_SECRET": " "}, "MLFLOW_SECRET, the secret of the webhook source 'mlflow': is not set"),
        ({"GITHUB_SECRET": f"{'x' * 16} short"}, "'github', number 2 of 2: is shorter than 16"),
        ({"STANDARD_SECRET": "whsec_not-base64-at-all!"}, "'standard': is not base64"),
        ({"STANDARD_SECRET": "whsec_c2hvcnQ="}, "shorter"),
    ):
        with pytest.raises(BadInput) as error:
            read_secrets(WEBHOOKS, SECRETS | changed)
        assert said in str(error.value)
        assert not any(secret in str(error.value) for secret in ("xxxx", "not-base64-at-all"))
    assert read_secrets(WEBHOOKS, SECRETS)["standard"] == (STANDARD,)
    assert read_secrets(Webhooks(), {}) == {}


def test_an_inbox_that_cannot_be_written_is_a_503_to_come_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    with hook_site(tmp_path_factory.mktemp("away")) as site:
        body = body_of("github")
        site.inbox._engine.dispose()
        path = site.inbox._engine.url.database
        assert path
        import sqlite3

        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE webhooks RENAME TO away")
        answer = site.post("github", body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert site.http.get("/metrics").text.count("touchstone_inbox_readable 0.0") == 1
        with pytest.raises(Unmeasurable):
            site.inbox.counted()
        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE away RENAME TO webhooks")
        assert site.post("github", body).status_code == 202


def test_what_mlflow_itself_sends_is_accepted(site: HookSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    from mlflow.entities.webhook import Webhook, WebhookEvent, WebhookStatus
    from mlflow.webhooks import delivery

    event: Any = WebhookEvent.from_str("prompt_version.created")  # type: ignore[arg-type]
    webhook = Webhook(
        "1",
        "touchstone",
        f"{site.url}/hooks/mlflow",
        [event],
        0,
        0,
        None,
        WebhookStatus.ACTIVE,
        SECRETS["MLFLOW_SECRET"],
    )
    result = delivery.test_webhook(webhook, event)
    assert (result.success, result.response_status) == (True, 202), result
    row = next(
        row for row in site.inbox.listed(source="mlflow") if row.hook.id == json.loads(str(result.response_body))["id"]
    )
    assert row.hook.event == "prompt_version.created"
