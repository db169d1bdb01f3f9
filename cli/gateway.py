"""touchstone gateway serve"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gateway.hooks import HookDesk
    from tasks.inbox import WebhookInbox
    from touchstone.settings import Settings
    from touchstone.webhooks import Webhooks

_WATCH_EVERY_S = 60.0

app = typer.Typer(help="Tells apps what to serve, and takes webhooks.", no_args_is_help=True)


@app.callback()
def _gateway() -> None:
    """Tells apps what to serve, and takes webhooks."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8700,
    host: Annotated[
        str, typer.Option(help="Loopback unless a proxy in front lets only POST /hooks/* through.")
    ] = "127.0.0.1",
) -> None:
    """Serve the ledger's releases, take webhooks and hand them to Prefect, and watch over silent suites."""
    from cli.output import log
    from gateway.app import create_app
    from gateway.releases import Releases
    from gateway.server import serve as serve_app
    from tasks.inbox import WebhookInbox
    from tasks.loading import load_settings
    from tasks.names import names_covered
    from tasks.published import PublishedReleases
    from touchstone.errors import BadInput
    from touchstone.privacy import privacy_notice

    settings = load_settings()
    log.info("%s", privacy_notice(names_covered(settings)))
    with ExitStack() as opened:
        published = opened.enter_context(closing(PublishedReleases(settings)))
        published.newest(settings.environment)  # a ledger that cannot be read is said now, not to every app
        inbox = opened.enter_context(closing(WebhookInbox(settings.inbox)))
        releases = Releases(published.newest, published.read)
        desk = _desk(settings, _with_secrets(settings.webhooks, log), inbox)
        gateway = create_app(releases, lambda: published.newest(settings.environment), desk)
        try:
            serve_app(gateway, host, port, lambda url: typer.echo(f"gateway at {url} (Ctrl-C stops it)"))
        except OSError as error:
            raise BadInput(str(error)) from None


def _with_secrets(webhooks: Webhooks, log: Any) -> Webhooks:
    """Without the sources whose secret nobody has set: the others are to work, and nobody can prove to be those."""
    import os

    off = {name: one.secret_env for name, one in webhooks.sources.items() if not os.environ.get(one.secret_env)}
    for name, variable in off.items():
        log.warning("webhooks of %s are refused: %s is not set", name, variable)
    sources = {name: one for name, one in webhooks.sources.items() if name not in off}
    rules = tuple(rule for rule in webhooks.rules if rule.source in sources)
    return webhooks.model_copy(update={"sources": sources, "rules": rules})


def _desk(settings: Settings, webhooks: Webhooks, inbox: WebhookInbox) -> HookDesk:
    """Takes webhooks; what they start is done beside the server, by Prefect where there is one."""
    import os

    from cli.output import log
    from gateway.dispatch import Dispatcher, Doers
    from gateway.hooks import HookDesk
    from gateway.signatures import read_secrets
    from tasks.prefect_address import api_url
    from tasks.prefect_api import PrefectApi

    if not (url := api_url()):
        log.warning("PREFECT_API_URL is not set: what webhooks start waits until the gateway is started with it")
    prefect = PrefectApi(url)

    async def alarm(name: str, facts: Mapping[str, Any]) -> str:
        from tasks.alarms import hear

        return await asyncio.to_thread(hear, settings, name, facts)

    dispatcher = Dispatcher(inbox, Doers(prefect.create_run, prefect.emit, alarm))

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatcher.work())
            group.create_task(_watch(settings))

    return HookDesk(
        webhooks,
        read_secrets(webhooks, os.environ),
        inbox,
        on_put=dispatcher.wake,
        work=work,
        operator_token=os.environ.get("TOUCHSTONE_GATEWAY_TOKEN", ""),
    )


async def _watch(settings: Settings) -> None:
    """The second line of the dead-man's switch, which needs neither Prefect nor a worker; and people are told."""
    from cli.output import log
    from tasks.alarms import watch

    while True:
        for warning in await asyncio.to_thread(watch, settings):
            log.warning("%s", warning)
        await asyncio.sleep(_WATCH_EVERY_S)
