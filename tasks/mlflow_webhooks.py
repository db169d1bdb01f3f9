"""MLflow's own webhooks: MLflow tells the gateway what was made in its pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.tracking_address import connected, is_http, tracking_uri
from touchstone.errors import BadInput
from touchstone.settings import Settings

if TYPE_CHECKING:
    pass

PROMPT_VERSION_MADE = ("prompt_version.created",)


def ensure_webhook(
    settings: Settings, name: str, url: str, secret: str, events: Sequence[str] = PROMPT_VERSION_MADE
) -> str:
    """Make the webhook of this name, or bring it to this address, secret and events; says which it did.

    Raises TrackingUnavailable, or BadInput where MLflow is no server: an embedded store sends nothing.
    """
    if not is_http(tracking_uri(settings)):
        raise BadInput("MLFLOW_TRACKING_URI: names no MLflow server, and only a server sends webhooks")
    with connected(settings) as client:
        from mlflow.entities.webhook import WebhookEvent

        wanted: list[Any] = [WebhookEvent.from_str(event) for event in events]  # type: ignore[arg-type]
        found = [one for one in _all(client) if one.name == name]
        if not found:
            client.create_webhook(name=name, url=url, events=wanted, secret=secret, status="ACTIVE")
            return "made"
        for double in found[1:]:  # made by two at once: the gateway would get everything twice
            client.delete_webhook(double.webhook_id)
        # The secret cannot be read back, so that it is always set.
        client.update_webhook(found[0].webhook_id, url=url, events=wanted, secret=secret, status="ACTIVE")
        same = found[0].url == url and {str(event) for event in found[0].events} == set(events)
        return "unchanged" if same and str(found[0].status) == "ACTIVE" else "changed"


def connect_gateway(settings: Settings) -> list[str]:
    """A webhook to the gateway for each source of kind `mlflow` in touchstone.yaml; one line for each.

    Raises BadInput when there is none, or its secret is not set.
    """
    sources = {name: one for name, one in settings.webhooks.sources.items() if one.kind == "mlflow"}
    if not sources:
        raise BadInput("touchstone.yaml: field webhooks.sources: has no source of kind mlflow; add one")
    told = []
    for name, source in sources.items():
        secrets = os.environ.get(source.secret_env, "").split()
        if not secrets:
            raise BadInput(f"{source.secret_env}: is not set; it is what MLflow signs with for the source {name}")
        url = f"{settings.gateway_url.rstrip('/')}/hooks/{name}"
        did = ensure_webhook(settings, f"touchstone-{name}", url, secrets[0])
        told.append(f"MLflow's webhook touchstone-{name} to {url}: {did}")
    return told


def _all(client) -> list:
    found, token = [], None
    while True:
        page = client.list_webhooks(page_token=token)
        found += page
        token = page.token
        if not token:
            return found
