"""What calls cost: reservations under a hard cap, and what a run will cost before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from touchstone.bundle import Price
from touchstone.errors import OverBudget


def call_cost(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """USD of one call; None when the price is unknown, which is not free."""
    if price is None:
        return None
    return (input_tokens * price.input_per_million + output_tokens * price.output_per_million) / 1e6


def most_tokens(text: str) -> int:
    """A bound on a text's tokens, whatever the script and the vocabulary: one per UTF-8 byte, and a message's frame."""
    return len(text.encode()) + 8


@dataclass
class Budget:
    """A hard cap on spend. The worst case is reserved before each attempt and settled after it.

    An attempt that failed after it was sent is settled at its worst: the vendor may have billed it.
    """

    cap_usd: float | None = None
    spent_usd: float = 0.0
    _reserved: float = field(default=0.0, repr=False)

    def reserve(self, worst_usd: float | None) -> bool:
        """Whether the worst case fits now; False: it will, or will not, once what is in flight is settled.

        Raises OverBudget when it cannot fit whatever the calls in flight cost.
        """
        if self.cap_usd is None:
            return True
        if worst_usd is None:
            raise OverBudget("the price of the model is unknown, so the spend cap cannot be kept")
        if self.spent_usd + worst_usd > self.cap_usd:
            raise OverBudget(
                f"the next call could cost {worst_usd:.6f} USD and {self.spent_usd:.6f} are spent of a cap of "
                f"{self.cap_usd:.6f}"
            )
        if self.spent_usd + self._reserved + worst_usd > self.cap_usd:
            return False
        self._reserved += worst_usd
        return True

    def settle(self, worst_usd: float | None, actual_usd: float | None) -> None:
        """Replace a reservation by what the call really cost; without a known cost its worst case is spent."""
        if self.cap_usd is not None and worst_usd is not None:
            self._reserved -= worst_usd
        self.spent_usd += (actual_usd if actual_usd is not None else worst_usd) or 0.0
