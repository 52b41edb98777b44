"""The shipped model and a short stream of facts, made once."""

from __future__ import annotations

import pytest

from penstock.compare import Stream, facts_stream
from penstock.models.load import Model, load


@pytest.fixture(scope="session")
def model() -> Model:
    return load()


@pytest.fixture(scope="session")
def stream(model: Model) -> Stream:
    return facts_stream(model, 2400, seed=3)
