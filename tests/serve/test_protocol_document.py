"""docs/protocol.md names everything that the server can say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock.serve
from penstock.client import SessionInfo

HERE = Path(penstock.serve.__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def document() -> str:
    if not DOCUMENT.exists():
        pytest.skip("the documents are not installed")
    return DOCUMENT.read_text(encoding="utf-8")


def trees() -> Iterator[ast.AST]:
    return (ast.parse(path.read_text(encoding="utf-8")) for path in HERE.rglob("*.py"))


def literals(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, text) of every text that is given as a keyword or under a key of a dict."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            yield str(node.arg), str(node.value.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    yield str(key.value), str(value.value)


def test_codes_and_events(document: str) -> None:
    found = {pair for tree in trees() for pair in literals(tree)}
    codes = {text for name, text in found if name == "code" and text.isidentifier() and text != "None"}
    events = {text for name, text in found if name == "type" and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text)}
    assert {"not_exact", "exists"} <= codes
    assert {"session.created", "response.done"} <= events
    assert {each for each in codes | events if f"`{each}`" not in document} == set()


def test_metrics_routes_and_fields(document: str, server: Any) -> None:
    http = server.http
    http.post("/v1/sessions", json={"id": "a"})
    http.post("/v1/sessions/a/append", content="some words " * 9)
    http.post("/v1/sessions/a/ask", json={"question": "?", "max_tokens": 3, "stream": False})
    page = http.get("/metrics").text
    names = {line.split()[2].removesuffix("_created") for line in page.splitlines() if line.startswith("# HELP")}
    assert {name for name in names if f"`{name}" not in document} == set()
    fields = http.get("/v1/sessions/a").json()
    assert {name for name in fields if f"`{name}`" not in document} == set()
    assert set(fields) - {"object"} == set(SessionInfo.__dataclass_fields__)
    assert fields["pace"]["first_ms"]["p50"] > 0
    paths = {route.path for route in server.app.routes if route.path.startswith("/v1/sessions")}
    assert {path for path in paths if path not in document} == set()
