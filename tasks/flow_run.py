"""Which Prefect flow run this is, and where people see it."""

from __future__ import annotations

import sys

from touchstone.settings import Settings


def flow_run_id() -> str | None:
    """None outside a flow run, and without importing Prefect to know it."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return flow_run.id


def flow_run_page(settings: Settings, run: str | None) -> str | None:
    """None where nobody has said where the pages are."""
    base = settings.prefect_ui_url.rstrip("/")
    return f"{base}/runs/flow-run/{run}" if base and run else None
