"""What calls cost: reservations under a hard cap, and what a run will cost before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from touchstone.bundle import Price
from touchstone.errors import OverBudget


def call_cost(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """USD of one call; None when the price is unknown, which is not free."""
    if price is None:
        return None
    return (input_tokens * price.input_per_million + output_tokens * price.output_per_million) / 1e6


def most_tokens(text: str) -> int:
    """An upper estimate of a text's tokens: one per three bytes, whatever the script."""
    return math.ceil(len(text.encode()) / 3) + 8


@dataclass
class Budget:
    """A hard cap on spend. The worst case is reserved before a call and settled after it.

    A call that fails keeps its reservation: the vendor may have billed it.
    """

    cap_usd: float | None = None
    spent_usd: float = 0.0
    _reserved: float = field(default=0.0, repr=False)

    def reserve(self, worst_usd: float | None) -> None:
        """Raise OverBudget when the cap could be passed."""
        if self.cap_usd is None:
            return
        if worst_usd is None:
            raise OverBudget("the price of the model is unknown, so the spend cap cannot be kept")
        if self.spent_usd + self._reserved + worst_usd > self.cap_usd:
            raise OverBudget(
                f"the next call could cost {worst_usd:.6f} USD; {self.spent_usd:.6f} USD are spent and "
                f"{self._reserved:.6f} reserved of a cap of {self.cap_usd:.6f}"
            )
        self._reserved += worst_usd

    def settle(self, worst_usd: float | None, actual_usd: float | None) -> None:
        """Replace a reservation by what the call really cost; without a known cost it is kept as spent."""
        if self.cap_usd is not None and worst_usd is not None:
            self._reserved -= worst_usd
            self.spent_usd += worst_usd if actual_usd is None else actual_usd
        elif actual_usd is not None:
            self.spent_usd += actual_usd
