"""Cache layers that only forget, and the masks that go with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from penstock.errors import NotRewindable, UnsupportedModel
from penstock.models.plain import WindowLayer, masks


def entries(seen: range) -> Tensor:
    """[1, 1, T, 1] entries that are their own index."""
    return torch.tensor(list(seen), dtype=torch.float32).view(1, 1, -1, 1)


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_a_window_layer_returns_what_is_read_and_keeps_what_will_be(window: int, chunk: int) -> None:
    layer = WindowLayer(window)
    for start in range(0, 20, chunk):
        fresh = range(start, min(start + chunk, 20))
        length, first = layer.get_mask_sizes(len(fresh))
        keys, values = layer.update(entries(fresh), entries(fresh))
        assert keys.flatten().tolist() == list(range(max(0, start - window + 1), fresh.stop))
        assert (length, first) == (keys.shape[2], keys[0, 0, 0, 0])
        assert torch.equal(keys, values)
    assert layer.get_seq_length() == 20
    assert layer.keys.shape[2] == window - 1
    assert layer.keys.untyped_storage().nbytes() == 4 * (window - 1), "what is forgotten is freed"
    layer.reset()
    assert layer.get_seq_length() == 0


def test_a_window_layer_is_cropped_while_nothing_was_evicted() -> None:
    layer = WindowLayer(5)
    layer.update(entries(range(4)), entries(range(4)))
    layer.crop(-1)
    keys, _ = layer.update(entries(range(3, 5)), entries(range(3, 5)))
    assert keys.flatten().tolist() == [0, 1, 2, 3, 4]
    layer.crop(0)
    with pytest.raises(NotRewindable):
        layer.crop(-1)


def test_masks_by_kind_of_layer() -> None:
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, 2] = False
    text = SimpleNamespace(layer_types=["sliding_attention", "full_attention"])
    found = masks(text, [2, 4], [1, 3], real, 3, torch.float32)
    assert sorted(found) == ["full_attention", "sliding_attention"]
    visible = found["full_attention"] == 0  # [2, 1, 3, 3 + 3]
    assert visible[0, 0].int().tolist() == [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert visible[1, 0].int().tolist() == [[1, 1, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert (found["sliding_attention"][0, 0] == 0).int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    single = masks(SimpleNamespace(), [4, 4], [3, 3], real, 3, torch.float32)
    assert torch.equal(single, found["full_attention"])
    with pytest.raises(UnsupportedModel, match="different windows"):
        masks(SimpleNamespace(), [2, 4], [1, 3], real, 3, torch.float32)
