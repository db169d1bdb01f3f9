"""Where Prefect is, and who we are there."""

from __future__ import annotations

import base64
import os


def api_url() -> str:
    """Of the Prefect server that is configured; empty without one."""
    return os.environ.get("PREFECT_API_URL", "").rstrip("/")


def authorization() -> dict[str, str]:
    """The header that Prefect's own variables ask for."""
    key, pair = os.environ.get("PREFECT_API_KEY"), os.environ.get("PREFECT_API_AUTH_STRING")
    if pair:
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"authorization": f"Bearer {key}"} if key else {}
