"""One tree of errors; callers catch a branch.

Every message is one sentence that names what is wrong and the fix.

    PenstockError                exit code 1
    ├── UsageError               exit code 2: the caller asked for something that cannot be
    │   ├── UnknownName          a method, option, world or path that does not exist (with suggestions)
    │   ├── BudgetError          a budget that is malformed or too small for its memory
    │   ├── CompositionError     parts that do not fit together
    │   ├── UnsupportedModel     a model whose attention cannot be served correctly
    │   ├── InputError           an input that is missing, empty or not text
    │   └── MissingExtra         an optional dependency is not installed
    ├── MemoryStateError         an operation the memory cannot do exactly now
    │   ├── NotRewindable        truncate or rollback past what was evicted
    │   └── ContextFull          a growing memory met the end of the model's positions
    ├── SnapshotError            a snapshot that is damaged or belongs to something else
    ├── OutputError              a file that cannot be written (full disk, no permission)
    └── Overloaded               a declared limit is reached: the same call may succeed later
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PenstockError(Exception):
    """Root of all errors of this package."""

    exit_code = 1


class UsageError(PenstockError):
    """The caller's mistake."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not registered; the message lists the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(self.known) or 'none'}."
        super().__init__(f"unknown {what} {name!r}: {hint}")


class BudgetError(UsageError):
    """A budget that is malformed or too small."""


class CompositionError(UsageError):
    """Parts that cannot work together."""


class UnsupportedModel(UsageError):
    """A model that would not be served correctly."""


class InputError(UsageError):
    """An input that cannot be read as what it should be."""


class MissingExtra(UsageError):
    """An optional dependency is absent."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra that is not installed: run pip install 'penstock[{extra}]'.")


class MemoryStateError(PenstockError):
    """The memory cannot do this exactly in its present state."""


class NotRewindable(MemoryStateError):
    """What the operation needs was already evicted."""


class ContextFull(MemoryStateError):
    """A growing memory reached the end of the positions that the model has."""


class SnapshotError(PenstockError):
    """A snapshot that is damaged, truncated, or of another model or memory."""


class OutputError(PenstockError):
    """A file could not be written."""


class Overloaded(PenstockError):
    """More than a declared limit allows now; the same call may succeed later."""
