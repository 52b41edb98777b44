"""When to speak.  One file per rule, found by file name; monitors, which stop an answer, are in monitor.py."""

from __future__ import annotations

from functools import cache
from typing import Any

from penstock import registry as named
from penstock.triggers.base import Draft, Sign, Signs, Trigger
from penstock.triggers.monitor import Debounce, Monitor, Objections


@cache
def registry() -> dict[str, type[Trigger]]:
    """All triggers: name -> class."""
    base: Any = Trigger
    return named.discover(__name__, __path__, base, skip=frozenset({"base", "monitor", "policies"}))


def parse(text: str | Trigger) -> Trigger:
    """Read `NAME` or `NAME:key=value,...`; raises UnknownName with suggestions."""
    return text if isinstance(text, Trigger) else named.parse("trigger", text, registry())


__all__ = ["Debounce", "Draft", "Monitor", "Objections", "Sign", "Signs", "Trigger", "parse", "registry"]
