"""What a webhook says: its JSON, its event's name, what it starts, and what of it is kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.signatures import Refused, Verified
from touchstone.pii import scrub
from touchstone.privacy import redact_secrets
from touchstone.webhooks import Action, Hook, Webhooks, hook_id, plan_actions

_EVENT = re.compile(r"[\x20-\x7e]{0,128}")
_ALARM = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PLAIN = re.compile(r"[A-Za-z_.-]{0,11}|[0-9a-f]{40}|[0-9a-f]{64}")  # nothing is found there: most strings are such
_MOST_DEEP = 32  # of what is kept; stores and Prefect give up at various depths
_MOST_INTEGER = 2**63


def read_hook(
    webhooks: Webhooks, name: str, verified: Verified, headers: Mapping[str, str], body: bytes, now: float
) -> Hook:
    """The webhook as it goes to the inbox. Raises Refused (400)."""
    payload = _parsed(body)
    event = _event(webhooks, name, headers, payload)
    try:
        actions = tuple(_kept(action) for action in _planned(webhooks, name, event, verified, payload))
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    return Hook(
        id=hook_id(name, verified.key),
        source=name,
        event=_text(event),
        received_at=datetime.fromtimestamp(now, UTC).isoformat(),
        actions=actions,
    )


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError:  # also no UTF-8, and integers of thousands of digits
        raise _malformed("the body is not JSON") from None


def _no_number(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity, which JSON has not


def _event(webhooks: Webhooks, name: str, headers: Mapping[str, str], payload: Any) -> str:
    """Empty where the sender gives none: a rule for `*` takes that too."""
    source, said = webhooks.sources[name], payload if isinstance(payload, Mapping) else {}
    if source.kind == "github":
        event = headers.get("x-github-event")
    elif source.kind == "mlflow":
        entity, action = said.get("entity"), said.get("action")
        event = f"{entity}.{action}" if isinstance(entity, str) and isinstance(action, str) else None
    elif source.event_header:
        event = headers.get(source.event_header, "")
    else:
        event = said.get("type", "")
    if not isinstance(event, str) or not _EVENT.fullmatch(event):
        raise _malformed("the event's name is missing, or not of at most 128 printable ASCII characters")
    return event


def _planned(webhooks: Webhooks, name: str, event: str, verified: Verified, payload: Any) -> tuple[Action, ...]:
    kind = webhooks.sources[name].kind
    if kind == "github" and event == "ping":  # GitHub's trial of a new webhook
        return ()
    actions = plan_actions(webhooks.rules, name, event, verified.delivery, payload)
    if kind == "token" and isinstance(payload, Mapping) and payload.get("alarm") is not None:
        actions += (_alarm(payload),)
    return actions


def _alarm(payload: Mapping[str, Any]) -> Action:
    """Prefect's automations raise alarms so: the one who tells people must not need a worker."""
    alarm, data = payload["alarm"], payload.get("data", {})
    if not isinstance(alarm, str) or not _ALARM.fullmatch(alarm) or not isinstance(data, dict):
        raise _malformed("`alarm` has to be the name of an alarm, and `data` an object")
    return Action(kind="alarm", target=alarm, parameters=data)


def _kept(action: Action) -> Action:
    return action.model_copy(update={"parameters": _clean(action.parameters), "problem": _text(action.problem)})


def _clean(value: Any, depth: int = 0) -> Any:
    """Without personal data and secrets, and such that every store can keep it."""
    if depth > _MOST_DEEP:
        raise _malformed(f"what the rules keep is nested deeper than {_MOST_DEEP}")
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(key): _clean(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, depth + 1) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise _malformed("a number is too large")
    if isinstance(value, int) and not -_MOST_INTEGER <= value < _MOST_INTEGER:
        raise _malformed("an integer does not fit 64 bits")
    return value


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    if not text.isascii():
        text = text.encode(errors="replace").decode()  # half a surrogate pair is JSON, but no UTF-8
    return scrub(redact_secrets(text.replace("\0", "")))


def _malformed(error: str) -> Refused:
    return Refused(400, "malformed", error)
