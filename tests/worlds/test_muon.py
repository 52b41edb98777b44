"""Muon in float32, against torch's own."""

from __future__ import annotations

import pytest
import torch

from penstock.worlds.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_singular_values_are_brought_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3
    assert orthogonal(torch.zeros(shape)).isfinite().all()


def test_a_step_is_that_of_torch_which_computes_in_bfloat16() -> None:
    random = torch.Generator().manual_seed(2)
    ours = torch.nn.Parameter(torch.randn(24, 40, generator=random))
    theirs = torch.nn.Parameter(ours.detach().clone())
    still = torch.nn.Parameter(torch.ones(3, 3))
    mine = Muon([ours, still], lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(24, 40, generator=random)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert torch.equal(still, torch.ones(3, 3))  # without a gradient
