"""What must not be persisted: secrets and personal data, taken out of texts and records on their way to a sink."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from touchstone.key_shapes import KEY_SHAPES
from touchstone.pii import find_pii, scrub

_SECRETS = re.compile(
    rf"{KEY_SHAPES}"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|glpat|AIza)[-_]?[A-Za-z0-9_*-]{12,}"  # also masked ones: sk-ab***yz
    r"|(?i:\bbearer\s+)[^\s\"',;]{6,}"
    r"|(?i:\b(?:api[-_ ]?key|x-api-key|authorization|token|secret|password)\b[\"']?\s*(?:[:=]|provided:?|is)\s*[\"']?)"
    r"(?i:(?:bearer|basic|token)\s+)?+(?!\[redacted)[^\s\"',;}]{6,}"
    r"|://[^/\s:@]+:[^/\s@]+@"
)
_PICTURE = re.compile(r"(data:image/[a-z+]{2,10};base64,[A-Za-z0-9+/=]+)")
# Bundles, prompts and policies must come back as they were, and names of those who decide are kept on purpose.
_OURS = frozenset({"definition", "deployment", "bundle", "policy", "spec"})
_NAMES = frozenset({"by", "name", "approvers", "owner"})
_PLAIN = re.compile(
    r".{0,15}|[0-9a-f-]{16,64}|[0-9T:.Z+-]{16,40}", re.DOTALL
)  # digests and times: most strings there are
# What people and models said: in an error text "the token is ..." gives a secret away, here it is prose.
_SAID = frozenset({"question", "query", "answer", "text", "page_content", "explanation", "rationale"})
_TEXTS = _SAID | {"reason", "message", "note"}

NOT_COVERED = (
    "Scrubbed before it is stored: e-mail addresses, IBANs, payment cards, US social security numbers, IP addresses, "
    "phone numbers, keys and passwords (docs/privacy.md has the measured recall). NOT covered: {names}postal "
    "addresses, dates of birth, health data and whatever else has no shape; documents in an index (scan.pii decides), "
    "golden sets."
)


def privacy_notice(names: str = "") -> str:
    """What is not covered, for people to read at start-up. `names` says how names are covered; empty: they are not."""
    return NOT_COVERED.format(names="" if names else "names of people, ") + (f" Names: {names}." if names else "")


def redact_secrets(text: str, known: tuple[str, ...] = ()) -> str:
    """`text` without keys, bearer tokens, passwords in addresses, and the `known` secret values."""
    for value in known:
        if len(value) >= 6:
            text = text.replace(value, "[redacted]")
    return _SECRETS.sub("[redacted]", text)


def clean(text: str, known: tuple[str, ...] = ()) -> str:
    """An error text, a reason, a line of a log or a page, without secrets and personal data.

    The address of a server in a link (http://10.0.0.5:5000/...) is nobody's, and stays; so do pictures in a page.
    """
    parts = _PICTURE.split(text) if "data:image/" in text else [text]
    return "".join(part if part.startswith("data:image/") else _cleaned(part, known) for part in parts)


def _cleaned(text: str, known: tuple[str, ...]) -> str:
    return scrub(redact_secrets(text, known), servers=False)


def clean_record(value: Any, field: str = "") -> Any:
    """A JSON-like record with its prose cleaned: payloads of events, contents of the ledger, attributes of spans.

    Known fields of text are scrubbed whole; elsewhere a string without a space is an identifier, a digest or a time, of
    which only secrets are taken. What must come back as it was (a bundle's definition) is left alone. Keys of objects
    are never changed. A value that holds nothing comes back as the same object.
    """
    if isinstance(value, str):
        return _clean_string(value, field)
    if isinstance(value, dict):
        made = {
            key: inner if str(key) in _OURS and isinstance(inner, dict) else clean_record(inner, str(key))
            for key, inner in value.items()
        }
        return made if any(made[key] is not inner for key, inner in value.items()) else value
    if isinstance(value, list | tuple):
        items = [clean_record(inner, field) for inner in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _clean_string(value: str, field: str) -> str:
    if field not in _TEXTS and _PLAIN.fullmatch(value):
        return value
    if field in _NAMES:
        new = redact_secrets(value)
    elif field in _SAID:
        new = scrub(value)
    elif field in _TEXTS or any(map(str.isspace, value)):
        new = clean(value)
    else:
        new = scrub(value, kinds=("key",))
    return value if new == value else new


def holds_personal_data(text: str) -> bool:
    """Also where the text is JSON, whose strings are read one by one."""
    try:
        found = json.loads(text)
    except ValueError:
        return bool(find_pii(text))
    return any(find_pii(string) for string in _strings(found))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
