"""The largest differences that the laws saw, told at the end of the run."""

from __future__ import annotations

import pytest

from .elsewhere import elsewhere

_LARGEST: dict[str, float] = {}


@pytest.fixture(scope="session")
def largest() -> dict[str, float]:
    """Law -> largest relative difference of logits so far."""
    return _LARGEST


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per run."""
    if _LARGEST:
        told = ", ".join(f"{law} {value:.1e}" for law, value in sorted(_LARGEST.items()))
        terminalreporter.write_line(f"largest differences of logits, relative: {told}")


def pytest_sessionfinish() -> None:
    """End the other process, if one was started."""
    if elsewhere.cache_info().currsize:
        elsewhere().close()
