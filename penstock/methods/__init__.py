"""Published methods by name.  One file per method, discovered by file name: adding one edits nothing here."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from penstock.errors import UnknownName, UsageError
from penstock.methods.base import Method


@cache
def registry() -> dict[str, type[Method]]:
    """All methods: name -> class."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "base":
            continue
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            own = isinstance(value, type) and issubclass(value, Method) and value.__module__ == loaded.__name__
            if own and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def parse(text: str | Method) -> Method:
    """Read `NAME` or `NAME:key=value,key=value`; raises UnknownName with suggestions."""
    if isinstance(text, Method):
        return text
    name, _, rest = text.partition(":")
    known = registry()
    if name not in known:
        raise UnknownName("memory", name, known)
    options: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"cannot read the memory option {pair!r}: write it as {name}:key=value.")
        if key in options:
            raise UsageError(f"the memory option {key} is given twice: keep one of {options[key]} and {value}.")
        options[key] = value
    return known[name].with_options(options)


__all__ = ["Method", "parse", "registry"]
