"""What a camera shows now, when reducers have left some of it out: a question brings it back whole.

A reducer leaves out what looks as before, and to go on watching that is enough.  A question is put behind what is in
the stream, though, and then the newest frame may stand far back, in front of other answers, or lack places.
"""

from __future__ import annotations

from penstock.watch.pipeline import Seen


class InView:
    """The unit of frames that was looked at last, and whether the stream lacks any of it."""

    def __init__(self) -> None:
        self._newest: Seen | None = None
        self._lacks = False
        self.missing = 0  # tokens of it that have not been read

    def see(self, seen: Seen) -> None:
        """A unit was read, as far as its reducers let it."""
        self.missing = len(seen.visual.tokens) - len(seen.reduced.index)
        self._newest, self._lacks = seen, self.missing > 0

    def skip(self) -> None:
        """A frame was left out before it was encoded: the unit before it stands for what is in view."""
        self._lacks = self._newest is not None

    @property
    def lacking(self) -> Seen | None:
        """The unit that has to be read again, whole."""
        return self._newest if self._lacks else None

    def complete(self) -> None:
        """It was read again."""
        self._lacks, self.missing = False, 0
