"""Which input is worth encoding: frames left out, visual tokens dropped.  One file per method, found by file name."""

from __future__ import annotations

from functools import cache
from typing import Any

from penstock import registry as named
from penstock.reducers.base import FrameReducer, Moment, Reduced, Reducer, TokenReducer, Verdict, state_bytes
from penstock.reducers.chain import Chain


@cache
def registry() -> dict[str, type[Reducer]]:
    """All reducers: name -> class."""
    base: Any = Reducer
    return named.discover(__name__, __path__, base, skip=frozenset({"base", "chain"}))


def parse(text: str | Reducer) -> Reducer:
    """Read `NAME` or `NAME:key=value,...`; raises UnknownName with suggestions."""
    return text if isinstance(text, Reducer) else named.parse("reducer", text, registry())


__all__ = [
    "Chain",
    "FrameReducer",
    "Moment",
    "Reduced",
    "Reducer",
    "TokenReducer",
    "Verdict",
    "parse",
    "registry",
    "state_bytes",
]
