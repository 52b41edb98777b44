"""Values with a name, a source and options, one file each, discovered by file name: reducers and triggers are such.

parse("reducer", "scene-change:threshold=0.2", registry)     a name and its options, as on the command line
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from penstock.errors import UnknownName, UsageError


class Named:
    """Base of what is registered.  Subclasses are frozen dataclasses; their fields are the options of NAME:k=v."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    differs: ClassVar[str]  # one line: how this differs from the paper

    def options(self) -> dict[str, Any]:
        """Field values by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in self.options().items() if v != getattr(type(self), k, None)]
        return self.name + (":" + ",".join(changed) if changed else "")


N = TypeVar("N", bound=Named)


def discover(
    package: str, path: Iterable[str], base: type[N], skip: frozenset[str] = frozenset()
) -> dict[str, type[N]]:
    """The subclasses of `base` that have a name of their own, in the modules of a package: name -> class."""
    found: dict[str, type[N]] = {}
    for module in pkgutil.iter_modules(path):
        if module.name in skip:
            continue
        loaded = importlib.import_module(f"{package}.{module.name}")
        for value in vars(loaded).values():
            own = isinstance(value, type) and issubclass(value, base) and value.__module__ == loaded.__name__
            if own and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def parse(what: str, text: str, known: Mapping[str, type[N]]) -> N:
    """Read `NAME` or `NAME:key=value,key=value`; unknown names, options and wrong values are refused with the fix."""
    name, _, rest = text.partition(":")
    if name not in known:
        raise UnknownName(what, name, known)
    cls = known[name]
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"cannot read the {what} option {pair!r}: write it as {name}:key=value.")
        if key not in fields:
            raise UnknownName(f"option of {name}", key, fields)
        if key in values:
            raise UsageError(f"the {what} option {key} is given twice: keep one of them.")
        values[key] = _converted(name, key, value, fields[key])
    return cls(**values)


def _converted(owner: str, name: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise UnknownName(f"value of {owner}:{name}", text, typing.get_args(kind))
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        value = kind(text)
        if value != value:
            raise ValueError
    except (KeyError, ValueError):
        word = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            kind.__name__, "another value"
        )
        raise UsageError(f"option {name} of {owner} cannot be {text!r}: give {word}.") from None
    return value


def check_range(owner: Named, **bounds: tuple[float, float]) -> None:
    """Refuse an option outside [least, most]."""
    for name, (least, most) in bounds.items():
        value = getattr(owner, name)
        if not least <= value <= most:
            raise UsageError(f"option {name} of {owner.name} cannot be {value}: give a number from {least} to {most}.")
