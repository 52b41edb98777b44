"""One tree: the drawing in the docstring is the tree, and every message carries its fix."""

from __future__ import annotations

import inspect
import re

import pytest

from penstock import errors
from penstock.errors import MissingExtra, PenstockError, UnknownName, UsageError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}


def drawn() -> dict[str, str | None]:
    """Each class in the drawing and its parent: four columns of the drawing are one level."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([ │├└─]*)([A-Z]\w+)(?: {2,}|$)", line)
        if match:
            level = len(match[1]) // 4
            path[level:] = [match[2]]
            parents[match[2]] = path[level - 1] if level else None
    return parents


def test_the_drawing_is_the_tree() -> None:
    actual = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert drawn() == {**actual, "PenstockError": None}


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_exit_codes_and_docstrings(cls: type[PenstockError]) -> None:
    """2 for a mistake of the caller, 1 for a failure."""
    assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1)
    assert cls.__doc__


def test_unknown_names_are_suggested_or_listed() -> None:
    known = ["window", "streaming-llm", "dense"]
    error = UnknownName("memory", "streamingllm", known)
    assert str(error) == "unknown memory 'streamingllm': did you mean streaming-llm?"
    assert error.known == sorted(known)
    assert str(UnknownName("memory", "xyz", known)) == (
        "unknown memory 'xyz': choose one of dense, streaming-llm, window."
    )
    assert str(UnknownName("option of dense", "sinks", [])) == "unknown option of dense 'sinks': choose one of none."


def test_a_missing_extra_names_the_install_line() -> None:
    assert "pip install 'penstock[plot]'" in str(MissingExtra("a plot", "plot"))
