"""touchstone hooks: webhooks that came, what they started, and trying one out."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from touchstone.settings import Settings
    from touchstone.webhooks import Source

app = typer.Typer(help="Webhooks: what came, what it started; try one.", no_args_is_help=True)

_File = Annotated[str, typer.Argument(metavar="FILE", help="The body, as JSON; `-` reads it from stdin.")]
_SourceName = Annotated[str, typer.Option("--source", help="A name in `webhooks.sources` of touchstone.yaml.")]
_Event = Annotated[str, typer.Option("--event", help="Where a header names it, as GitHub's: push.")]


@app.command("list")
def list_hooks(
    status: Annotated[str | None, typer.Option(help="waiting, done, failed or ignored.")] = None,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """The newest webhooks, and what became of each."""
    from cli.output import out, print_json
    from tasks.inbox import WebhookInbox
    from tasks.loading import load_settings
    from touchstone.errors import BadInput
    from touchstone.inbox import HookStatus

    try:
        wanted = HookStatus(status) if status else None
    except ValueError:
        raise BadInput(f"--status {status}: it is one of {', '.join(HookStatus)}") from None
    with closing(WebhookInbox(load_settings().inbox)) as inbox:
        rows = inbox.listed(wanted, source, limit)
    if as_json:
        print_json({"hooks": [row.model_dump(mode="json") for row in rows]})
        return
    for row in rows:
        hook = row.hook
        out.print(
            f"{hook.received_at[:19]}  {row.status:8} {hook.id}  {hook.source} {hook.event}", markup=False, emoji=False
        )
        for outcome in row.outcomes or [f"{action.kind} {action.target}" for action in hook.actions]:
            out.print(f"    {outcome}", markup=False, emoji=False, soft_wrap=True)
    if not rows:
        out.print("none")


@app.command()
def retry(
    hook_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="As `touchstone hooks list` shows it.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
) -> None:
    """Give failed webhooks another chance; what was done of them is not done again."""
    from cli.output import out
    from tasks.inbox import WebhookInbox
    from tasks.loading import load_settings
    from touchstone.errors import BadInput

    if (hook_id is None) == (not failed):
        raise BadInput("give either the ID of one webhook or --failed")
    with closing(WebhookInbox(load_settings().inbox)) as inbox:
        again = inbox.retry(hook_id)
    if hook_id is not None and not again:
        raise BadInput(f"{hook_id}: no webhook of this id has failed; `touchstone hooks list --status failed`")
    out.print(f"{again} will be tried again by the gateway")


@app.command()
def check(file: _File, source: _SourceName, event: _Event = "") -> None:
    """What the gateway would start. Nothing is sent."""
    import base64
    import time

    from cli.output import out
    from gateway.hook_content import read_hook
    from gateway.signatures import Refused, Verified
    from tasks.loading import load_settings
    from tasks.webhook_senders import signed_headers
    from touchstone.errors import BadInput

    settings, body = load_settings(), _body(file)
    nobodys = base64.b64encode(bytes(24)).decode()
    headers = signed_headers(_source(settings, source), nobodys, body, "trial", event or "push", time.time())
    try:
        hook = read_hook(settings.webhooks, source, Verified("trial", "trial"), headers, body, time.time())
    except Refused as refused:
        raise BadInput(f"the gateway would refuse it: {refused.error}") from None
    for action in hook.actions:
        found = action.problem or json.dumps(action.parameters)
        out.print(f"{action.kind} {action.target}  {found}", markup=False, emoji=False, soft_wrap=True)
    if not hook.actions:
        out.print(f"no rule wants {source} {hook.event or 'without an event'}", markup=False, emoji=False)


@app.command()
def send(file: _File, source: _SourceName, event: _Event = "") -> None:
    """Sign a body as the source would, and send it to the gateway: what it starts is started."""
    import os
    import time
    import uuid

    import httpx

    from cli.output import exit_with, out
    from tasks.loading import load_settings
    from tasks.webhook_senders import signed_headers
    from touchstone.errors import BadInput, Unmeasurable

    settings = load_settings()
    known = _source(settings, source)
    secrets = os.environ.get(known.secret_env, "").split()
    if not secrets:
        raise BadInput(f"{known.secret_env}: is not set; it holds the secret of the webhook source {source!r}")
    body = _body(file)
    headers = signed_headers(known, secrets[0], body, str(uuid.uuid4()), event or "push", time.time())
    url = f"{settings.gateway_url.rstrip('/')}/hooks/{source}"
    try:
        answer = httpx.post(url, content=body, headers=headers | {"content-type": "application/json"}, timeout=15)
    except httpx.HTTPError as error:
        raise Unmeasurable(
            f"TOUCHSTONE_GATEWAY_URL: {url} does not answer ({type(error).__name__}); `touchstone gateway serve`"
        ) from None
    out.print(f"{answer.status_code} {answer.text.strip()}", markup=False, emoji=False, soft_wrap=True)
    exit_with(0 if answer.is_success else 1)


def _source(settings: Settings, name: str) -> Source:
    from touchstone.errors import BadInput

    known = settings.webhooks.sources
    if name not in known:
        raise BadInput(f"--source {name}: touchstone.yaml has {', '.join(known) or 'no webhooks.sources'}")
    return known[name]


def _body(file: str) -> bytes:
    from touchstone.errors import BadInput

    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        json.loads(body)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{file}: not JSON: {error}") from None
    return body
