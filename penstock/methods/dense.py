"""dense: keep every key and value.  The attention that the model was trained with (arXiv:1706.03762).

Differs from the paper: nothing; the store doubles when it is full instead of being concatenated at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penstock.memory import Cascade, Everything
from penstock.methods.base import LAWS, Method


@dataclass(frozen=True)
class Dense(Method):
    """Every entry, at its stream position.  Memory and cost grow with the stream; the reference for all others."""

    name: ClassVar[str] = "dense"
    title: ClassVar[str] = "Full attention over the whole stream"
    source: ClassVar[str] = "arXiv:1706.03762"
    differs: ClassVar[str] = "the store doubles when full instead of being concatenated at each step"
    slots: ClassVar[tuple[str, ...]] = ("segments",)
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"bounded", "steady"}
    waived: ClassVar[dict[str, str]] = {"steady": "each step reads everything seen so far"}

    def cascade(self, budget: int | None) -> Cascade:
        return Cascade((Everything(),))
