"""Which rotary embedding explains what a layer did with positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.memory import Rotary
from penstock.models.encodings import PROBE_POSITIONS, UNEXPLAINED, Encodings, frequencies, only_turned, reach

FREQUENCIES = 1.0 / 10000.0 ** (torch.arange(4, dtype=torch.float64) / 4)


SETTINGS = {"original_max_position_embeddings": 512}


class Model(nn.Module):
    """Two rotary embeddings of different width, and a decoy."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("local_inv_freq", FREQUENCIES[:2].float())
        self.register_buffer("global_inv_freq", FREQUENCIES.float())
        self.register_buffer("global_original_inv_freq", FREQUENCIES.float() * 2)


def recorded(rotary: Rotary | None, positions: tuple[int, ...], scale: float = 1.0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    out = {}
    for name in ("key", "query"):
        x = torch.randn(1, 2, len(PROBE_POSITIONS), 12, generator=generator)
        out[name] = scale * (x if rotary is None else rotary.rotate(x, rotary.angles(torch.tensor(positions))))
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("width", [2, 4])
def test_layout_direction_and_width_are_found(width: int, sign: float, interleaved: bool) -> None:
    used = Rotary(sign * FREQUENCIES[:width].float().double(), interleaved)
    still = recorded(used, (0,) * 8)
    found = Encodings(Model()).explain(still, recorded(used, PROBE_POSITIONS))
    assert isinstance(found, Rotary)
    assert found.interleaved == interleaved
    assert torch.equal(found.inv_freq, used.inv_freq)


def test_nothing_moved_and_nothing_explains() -> None:
    still = recorded(None, ())
    encodings = Encodings(Model())
    assert encodings.explain(still, recorded(None, ())) is None
    assert encodings.explain(still, recorded(None, (), scale=1.1)) == UNEXPLAINED
    assert encodings.explain(still, recorded(Rotary(FREQUENCIES * 1.01), PROBE_POSITIONS)) == UNEXPLAINED


def test_a_size_that_depends_on_positions_is_seen() -> None:
    for rotary in (Rotary(FREQUENCIES), Rotary(FREQUENCIES, True), None):
        still = recorded(rotary, (0,) * 8)
        far = recorded(rotary, (1 << 20,) * 8)
        assert only_turned(rotary, still, far)
        assert not only_turned(rotary, still, {n: 1.01 * x for n, x in far.items()})
    assert not only_turned(None, still, recorded(Rotary(FREQUENCIES), (1 << 20,) * 8))


class Growing(Model):
    """Frequencies that change from `limit` positions on, as `longrope` does."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def at(self, position: int) -> None:
        grown = position + 1 > self.limit
        self.global_inv_freq: Tensor = FREQUENCIES.float() * (0.5 if grown else 1.0)


@pytest.mark.parametrize(
    "rope", [{"original_max_position_embeddings": 512}, {"full": {"original_max_position_embeddings": 512}}]
)
def test_reach_is_the_length_at_which_frequencies_change(rope: dict[str, Any]) -> None:
    text = type("Config", (), {"max_position_embeddings": 4096, "rope_parameters": rope})()
    model = Growing(512)
    assert reach(model, text, model.at) == 512
    assert torch.equal(frequencies(model)["global_inv_freq"], FREQUENCIES.float()), "left as it was found"
    model = Growing(4096)
    assert reach(model, text, model.at) == 4096
    model = Growing(700)
    assert reach(model, text, model.at) is None, "not a length that the configuration names"
