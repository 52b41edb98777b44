"""How the time of one device is divided between letting in and speaking."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import UsageError


@dataclass(frozen=True)
class Share:
    """While both have work, `perceive` of the time is for what comes in and the rest for the answer.

    Its state is (seconds spent perceiving, seconds spent speaking) since the answer began.  Where no time passes (a
    simulated clock) everything that waits is let in before the next token.  From `full` of the inbox on, input goes
    first, whatever was spent.
    """

    perceive: float = 0.5
    full: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.perceive <= 1.0 or not 0.0 < self.full <= 1.0:
            raise UsageError(
                "shares lie between 0 and 1: perceive=0 lets nothing in while it speaks, 1 all of it first."
            )

    def start(self) -> tuple[float, float]:
        return 0.0, 0.0

    def perceives(self, spent: tuple[float, float], filled: float) -> bool:
        """Whether to let something in before the next token; `filled`: how full the inbox is, 0 to 1."""
        if self.perceive == 0.0:
            return False
        perceiving, speaking = spent
        return filled >= self.full or perceiving * (1.0 - self.perceive) <= speaking * self.perceive
