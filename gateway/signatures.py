"""Who sent a webhook: the proof that each kind of source gives, and what a repetition of it shares."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from standardwebhooks import Webhook

from touchstone.errors import BadInput
from touchstone.webhooks import Source, Webhooks

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)  # no full stop: it parts what is signed, which could then be read twice
_TIME = re.compile(r"[0-9]{10}")
_LEAST_SECRET = 16
_MOST_SIGNATURES = 8  # in one header, while a sender rotates


@dataclass(frozen=True)
class Verified:
    """`delivery` is for people; `key` is the same for every repetition, and not the sender's where that is unsigned."""

    delivery: str
    key: str


class Refused(Exception):
    """A webhook that is not taken; `reason` is one of few words, for metrics, and `error` is for the sender.

    `closes`: what is left of the body is not waited for.
    """

    def __init__(self, status: int, reason: str, error: str, *, closes: bool = False) -> None:
        super().__init__(error)
        self.status, self.reason, self.error, self.closes = status, reason, error, closes


def read_secrets(webhooks: Webhooks, environment: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The secrets of each source, newest first. Raises BadInput that names variable and source, never a secret."""
    return {name: _secrets(name, source, environment) for name, source in webhooks.sources.items()}


def verify(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    """Raises Refused: 401 without saying what was wrong, 400 for a proved time that is too far from `now` (Unix s).

    `headers` have lower-case names. The time is looked at only once the signature is proved, so that nobody learns
    from the answer who has no secret.
    """
    return _KINDS[source.kind](source, secrets, headers, body, now)


def _secrets(name: str, source: Source, environment: Mapping[str, str]) -> tuple[str, ...]:
    found = tuple(environment.get(source.secret_env, "").split())
    where = f"{source.secret_env}, the secret of the webhook source {name!r}"
    if not found:
        raise BadInput(f"{where}: is not set; set it in the environment or in .env, or remove the source")
    for place, secret in enumerate(found, start=1):
        which = where if len(found) == 1 else f"{where}, number {place} of {len(found)}"
        if len(secret.removeprefix("whsec_")) < _LEAST_SECRET:
            raise BadInput(f"{which}: is shorter than {_LEAST_SECRET} characters; `openssl rand -hex 32` makes one")
        if source.kind == "standard" and not _is_base64(secret.removeprefix("whsec_")):
            raise BadInput(
                f"{which}: is not base64, as Standard Webhooks wants after whsec_; take it as the sender shows it"
            )
    return found


def _is_base64(secret: str) -> bool:
    try:
        return bool(base64.b64decode(secret + "=" * (-len(secret) % 4), validate=True))
    except (binascii.Error, ValueError):
        return False


def _standard(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    """The library signs and we compare: its `verify` has one fixed tolerance, and breaks in many ways on bad input."""
    delivery, time, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    _check_form(delivery, time)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise _unproved() from None
    at = datetime.fromtimestamp(int(time), UTC)
    _check(given.split(" "), (Webhook(secret).sign(delivery, at, text) for secret in secrets))
    _check_time(source, time, now)
    return Verified(delivery, delivery)


def _mlflow(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    delivery, time, given = (headers.get(f"x-mlflow-{name}", "") for name in ("delivery-id", "timestamp", "signature"))
    _check_form(delivery, time)
    signed = f"{delivery}.{time}.".encode() + body
    _check(given.split(" "), (f"v1,{_base64(_digest(secret, signed))}" for secret in secrets))
    _check_time(source, time, now)
    return Verified(delivery, delivery)


def _github(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    """GitHub signs neither time nor id: who saw one delivery could send it again under any id, but not another body."""
    _check(
        [headers.get("x-hub-signature-256", "").lower()],
        (f"sha256={_digest(secret, body).hex()}" for secret in secrets),
    )
    key, delivery = _body_key(body), headers.get("x-github-delivery", "")
    return Verified(delivery if _ID.fullmatch(delivery) else key[:32], key)


def _hmac(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    time = headers.get(source.timestamp_header, "") if source.timestamp_header else ""
    if source.timestamp_header and not _TIME.fullmatch(time):
        raise _unproved()
    signed = f"{time}.".encode() + body if time else body
    given = headers.get(source.signature_header, "")
    if source.encoding == "hex":  # in either case; the prefix as it is
        start = len(source.signature_prefix)
        given = given[:start] + given[start:].lower()
    written = bytes.hex if source.encoding == "hex" else _base64
    _check([given], (source.signature_prefix + written(_digest(secret, signed)) for secret in secrets))
    if time:
        _check_time(source, time, now)
    return Verified(_body_key(body)[:32], _body_key(body))


def _token(source: Source, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> Verified:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    _check([given if scheme.lower() == "bearer" else ""], secrets)
    return Verified(_body_key(body)[:32], _body_key(body))


_KINDS: dict[str, Callable[[Source, Sequence[str], Mapping[str, str], bytes, float], Verified]] = {
    "standard": _standard,
    "mlflow": _mlflow,
    "github": _github,
    "hmac": _hmac,
    "token": _token,
}


def _check_form(delivery: str, time: str) -> None:
    if not _ID.fullmatch(delivery) or not _TIME.fullmatch(time):
        raise _unproved()


def _check(given: Sequence[str], expected: Iterable[str]) -> None:
    """In the same time whichever secret fits, or none."""
    claims = [claim.encode(errors="replace") for claim in given[:_MOST_SIGNATURES]]
    proofs = [proof.encode() for proof in expected]
    if not any([hmac.compare_digest(proof, claim) for proof in proofs for claim in claims]):  # noqa: C419  (no early end)
        raise _unproved()


def _check_time(source: Source, time: str, now: float) -> None:
    ahead = int(time) - int(now)
    if abs(ahead) > source.tolerance_s:
        side = "ahead of" if ahead > 0 else "behind"
        raise Refused(
            400,
            "clock",
            f"the signed time is {abs(ahead)} s {side} this gateway's clock, and at most {source.tolerance_s} s are "
            "taken: set both clocks, and send what is old anew",
        )


def _unproved() -> Refused:
    return Refused(401, "signature", "the webhook is not signed, or not by a secret of this source")


def _digest(secret: str, signed: bytes) -> bytes:
    return hmac.digest(secret.encode(), signed, hashlib.sha256)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _body_key(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
