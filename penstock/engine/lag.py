"""What happens when input comes faster than it is read: a budget of delay or of bytes, and a policy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from penstock.errors import UnknownName, UsageError

LAG_POLICIES = ("wait", "coarsen", "drop-oldest", "refuse")


@dataclass(frozen=True)
class Lag:
    """How far a session may be behind its input, and what then.

    `wait`: nothing is lost, the writer is told to wait.  `refuse`: further input is refused until there is room.
    `drop-oldest`: what has waited longest is left out.  `coarsen`: every second waiting piece is left out, again and
    again up to one in eight, so that the whole time stays covered at less detail.
    """

    budget_ms: float = inf  # age of the oldest input that is not read
    budget_bytes: int | None = None  # input that is not read
    policy: str = "wait"

    def __post_init__(self) -> None:
        if self.policy not in LAG_POLICIES:
            raise UnknownName("lag policy", self.policy, LAG_POLICIES)
        if self.budget_ms <= 0 or (self.budget_bytes is not None and self.budget_bytes <= 0):
            raise UsageError("a lag budget is a positive number of milliseconds or bytes: leave it out for none.")

    def is_over(self, lag_ms: float, waiting: int) -> bool:
        """Whether a session this late, with so many bytes waiting, is over its budget."""
        return lag_ms > self.budget_ms or (self.budget_bytes is not None and waiting > self.budget_bytes)
