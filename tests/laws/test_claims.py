"""Every method says what DESIGN asks of it: who it is, which laws it keeps, and why not the others."""

from __future__ import annotations

import dataclasses
import re

import pytest

from penstock.methods import Method, registry
from penstock.methods.base import LAWS

ALWAYS = {"causal", "rows_independent", "resumable", "forkable", "deterministic"}
METHODS = registry()


@pytest.mark.parametrize("name", METHODS)
def test_claims(name: str) -> None:
    """What all must keep it claims; it is bounded or grows; any other law it claims or waives with a reason."""
    method = METHODS[name]
    claims, waived = set(method.claims), dict(method.waived)
    assert claims <= set(LAWS), f"{name} claims laws that do not exist: {claims - set(LAWS)}"
    assert claims >= ALWAYS, f"{name} must claim {ALWAYS - claims}"
    assert len(claims & {"bounded", "grows"}) == 1, f"{name} is bounded or grows, exactly one"
    others = set(LAWS) - ALWAYS - {"bounded", "grows"}
    assert claims | set(waived) >= others, f"{name} neither claims nor waives {others - claims - set(waived)}"
    assert not claims & set(waived), f"{name} claims and waives {claims & set(waived)}"
    for law, reason in waived.items():
        assert law in others, f"{name} cannot waive {law}"
        assert len(reason) > 10, f"{name} waives {law} without a reason"
        assert "\n" not in reason


@pytest.mark.parametrize("name", METHODS)
def test_who_it_is(name: str) -> None:
    method = METHODS[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), "names are lower-case and hyphenated"
    assert method.name == name
    assert method.source
    for line in (method.title, method.source, method.differs):
        assert line
        assert "\n" not in line
    assert method.__doc__
    assert method.slots


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_value_with_defaults_and_few_parameters(name: str) -> None:
    method = METHODS[name]
    assert dataclasses.is_dataclass(method)
    assert issubclass(method, Method)
    fields = dataclasses.fields(method)
    assert len(fields) <= 6, "a seventh parameter is a wrapper"
    one, other = method(), method()
    assert one == other
    assert hash(one) == hash(other)
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field.name, getattr(one, field.name))
