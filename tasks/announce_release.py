"""What Prefect hears of releases: an event for each step, sent so that its arrival is known.

Prefect's own `emit_event` queues and returns; with the server away the event is lost. Its HTTP endpoint answers. An
event's id is a digest of its place in the ledger, so that Prefect can tell a repetition.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from tasks.flow_run import flow_run_id, flow_run_page
from tasks.ledger import Ledger
from tasks.outbox_http import post_json
from tasks.prefect_address import api_url, authorization
from tasks.projection import Projection
from tasks.spool import run_folder
from touchstone.ledger import RELEASE_SUBJECT, LedgerEvent
from touchstone.release_news import NEWS_KINDS, News, tell
from touchstone.settings import Settings


def projection() -> Projection:
    """To the Prefect server that is configured, or that runs the flow we are in; no server is started for it."""
    off = "" if _api_url() else "no PREFECT_API_URL"
    return Projection("events", NEWS_KINDS, _send, off=off)


def run_links(settings: Settings, run_keys: Sequence[str]) -> dict[str, str]:
    """MLflow's pages of the evidence, by what they show; none where nobody has said where the pages are."""
    for run_key in run_keys[:1]:
        marker = run_folder(settings.state, run_key) / "published.json"
        if marker.exists():
            known = json.loads(marker.read_text())
            pages = {"MLflow": known.get("url"), "MLflow: compare": known.get("compare_url")}
            return {label: url for label, url in pages.items() if url}
    return {}


def prefect_event(settings: Settings, news: News) -> dict[str, Any]:
    """The event as Prefect's API takes it. The payload is flat and whole."""
    run = flow_run_id()
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    pages = run_links(settings, news.run_keys)
    links = {
        "mlflow_url": pages.get("MLflow"),
        "mlflow_compare_url": pages.get("MLflow: compare"),
        "prefect_url": flow_run_page(settings, run),
    }
    return {
        "id": str(uuid5(NAMESPACE_URL, f"touchstone:{news.environment}:{news.sequence}")),
        "event": news.event,
        "occurred": news.at,
        "resource": {
            "prefect.resource.id": f"touchstone.release.{news.environment}",
            "prefect.resource.name": f"releases of {news.environment}",
            "touchstone.environment": news.environment,
            "touchstone.bundle": news.bundle,
        },
        "related": related,
        "payload": news.model_dump(mode="json") | links,
    }


def _send(settings: Settings, ledger: Ledger, events: Sequence[LedgerEvent]) -> Iterator[int]:
    address, headers = f"{_api_url()}/events", authorization()
    releases = ledger.events(subject=RELEASE_SUBJECT)
    for event in events:
        news = tell(ledger.environment, releases, event)
        if news is not None:
            post_json(address, json.dumps([prefect_event(settings, news)]).encode(), headers)
        yield event.sequence


def _api_url() -> str:
    configured = api_url()
    if not configured and flow_run_id():
        from prefect.client.orchestration import get_client

        configured = str(get_client(sync_client=True).api_url)  # of the server that this flow run started
    return configured.rstrip("/")
