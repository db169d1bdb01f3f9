"""One JSON request to a projection's target: taken, or TargetAway within seconds."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tasks.projection import TargetAway

TIMEOUT_S = 3.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET that says 200 and delivers nothing."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def post_json(url: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """POST, or raise TargetAway. The message names the host only: paths and queries of such addresses are secrets."""
    host = urlsplit(url).hostname or "an address without a host"
    if urlsplit(url).scheme not in {"http", "https"}:
        raise TargetAway(f"{host}: not an http(s) address")
    sent = {"content-type": "application/json", "user-agent": "touchstone", **(headers or {})}
    request = urllib.request.Request(url, data=body, headers=sent, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        with error:
            raise TargetAway(f"{host} answers {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise TargetAway(f"{host}: {type(reason).__name__}") from None
