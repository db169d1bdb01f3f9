"""Secrets of seventy formats that open nothing, put together at run time, so that no scanner trips over this file."""

from __future__ import annotations

import base64
import string
from random import Random

_DIGITS, _UPPER, _LOWER = string.digits, string.ascii_uppercase, string.ascii_lowercase
_ALNUM = _UPPER + _LOWER + _DIGITS
_HEX = _DIGITS + "abcdef"
_URL64 = _ALNUM + "-_"

# Name: what stands around the secret (%s), the secret's parts, in order: fixed text or (letters, how many).
_Part = str | tuple[str, int]
_FORMATS: dict[str, tuple[str, tuple[_Part, ...]]] = {
    "aws access key": ("%s", ("AKI", "A", (_UPPER + "234567", 16))),
    "aws temporary key": ("%s", ("ASI", "A", (_UPPER + "234567", 16))),
    "aws secret key": ("aws_secret_access_key = %s", ((_ALNUM + "/+", 40),)),
    "google api key": ("%s", ("AI", "za", (_URL64, 35))),
    "google oauth": ("%s", ("ya", "29.", (_URL64, 60))),
    "google client secret": ("%s", ("GOC", "SPX-", (_URL64, 28))),
    "google refresh token": ("%s", ("1/", "/0", (_URL64, 60))),
    "azure storage": ("DefaultEndpointsProtocol=https;AccountName=app;AccountKey=%s", ((_ALNUM, 86), "==")),
    "azure client secret": ("%s", ((_ALNUM, 3), "8", "Q", "~", (_URL64, 34))),
    "azure sas": ("https://app.blob.core.windows.net/c?sv=2022-11-02&sig=%s", ((_ALNUM, 40), "%2B", "%3D")),
    "azure service bus": ("Endpoint=sb://a.servicebus.windows.net/;SharedAccessKey=%s", ((_ALNUM, 42), "4", "=")),
    "github classic": ("%s", ("gh", "p_", (_ALNUM, 36))),
    "github oauth": ("%s", ("gh", "o_", (_ALNUM, 36))),
    "github app": ("%s", ("gh", "s_", (_ALNUM, 36))),
    "github refresh": ("%s", ("gh", "r_", (_ALNUM, 76))),
    "github fine-grained": ("%s", ("github", "_pat_", (_ALNUM, 22), "_", (_ALNUM, 59))),
    "gitlab": ("%s", ("gl", "pat-", (_URL64, 20))),
    "gitlab runner": ("%s", ("gl", "rt-", (_URL64, 20))),
    "gitlab trigger": ("%s", ("gl", "ptt-", (_HEX, 40))),
    "slack bot": ("%s", ("xo", "xb-", (_DIGITS, 12), "-", (_DIGITS, 12), "-", (_ALNUM, 24))),
    "slack user": ("%s", ("xo", "xp-", (_DIGITS, 12), "-", (_DIGITS, 12), "-", (_HEX, 32))),
    "slack app": ("%s", ("xa", "pp-1-A", (_UPPER, 10), "-", (_DIGITS, 13), "-", (_HEX, 64))),
    "slack webhook": ("https://hooks.slack.com/services/%s", ("T", (_UPPER, 8), "/B", (_UPPER, 8), "/", (_ALNUM, 24))),
    "discord webhook": ("https://discord.com/api/webhooks/%s", ((_DIGITS, 18), "/", (_URL64, 68))),
    "stripe secret": ("%s", ("sk", "_live_", (_ALNUM, 24), "7")),
    "stripe restricted": ("%s", ("rk", "_live_", (_ALNUM, 24), "7")),
    "stripe webhook": ("%s", ("wh", "sec_", (_ALNUM, 31), "7")),
    "openai": ("%s", ("s", "k-", (_ALNUM, 47), "7")),
    "openai project": ("%s", ("s", "k-proj-", (_URL64, 120), "7")),
    "anthropic": ("%s", ("s", "k-ant-api03-", (_URL64, 90), "7AA")),
    "openrouter": ("%s", ("s", "k-or-v1-", (_HEX, 64))),
    "hugging face": ("%s", ("h", "f_", (_ALNUM, 33), "7")),
    "groq": ("%s", ("gs", "k_", (_ALNUM, 51), "7")),
    "xai": ("%s", ("xa", "i-", (_ALNUM, 79), "7")),
    "perplexity": ("%s", ("pp", "lx-", (_HEX, 47), "7")),
    "nvidia": ("%s", ("nv", "api-", (_URL64, 63), "7")),
    "replicate": ("%s", ("r", "8_", (_ALNUM, 36), "7")),
    "npm": ("%s", ("np", "m_", (_ALNUM, 35), "7")),
    "npmrc": ("//registry.example.org/:_authToken=%s", ((_HEX, 36),)),
    "pypi": ("%s", ("py", "pi-", "AgEIcHlwaS5vcmc", (_URL64, 120))),
    "rubygems": ("%s", ("ruby", "gems_", (_HEX, 47), "7")),
    "docker hub": ("%s", ("dck", "r_pat_", (_URL64, 26), "7")),
    "json web token": ("%s", ("ey", "JhbGciOiJIUzI1NiJ9", ".ey", "J", (_URL64, 60), ".", (_URL64, 43))),
    "rsa key": ("%s", ("-----BEGIN RSA ", "PRIVATE KEY-----\n", (_ALNUM, 64), "\n-----END RSA ", "PRIVATE KEY-----")),
    "ssh key": (
        "%s",
        ("-----BEGIN OPENSSH ", "PRIVATE KEY-----\n", (_ALNUM, 64), "\n-----END OPENSSH ", "PRIVATE KEY-----"),
    ),
    "basic auth in a url": ("https://deploy:%s@git.example.org/app.git", ((_ALNUM, 14), "7")),
    "postgres": ("postgresql://app:%s@db.example.org:5432/app", ((_ALNUM, 14), "7")),
    "mongodb": ("mongodb+srv://app:%s@cluster0.example.net/db", ((_ALNUM, 14), "7")),
    "redis": ("redis://:%s@cache.example.org:6379/0", ((_ALNUM, 14), "7")),
    "amqp": ("amqps://app:%s@queue.example.org/vhost", ((_ALNUM, 14), "7")),
    "jdbc": ("jdbc:mysql://db.example.org/app?user=app&password=%s", ((_ALNUM, 14), "7")),
    "sql server": ("Server=db;Database=app;User Id=sa;Pwd=%s;", ((_ALNUM, 12), "7!")),
    "environment": ("export DB_PASSWORD='%s'", ((_ALNUM, 12), "7#")),
    "bearer header": ("Authorization: Bearer %s", ((_ALNUM, 40), "7")),
    "basic header": ("Authorization: Basic %s", ((_ALNUM, 27), "7=")),
    "api key header": ("X-Api-Key: %s", ((_HEX, 31), "7a")),
    "sendgrid": ("%s", ("S", "G.", (_URL64, 22), ".", (_URL64, 43))),
    "twilio": ("%s", ("S", "K", (_HEX, 32))),
    "mailgun": ("%s", ("ke", "y-", (_HEX, 32))),
    "mailchimp": ("%s", ((_HEX, 32), "-u", "s12")),
    "digitalocean": ("%s", ("do", "p_v1_", (_HEX, 63), "7")),
    "shopify": ("%s", ("shp", "at_", (_HEX, 31), "7")),
    "databricks": ("%s", ("da", "pi", (_HEX, 32))),
    "vault": ("%s", ("hv", "s.", (_URL64, 90))),
    "terraform cloud": ("%s", ((_ALNUM, 14), ".atlas", "v1.", (_URL64, 65))),
    "grafana": ("%s", ("gl", "sa_", (_ALNUM, 31), "7_", (_HEX, 8))),
    "new relic": ("%s", ("NR", "AK-", (_UPPER, 26), "7")),
    "telegram": ("%s", ((_DIGITS, 10), ":A", "A", (_URL64, 33))),
    "figma": ("%s", ("fi", "gd_", (_URL64, 39), "7")),
    "linear": ("%s", ("lin", "_api_", (_ALNUM, 39), "7")),
    "square": ("%s", ("sq", "0atp-", (_URL64, 22))),
    "facebook": ("%s", ("EA", "A", (_ALNUM, 120), "7")),
    "atlassian": ("%s", ("AT", "ATT3", (_URL64, 180), "=7")),
    "airtable": ("%s", ("pa", "t", (_ALNUM, 14), ".", (_HEX, 64))),
    "postman": ("%s", ("PM", "AK-", (_HEX, 24), "-", (_HEX, 34))),
    "age": ("%s", ("AGE-SECRET", "-KEY-1", (_UPPER + _DIGITS, 58))),
    "sentry": ("%s", ("sn", "trys_", (_ALNUM, 80), "7")),
}


def planted(seed: str) -> dict[str, tuple[str, str]]:
    """By format: (the secret as it stands in a text, the part of it that must be found nowhere)."""
    random = Random(seed)
    made = {}
    for name, (around, parts) in _FORMATS.items():
        secret = "".join(part if isinstance(part, str) else _letters(random, *part) for part in parts)
        core = max(secret.split("\n"), key=len) if "PRIVATE" not in secret else secret.split("\n")[1]
        made[name] = (around % secret, core)
    return made


def _letters(random: Random, alphabet: str, count: int) -> str:
    return "".join(random.choice(alphabet) for _ in range(count))


def forms(core: str) -> tuple[bytes, ...]:
    """The secret as a file may hold it: plain, as JSON writes it, in UTF-16, in base64."""
    plain = core.encode()
    return plain, core.replace("/", "\\/").encode(), core.encode("utf-16-le"), base64.b64encode(plain).rstrip(b"=")[:-2]
