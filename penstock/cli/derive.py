"""Commands derived from dataclasses: fields become options, defaults and help texts are written once."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")


class Aborted(Exception):
    """Somebody pressed Ctrl-C and does not want to wait."""


def option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field that becomes `--its-name`."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


def argument(default: Any, help: str, metavar: str) -> Any:
    """A field that becomes a positional argument."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "positional": True})


@dataclasses.dataclass(frozen=True)
class Common:
    """What every command takes."""

    json: bool = option(False, "Write nothing but JSON documents to standard output, one per line.")
    debug: bool = option(False, "Show the traceback of an error.")


def command_of(options: type[T]) -> Callable[[Callable[[T], int | None]], Callable[..., int | None]]:
    """Make a function of an options object a function of its fields, for typer to read."""

    def derive(function: Callable[[T], int | None]) -> Callable[..., int | None]:
        def command(**values: Any) -> int | None:
            try:
                return function(options(**values))
            except KeyboardInterrupt:  # typer has an end of its own for it
                raise Aborted from None

        hints = typing.get_type_hints(options)
        # The fields of the base class come first in a dataclass and last in a help text.
        fields = dataclasses.fields(options)  # type: ignore[arg-type]
        common = {f.name for f in dataclasses.fields(Common)}
        ordered = [f for f in fields if f.name not in common] + [f for f in fields if f.name in common]
        parameters = []
        for field in ordered:
            meta: dict[str, Any] = dict(field.metadata)
            if meta.pop("positional", False):
                info = typer.Argument(show_default=False, **meta)
            elif hints[field.name] is bool:
                meta.pop("metavar", None)
                info = typer.Option("--" + field.name.replace("_", "-"), **meta)
            else:
                info = typer.Option(show_default=field.default is not None, **meta)
            annotation: Any = operator.getitem(Annotated, (hints[field.name], info))
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
                )
            )
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return derive
