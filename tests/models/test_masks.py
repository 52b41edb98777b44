"""Windows found from mask rules, whatever their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils as library

from penstock.errors import UnsupportedModel
from penstock.models.masks import _mask, window_of

Rule = Callable[..., Tensor]


def mask_of(rule: Rule) -> Tensor:
    return _mask(mask_function=rule, q_length=4, kv_length=4)


@pytest.mark.parametrize("window", [1, 2, 16, 4096, 131072, 1 << 20])
def test_windows_of_any_size(window: int) -> None:
    assert window_of(mask_of(library.sliding_window_causal_mask_function(window)), True, "M") == window


def test_everything_earlier() -> None:
    assert window_of(mask_of(library.causal_mask_function), True, "M") is None
    assert window_of(None, True, "M") is None


def _by_contents(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
    return torch.ones(8, dtype=torch.bool)[query] & (key <= query)


@pytest.mark.parametrize(
    ("mask", "causal", "reason"),
    [
        (None, False, "later tokens"),
        (mask_of(library.bidirectional_mask_function), True, "later tokens"),
        (mask_of(library.chunked_causal_mask_function(8192, torch.zeros(1, dtype=torch.int64))), True, "chunked"),
        (mask_of(_by_contents), True, "contents of the input"),
        (torch.ones(1, 1, 4, 4), True, "changes its attention mask"),
    ],
)
def test_other_rules_are_refused(mask: Tensor | None, causal: bool, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        window_of(mask, causal, "M")
