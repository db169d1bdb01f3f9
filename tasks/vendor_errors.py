"""What a failed attempt means: which failure it is, whether another attempt may help, and whether it was billed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.vendor_library import litellm_module
from touchstone.errors import AnswerRefused, CaseFailure, InvalidAnswer, VendorTimeout, VendorUnavailable
from touchstone.privacy import clean

LONGEST_WAIT_S = 30.0

_UNREADABLE = re.compile(
    r"JSONDecodeError|Unable to parse|Expecting value|Unterminated|line \d+ column \d+ \(char \d+\)"
)
_NEVER_ARRIVED = ("Cannot connect to host", "Connection refused", "Connect call failed")


class RequestRefused(VendorUnavailable):
    """The vendor will refuse this request each time: its model, its key or the request itself is wrong."""


@dataclass(frozen=True)
class FailedAttempt:
    """`wait_s` before the next attempt; None: another one is no use."""

    failure: CaseFailure
    wait_s: float | None
    alive: bool  # a vendor that answers, however badly, is there: only silence and 5xx count against it
    billed: bool  # it may have been


def read_failure(error: Exception, attempt: int, deadline_s: float, secret: str) -> FailedAttempt:
    """What `error`, raised by LiteLLM or by our reading of its answer, means."""
    failure, wait_s = _translated(error, attempt, deadline_s, secret)
    answered = wait_s is None or isinstance(error, litellm_module().RateLimitError)
    alive = answered or not isinstance(failure, VendorUnavailable | VendorTimeout)
    return FailedAttempt(failure, wait_s, alive, not _is_unbilled(error))


def _translated(error: Exception, attempt: int, deadline_s: float, secret: str) -> tuple[CaseFailure, float | None]:
    litellm = litellm_module()
    backoff = min(LONGEST_WAIT_S, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
    if isinstance(error, InvalidAnswer):
        return error, backoff
    if isinstance(error, TimeoutError | litellm.Timeout):
        return VendorTimeout(f"no complete answer within {deadline_s:g} s (attempt {attempt})"), backoff
    status = getattr(error, "status_code", None)
    reason = clean(str(error), (secret,))[:500]
    if isinstance(error, litellm.ContentPolicyViolationError):
        return AnswerRefused(reason), None
    if isinstance(error, litellm.NotFoundError):
        return RequestRefused(f"the model is gone or was never there (404): {reason}"), None
    if _is_unreadable(error):
        return InvalidAnswer(f"the answer is not the JSON it should be: {reason}"), backoff
    if isinstance(error, litellm.RateLimitError):
        return VendorUnavailable(f"rate limit (429): {reason}"), _retry_after(error) or backoff
    if status is not None and 400 <= int(status) < 500 and int(status) not in {408, 409, 425}:
        return RequestRefused(f"the vendor refused the request ({status}): {reason}"), None
    return VendorUnavailable(f"{type(error).__name__}: {reason}"), _retry_after(error) or backoff


def _is_unbilled(error: Exception) -> bool:
    """The request never arrived, or was turned away: nobody bills that."""
    status = getattr(error, "status_code", None)
    turned_away = isinstance(status, int) and 400 <= status < 500 and status != 408 and not _is_unreadable(error)
    return turned_away or any(sign in str(cause) for cause in _causes(error) for sign in _NEVER_ARRIVED)


def _is_unreadable(error: Exception) -> bool:
    return _UNREADABLE.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from or during: LiteLLM's own text often leaves the reason out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _retry_after(error: Exception) -> float | None:
    """Seconds that the vendor asks us to wait; LiteLLM keeps the headers in one of three places."""
    response = getattr(error, "response", None)
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(error, "headers", None),
        getattr(response, "headers", None),
    ):
        try:
            return float(headers["retry-after"]) if headers else None
        except (KeyError, ValueError, TypeError):
            continue
    return None
