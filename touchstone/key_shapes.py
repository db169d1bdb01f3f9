"""Secrets by their shape: tokens that say by themselves what they are, and words after which a secret stands."""

from __future__ import annotations

import re
from collections.abc import Iterator

_AFTER_PREFIX = (  # prefix and what follows it; the issuers publish these so that scanners can find them
    r"(?:sk|rk|pk)[-_](?=[\w-]*[0-9])[\w-]{16,250}",  # OpenAI, Anthropic, OpenRouter, Stripe
    r"gh[pousr]_\w{20,255}|github_pat_\w{20,255}",
    r"gl(?:pat|ptt|dt|rt|cbt|ft|imt|agent|oas|soat)-[\w.-]{16,100}",  # GitLab
    r"(?:hf|gsk|npm|r8|ntn|sbp|fw|nfp|bkua|vcp)_(?=\w*[0-9])\w{28,100}",
    r"(?:figd|lin_api|lin_oauth|rubygems|do[opr]_v1|dckr_[po]at|shp(?:at|ca|pa|ss)|gl(?:sa|c)|sntry[su]|whsec|tfp|secret"
    r"|sb_secret|pscale_(?:tkn|pw|oauth)|CCI[PR]AT)_(?=[\w.=/+-]*[0-9])[\w.=/+-]{20,400}",
    r"(?:xai|pplx|nvapi|sess|pul|HRKU|CFPAT|NRAK|NRJS|hooks)-(?=[\w-]*[0-9])[\w-]{20,250}",
    r"pypi-[\w-]{40,250}|GOCSPX-[\w-]{20,60}|PMAK-[0-9a-f]{24}-[0-9a-f]{34}|key-[0-9a-f]{32}|[0-9a-f]{32}-us[0-9]{1,2}\b",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b|AIza[\w-]{30,50}|ya29\.[\w-]{20,300}|1//0[\w-]{20,200}",
    r"xox[abceoprs]-[\w-]{10,250}|xapp-[0-9]-[\w-]{20,250}",  # Slack
    r"SG\.[\w-]{16,32}\.[\w-]{16,64}|hv[sbr]\.[\w-]{20,300}|\w{14}\.atlasv1\.[\w-]{40,100}",
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{20,100}|dt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{60,70}",
    r"(?:SK|AC)[0-9a-f]{32}\b|dapi[0-9a-f]{32}(?:-[0-9])?\b",  # Twilio, Databricks
    r"sq0(?:atp|csp|idp)-[\w-]{20,50}|EAA(?=\w*[0-9])\w{50,300}|AT(?:ATT|CTT|BBT)3[\w=-]{40,300}",
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}|[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}",  # Airtable, Azure AD
    r"AGE-SECRET-KEY-1[0-9A-Z]{50,60}|[0-9]{8,10}:AA[\w-]{32,34}",  # age, Telegram bots
    r"eyJ[\w-]{8,2000}\.eyJ[\w-]{4,4000}\.[\w-]{4,1000}",  # JSON web token
)
KEY_SHAPES = (
    rf"(?<![\w-])(?:{'|'.join(_AFTER_PREFIX)})"
    r"|-----BEGIN (?:[A-Z0-9]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]{1,8000}-----END (?:[A-Z0-9]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s{0,4}[A-Za-z0-9+/=]{16,100}){1,200})?"  # cut off before its end
)
_KEY = re.compile(KEY_SHAPES)
# Most texts have none of these, and are done with at once.
_MARKS = (
    *(
        "sk-",
        "sk_",
        "rk-",
        "rk_",
        "pk-",
        "pk_",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "glptt-",
    ),
    *("gldt-", "glrt-", "glcbt-", "glft-", "glimt-", "glagent-", "gloas-", "glsoat-", "hf_", "gsk_", "npm_", "r8_"),
    *("ntn_", "sbp_", "fw_", "nfp_", "bkua_", "vcp_", "figd_", "lin_", "rubygems_", "_v1_", "dckr_", "shp", "glsa_"),
    *(
        "glc_",
        "sntry",
        "whsec_",
        "tfp_",
        "secret_",
        "pscale_",
        "AT_",
        "xai-",
        "pplx-",
        "nvapi-",
        "sess-",
        "pul-",
        "HRKU-",
    ),
    *("CFPAT-", "NRAK-", "NRJS-", "GOCSPX-", "hooks-", "pypi-", "PMAK-", "key-", "-us", "AKIA", "ASIA", "ABIA", "ACCA"),
    *(
        "AIza",
        "ya29.",
        "1//0",
        "xox",
        "xapp-",
        "SG.",
        "hvs.",
        "hvb.",
        "hvr.",
        ".atlasv1.",
        "dp.",
        "dt0",
        "SK",
        "AC",
        "dapi",
    ),
    *("sq0", "EAA", "AT", "pat", "Q~", "AGE-", ":AA", "eyJ", "PRIVATE KEY"),
)

