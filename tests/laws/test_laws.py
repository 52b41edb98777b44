"""Every law, over everything that claims it."""

from __future__ import annotations

import pytest

from penstock.methods import base

from .cases import Case, cases
from .laws import LAWS, naive


def claimed() -> list[object]:
    """(law, case) for each claim of each case."""
    return [pytest.param(law, case, id=f"{law}-{case.id}") for law in LAWS for case in cases() if case.tries(law)]


@pytest.mark.parametrize(("law", "case"), claimed())
def test_claimed_laws_hold(law: str, case: Case, largest: dict[str, float]) -> None:
    difference = LAWS[law](case)
    if difference is not None:
        largest[law] = max(largest.get(law, 0.0), difference)


@pytest.mark.parametrize("case", [case for case in cases() if not case.differs], ids=lambda case: case.id)
def test_fast_equals_naive(case: Case, largest: dict[str, float]) -> None:
    """Not a claim but a rule of the house: every fast form has its specification beside it."""
    largest["naive"] = max(largest.get("naive", 0.0), naive(case) or 0.0)


def test_there_is_a_law_for_every_claim() -> None:
    assert set(LAWS) == set(base.LAWS)
