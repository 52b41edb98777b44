"""Which methods a model can be served with."""

from __future__ import annotations

from typing import Any

from penstock.errors import UnsupportedModel
from penstock.memory import Geometry


def check_supported(geometry: Geometry, method: Any, entries: int | None = None) -> None:
    """Raise UnsupportedModel when a method cannot be right on this model; `entries` is its budget, once known.

    Learned absolute positions are part of the inputs: what enters the memory cannot be numbered anew, and the numbers
    end with the table.  Frequencies that change in long texts hold for memories that never look that far.
    """
    if geometry.is_absolute and "bounded" in method.claims:
        raise UnsupportedModel(
            f"this model adds learned positions to its inputs, which end at {geometry.max_positions} and cannot be "
            f"numbered anew, so {method.name} cannot run for ever on it: use memory=dense for up to "
            f"{geometry.max_positions} tokens, or a model with rotary or ALiBi positions."
        )
    reach = geometry.reach
    if reach is not None and entries is not None and entries > reach:
        raise UnsupportedModel(
            f"this model changes its rotary frequencies in texts longer than {reach} tokens, so a memory of {entries} "
            f"entries would mix two kinds of keys: give a budget of at most {reach}."
        )
