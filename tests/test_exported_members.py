"""The lists of public names are sorted, true, and all there is."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import penstock

MODULES = ["penstock"] + [
    module.name for module in pkgutil.walk_packages(penstock.__path__, "penstock.") if ".__main__" not in module.name
]


def declared(name: str) -> list[str] | None:
    """The `__all__` in a module's source, without importing what a guarded entry point would start."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    if not spec.origin.endswith(".py"):  # the native library, which the walk takes for a module
        return None
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then the rest: the order that the linter keeps."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


LISTED = {name: names for name in MODULES if (names := declared(name)) is not None}


@pytest.mark.parametrize("name", LISTED)
def test_a_list_is_sorted_and_true(name: str) -> None:
    names, module = LISTED[name], importlib.import_module(name)
    assert names == sorted(set(names), key=order), f"{name}.__all__ is not sorted"
    missing = [n for n in names if not hasattr(module, n)]
    assert not missing, f"{name}.__all__ names {missing}, which it does not have"


@pytest.mark.parametrize("name", ["penstock", "penstock.memory", "penstock.methods"])
def test_the_face_of_a_package_is_its_list(name: str) -> None:
    """What an `__init__` imports from its own files is public, and the list says so."""
    module = importlib.import_module(name)
    source = ast.parse(inspect.getsource(module))
    own = {
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(name)
        for alias in node.names
    }
    assert own <= set(LISTED[name]), f"not in {name}.__all__: {sorted(own - set(LISTED[name]))}"
