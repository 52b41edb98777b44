"""curvestream against its card: checks (a) to (c), and a literal loop over frames."""

from __future__ import annotations

import pytest
import torch

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Sinks, Window
from penstock.methods.curvestream import Curve, CurveStream, Route, curvature

from .frames import HEADS, WIDTH, blocks, feed, memory, state

FRAME, BUDGET = 4, 48


def test_composition() -> None:
    part = Curve(224, 128, Route())
    assert CurveStream().cascade(512) == Cascade((Sinks(16), Window(128), part), "contiguous", 16)
    for budget in (24, 48, 100, 4096):
        assert CurveStream().cascade(budget).entries == budget
        assert CurveStream().lossless().cascade(budget).entries == budget
    with pytest.raises(BudgetError, match="give at least 20"):
        CurveStream().cascade(19)
    with pytest.raises(UsageError, match="a decay from 0 to below 1"):
        CurveStream(decay=1.0).cascade(96)
    with pytest.raises(UsageError, match=r"up to 0\.5"):
        CurveStream(blurred=0.6).cascade(96)


def test_a_curvature() -> None:
    """Constant velocity does not turn, a right angle counts 1, going back 2, standing still 0."""
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    zero = torch.zeros(3)
    assert curvature(zero, a, 2 * a) == pytest.approx(0.0)
    assert curvature(zero, a, a + b) == pytest.approx(1.0)
    assert curvature(zero, a, zero) == pytest.approx(2.0)
    assert curvature(a, a, a + b) == 0.0
    assert curvature(zero, a, a) == 0.0


def test_b_queues_are_bounded() -> None:
    where = memory(CurveStream(frame=FRAME).cascade(BUDGET))
    part = where.cascades[0].segments[2]  # type: ignore[union-attr]
    assert isinstance(part, Curve)
    for i in range(30):
        feed(where, blocks(7, FRAME, i))
        held, clear = state(where, 2)["held"], int(state(where, 2)["counts"][0])
        assert clear <= part.clear
        assert len(held) - clear <= part.blurred
        assert held.kind.unique().tolist() == [Kind.VISION]
    assert clear == part.clear
    assert len(held) - clear == part.blurred


def test_c_a_still_scene_is_dropped() -> None:
    """Behind the first frame nothing is kept of a scene that does not change; nor of faint noise."""
    for noise in (0.0, 1e-6):
        where = memory(CurveStream(frame=FRAME).cascade(BUDGET))
        key = blocks(1, FRAME).repeat(1, 50, 1)
        feed(where, key + noise * torch.randn(key.shape, generator=torch.Generator().manual_seed(1)))
        assert state(where, 2)["held"].seen[0].tolist() == list(range(FRAME, 2 * FRAME))


def routed(key: torch.Tensor, recent: int) -> tuple[list[int], list[int]]:
    """Clear and blurred frames by the card, in float64: frame 0 is the sink, the last `recent` are in the window."""
    frames = [f.double().mean(1).flatten() for f in key.split(FRAME, dim=1)]
    frames = [f / f.norm() for f in frames]
    clear, blurred = [1], []
    mean = variance = None
    for t in range(2, len(frames) - recent):
        score = 1 - float(frames[t] @ frames[t - 1])
        if t > 2:
            old, new = frames[t - 1] - frames[t - 2], frames[t] - frames[t - 1]
            score += 0.2 * (1 - float(old @ new / (old.norm() * new.norm())))
        mean = score if mean is None else 0.9 * mean + 0.1 * score
        variance = 0.9 * (variance or 0.0) + 0.1 * (score - mean) ** 2
        if score > mean + variance**0.5:
            clear.append(t)
        elif score > mean:
            blurred.append(t)
    return clear, blurred


@pytest.mark.parametrize("seed", range(4))
def test_routing_is_the_cards(seed: int) -> None:
    """Which frames stay, and what stays of blurred ones, against a literal loop."""
    where, key = memory(CurveStream(frame=FRAME, blurred=0.2).cascade(400)), blocks(60, FRAME, seed)
    feed(where, key, chunk=13)
    recent = len(state(where, 1)["held"]) // FRAME
    clear, blurred = routed(key, recent)
    held, number = state(where, 2)["held"], int(state(where, 2)["counts"][0])
    assert len(blurred) > 3
    assert held.seen[0, :number].tolist() == [i for t in clear for i in range(FRAME * t, FRAME * t + FRAME)]
    assert held.seen[0, number:].tolist() == [FRAME * t + FRAME - 1 for t in blurred]
    for i, t in enumerate(blurred):
        expected = key[:, FRAME * t : FRAME * t + FRAME].mean(1)
        assert torch.allclose(held.key[:, number + i], expected, atol=1e-6)
    assert state(where, 2)["path"].shape == (2, HEADS * WIDTH)


def test_thresholds_decide() -> None:
    """Thresholds out of reach keep nothing or everything."""
    key = blocks(20, FRAME)
    for low, high, clear, blurred in ((9.0, 9.0, 4, 0), (-1e30, 9.0, 4, 15), (-1e30, -1e30, 64, 0)):
        where = memory(CurveStream(FRAME, low=low, high=high, blurred=0.2).cascade(120))
        feed(where, key)
        recent = len(state(where, 1)["held"]) // FRAME
        assert int(state(where, 2)["counts"][0]) == min(clear, FRAME * (19 - recent))
        expected = 0 if not blurred else 19 - recent - 1
        assert len(state(where, 2)["held"]) - int(state(where, 2)["counts"][0]) == expected
