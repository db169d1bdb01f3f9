"""What must not be persisted: secrets that vendors echo in their error texts."""

from __future__ import annotations

import re

from touchstone.pii import KEY_SHAPES

_SECRETS = re.compile(
    rf"{KEY_SHAPES}"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|glpat|AIza)[-_]?[A-Za-z0-9_*-]{12,}"  # also masked ones: sk-ab***yz
    r"|(?i:\bbearer\s+)[^\s\"',;]{6,}"
    r"|(?i:\b(?:api[-_ ]?key|x-api-key|authorization|token|secret|password)\b[\"']?\s*(?:[:=]|provided:?|is)\s*[\"']?)"
    r"(?!\[redacted)[^\s\"',;}]{6,}"
    r"|://[^/\s:@]+:[^/\s@]+@"
)


def redact_secrets(text: str, known: tuple[str, ...] = ()) -> str:
    """`text` without keys, bearer tokens, passwords in addresses, and the `known` secret values."""
    for value in known:
        if len(value) >= 6:
            text = text.replace(value, "[redacted]")
    return _SECRETS.sub("[redacted]", text)
