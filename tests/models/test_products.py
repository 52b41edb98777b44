"""Long steps in float32 where bfloat16 products are emulated: nearer to the exact result, short steps as ever."""

from __future__ import annotations

import pytest
import torch

import penstock.memory.attend as attend
from penstock.memory.attend import emulates, partial
from penstock.models import products
from penstock.models.products import ROWS, Wide


def test_only_bfloat16_on_a_cpu_is_emulated() -> None:
    assert not emulates(torch.float32, torch.device("cpu"))
    assert not emulates(torch.bfloat16, torch.device("meta"))


@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_are_multiplied_in_float32(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 40, bias=bias).bfloat16()
    x = torch.randn(1, ROWS, 96).bfloat16()
    exact = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float() if bias else None)
    with torch.no_grad(), Wide():
        wide, short = layer(x), layer(x[:, :1])
        narrow = layer.float()(x.float())
    assert wide.dtype is torch.bfloat16
    assert torch.equal(wide, exact.bfloat16())
    assert torch.equal(narrow, exact)
    assert torch.equal(short, layer.bfloat16()(x[:, :1]))


def test_the_choice_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "emulates", lambda dtype, device: True)
    assert isinstance(products.products(torch.bfloat16, torch.device("cpu"), ROWS), Wide)
    assert not isinstance(products.products(torch.bfloat16, torch.device("cpu"), ROWS - 1), Wide)


def test_attention_of_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, h, n, 32).bfloat16() for h, n in ((4, 64), (2, 80), (2, 80)))
    mask = torch.zeros(64, 80).masked_fill_(torch.rand(64, 80) < 0.2, -1e30).bfloat16()
    exact = partial(query.float(), key.float(), value.float(), scale=0.2, mask=mask.float())
    monkeypatch.setattr(attend, "emulates", lambda dtype, device: dtype is torch.bfloat16)
    wide = partial(query, key, value, scale=0.2, mask=mask)
    assert torch.equal(wide.out, exact.out.bfloat16())
    assert torch.equal(wide.lse, exact.lse)
