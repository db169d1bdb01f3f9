"""What Touchstone raises on purpose.

TouchstoneError
├── BadInput            the user's file, field or flag is wrong            exit 2
├── Unmeasurable        nothing could be decided                           exit 3
├── LedgerConflict      somebody else appended first
└── CaseFailure         one case has no score; `kind` is the typed failure
    ├── VendorUnavailable   vendor_error
    ├── VendorTimeout       timeout
    ├── AnswerRefused       refused
    ├── InvalidAnswer       invalid
    ├── JudgeBroken         judge_error
    └── OverBudget          budget                       exit 4

No class has an ``__init__``, so all survive pickling between processes.
"""

from __future__ import annotations

from typing import ClassVar

from touchstone.results import FailureKind


class TouchstoneError(Exception):
    """The widest thing we ever catch."""

    exit_code: ClassVar[int] = 3  # never 1, which says that the product got worse


class BadInput(TouchstoneError):
    """The message names file, line or field, and the fix."""

    exit_code = 2


class Unmeasurable(TouchstoneError):
    """Nothing could be decided, and the message says why."""

    exit_code = 3


class LedgerConflict(TouchstoneError):
    """The sequence number was taken: somebody else appended first."""


class CaseFailure(TouchstoneError):
    """One case (or one of its scores) could not be measured."""

    kind: ClassVar[FailureKind] = FailureKind.VENDOR_ERROR


class VendorUnavailable(CaseFailure):
    """The vendor could not be reached, or answered with an error, within the retries."""

    kind = FailureKind.VENDOR_ERROR


class VendorTimeout(CaseFailure):
    """The vendor did not finish within the deadline."""

    kind = FailureKind.TIMEOUT


class AnswerRefused(CaseFailure):
    """The vendor's content filter withheld the answer."""

    kind = FailureKind.REFUSED


class InvalidAnswer(CaseFailure):
    """The vendor answered, but not what the contract asks for (model, finish reason, text, usage)."""

    kind = FailureKind.INVALID


class JudgeBroken(CaseFailure):
    """The judge could not be parsed, or left the range of its scale."""

    kind = FailureKind.JUDGE_ERROR


class OverBudget(CaseFailure):
    """The call was not made: it could pass the spend cap."""

    exit_code = 4
    kind = FailureKind.BUDGET