_WORD = (
    r"passw(?:or)?d|passphrase|pwd|secret|(?:api|access|account|shared|master|signing|encryption)[-_ ]?key"
    r"|auth[-_ ]?token|access[-_ ]?token|refresh[-_ ]?token|bearer"
)
_ASSIGNED = re.compile(
    rf"(?:(?:{_WORD})[\"']?(?:\s{{0,3}}[:=]\s{{0,3}}|\s)|(?:token|[?&]sig|credential)[\"']?\s{{0,3}}[:=]\s{{0,3}})"
    r"[\"']?(?P<value>[^\s\"'`,;<>{}()\[\]]{6,300})",
    re.IGNORECASE,
)
_ASSIGNED_WORDS = ("passw", "passphrase", "pwd", "secret", "key", "token", "sig=", "bearer", "credential")
_BASIC = re.compile(r"\b[Bb]asic (?P<value>(?=[\w+/]*[0-9A-Z])[A-Za-z0-9+/]{12,400}={0,2})(?![\w+/])")
_CREDENTIALS = re.compile(r"://[^/\s:@]{0,64}:(?P<value>[^/\s@]{3,200})@")
_WEBHOOKS = re.compile(  # who knows the address may post
    r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]{1,60}\.webhook\.office\.com/webhookb2)/(?P<value>[\w/@-]{20,300})"
)
_PLACEHOLDER = re.compile(
    r"your|my[-_]|example|change|\Axxx|x{4}|\*\*|\.\.\.|\A\$|\$[{(]|%[^0-9a-f]|%\Z|\benv\b|os\.|\Asha\d|https?:"
    r"|\A[\w-]{0,12}(?:pass|passwd|word|pwd|secret|token|seed|key)\Z",
    re.IGNORECASE,
)


def find_keys(text: str) -> Iterator[tuple[int, int]]:
    """Tokens by their shape; passwords by the word before them, unless they look like a placeholder or code."""
    if any(mark in text for mark in _MARKS):
        yield from (match.span() for match in _KEY.finditer(text))
    if "://" in text:
        yield from _values(match for match in _CREDENTIALS.finditer(text))
        yield from (match.span("value") for match in _WEBHOOKS.finditer(text))
    lower = text.lower()
    if "basic " in lower:
        yield from (match.span("value") for match in _BASIC.finditer(text) if _mixed(match["value"]))
    if any(word in lower for word in _ASSIGNED_WORDS):
        yield from _values(match for match in _ASSIGNED.finditer(text) if _mixed(match["value"].rstrip(".")))


def _values(matches: Iterator[re.Match[str]]) -> Iterator[tuple[int, int]]:
    for match in matches:
        value = match["value"].rstrip(".")
        if not _PLACEHOLDER.search(value):
            yield match.start("value"), match.start("value") + len(value)


def _mixed(value: str) -> bool:
    """Letters and digits, or marks that no word has: what a password has, and a word in prose has not."""
    letters, digits = any(map(str.isalpha, value)), any(map(str.isdigit, value))
    return (letters and digits) or any(mark in value for mark in "!@#^&+*?~")
