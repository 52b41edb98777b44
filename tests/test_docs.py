"""Documents that quote the program agree with it."""

from __future__ import annotations

from docs.generate import HERE, papers


def test_the_list_of_papers_is_that_of_the_registry() -> None:
    assert (HERE / "papers.md").read_text(encoding="utf-8") == papers(), "run make docs"
