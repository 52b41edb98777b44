"""How a step's time is divided between reading and answering, so that latency targets are met.

One device runs both, in one pass per step, so the shares are shares of time (semi-PD, arXiv:2504.19867, and Nexus,
arXiv:2507.06608, share the processors of one device instead).  The costs of passes are learned while they run: a mean
per number of rows for answers, `fixed + per_token * n` for what reading adds.  From them follows how many tokens may be
read in a step that also lets answers go on; a step without answers reads as much as it likes.

Decisions are pure functions of the learned costs; only `observe` and `settle` change something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from penstock.errors import UsageError

_KEEP = 0.98  # weight of the past per observation
_BUFFER = 0.15  # a new split is used if it differs by more than this
_LEANEST, _STEP_DOWN, _STEP_UP = 0.3, 0.95, 1.0005  # in balance, one step in a hundred is over the target


@dataclass(frozen=True)
class Targets:
    """What readers of answers are promised, in milliseconds; inf promises nothing.

    `first` is from a question to its first piece of text, `between` from one piece to the next.  Reading is never
    starved: every `patience` steps it gets a pass of at least `least` tokens.
    """

    between: float = inf
    first: float = inf
    least: int = 4
    patience: int = 8

    def __post_init__(self) -> None:
        if min(self.between, self.first) <= 0 or min(self.least, self.patience) < 1:
            raise UsageError("latency targets are positive milliseconds: leave out what you do not promise.")


@dataclass
class Line:
    """Seconds of a pass as a line over its tokens, by least squares with forgetting."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        for name, value in {"n": 1.0, "x": x, "y": y, "xx": x * x, "xy": x * y}.items():
            setattr(self, name, getattr(self, name) * _KEEP + value)

    @property
    def coefficients(self) -> tuple[float, float]:
        """(seconds, seconds per token), neither negative."""
        if not self.n:
            return 0.0, 0.0
        spread = self.n * self.xx - self.x * self.x
        if spread <= 1e-9 * max(1.0, self.n * self.xx):  # all of one size: no line to be seen, blame the tokens
            return 0.0, self.y / self.x if self.x else 0.0
        slope = max(0.0, (self.n * self.xy - self.x * self.y) / spread)
        fixed = (self.y - slope * self.x) / self.n
        return (fixed, slope) if fixed >= 0 else (0.0, self.xy / self.xx)


@dataclass
class Costs:
    """What passes of this engine take, as seen so far."""

    reading: Line = field(default_factory=Line)
    answering: dict[int, float] = field(default_factory=dict)  # rows -> seconds

    def add(self, read: int, answers: int, seconds: float) -> None:
        """A pass over so many tokens and answers took `seconds`; what answers alone do not take is reading's."""
        if read:
            self.reading.add(read, max(0.0, seconds - self.answers(answers)) if answers else seconds)
        elif answers:
            old = self.answering.get(answers, seconds)
            self.answering[answers] = 0.9 * old + 0.1 * seconds

    def answers(self, rows: int) -> float:
        """Seconds of a pass over `rows` answers: as seen, or of the nearest number seen."""
        if not rows:
            return 0.0
        if rows in self.answering or not self.answering:
            return self.answering.get(rows, 0.0)
        return self.answering[min(self.answering, key=lambda n: (abs(n - rows), -n))]


def affordable(costs: Costs, answers: int, seconds: float, most: int) -> int:
    """The most tokens, up to `most`, that can be read in a step of `seconds` beside so many answers."""
    fixed, per_token = costs.reading.coefficients
    room = seconds - costs.answers(answers) - fixed
    if room <= 0:
        return 0
    return most if per_token <= 0 else min(most, int(room / per_token))


class Controller:
    """Holds the split of an engine against its targets."""

    def __init__(self, targets: Targets) -> None:
        self.targets, self.costs = targets, Costs()
        self.lean = 1.0  # share of the target that is used: what passes do not explain is taken from it
        self._split: int | None = None
        self._starved = 0  # steps since reading last had a part

    def tokens(self, answers: int, waiting: int, most: int, late: float = 0.0) -> int:
        """How many of `waiting` tokens a step may read beside `answers`.

        `late`: seconds that the oldest question has waited for its first token; when its target is in danger and
        that of answers under way is not, reading gets the whole of their time.
        """
        if not answers or not waiting or self.targets.between == inf:
            self._starved = 0
            return most
        in_danger = late * 1e3 > self.targets.first / 2
        seconds = self.targets.between / 1e3 * (1.0 if in_danger else self.lean)
        wanted = affordable(self.costs, answers, seconds, most)
        if self._split is None or abs(wanted - self._split) > _BUFFER * self._split:
            self._split = wanted
        if self._split >= self.targets.least:
            self._starved = 0
            return self._split
        self._starved += 1
        if self._starved < self.targets.patience:
            return 0
        self._starved = 0
        return self.targets.least

    def observe(self, read: int, answers: int, seconds: float) -> None:
        """A pass has ended."""
        self.costs.add(read, answers, seconds)

    def settle(self, read: int, answers: int, seconds: float) -> None:
        """A step with both has ended after so many seconds in all: lean back when it was too long."""
        if read and answers and self.targets.between < inf:
            over = seconds * 1e3 > self.targets.between
            self.lean = min(1.0, max(_LEANEST, self.lean * (_STEP_DOWN if over else _STEP_UP)))
