"""savemem against its card: checks (a) to (d), and literal loops over its rules."""

from __future__ import annotations

import pytest
import torch

from penstock.core import Kind
from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.methods import savemem
from penstock.methods.savemem import SaveMem, ThreeTiers

from .frames import ALIBI, blocks, feed, memory, state

FRAME, BUDGET = 16, 160


def cascade(**options: object) -> Cascade:
    return SaveMem(frame=FRAME, **options).cascade(BUDGET)  # type: ignore[arg-type]


def older(where: Memory) -> list[int]:
    """Indices seen in the mid and long tiers."""
    found: list[int] = state(where, 1)["older"].seen[0].tolist()
    return found


def test_composition() -> None:
    tiers = ThreeTiers(16, 256, 224, 16, 0.8, 2.0)
    assert SaveMem().cascade(512) == Cascade((Sinks(16), tiers), "contiguous", 16)
    for budget in (24, 48, 100, 4096):
        assert SaveMem().cascade(budget).entries == budget
        assert SaveMem().lossless().cascade(budget).entries == budget
    with pytest.raises(BudgetError, match="give at least 20"):
        SaveMem().cascade(19)
    with pytest.raises(UsageError, match="a share of short frames"):
        SaveMem(short=0.0).cascade(96)


@pytest.mark.parametrize("positions", ["stream", "contiguous"])
def test_a_nothing_happens_to_a_short_stream(positions: str) -> None:
    """As long as the short tier holds everything, it is a window."""
    key = blocks(6, FRAME)
    got = feed(memory(cascade(positions=positions)), key, chunk=7)
    plain = memory(Cascade((Sinks(FRAME), Window(BUDGET)), positions, FRAME))
    assert torch.allclose(got, feed(plain, key, chunk=7), atol=1e-6)


def test_b_duplicates_keep_one_copy() -> None:
    """Of a scene that stands still the mid tier keeps the last frame before it changes."""
    still, other = blocks(1, FRAME).repeat(1, 9, 1), blocks(5, FRAME, 1)
    where = memory(cascade())
    feed(where, torch.cat([blocks(1, FRAME, 2), still, other], dim=1))
    kept = [i // FRAME for i in older(where)]
    assert all(frame >= 9 for frame in kept)
    assert kept.count(9) == FRAME
    assert state(where, 1)["short"].kind.unique().tolist() == [Kind.VISION]


def test_c_entries_are_bounded_and_the_cap_is_used() -> None:
    where = memory(cascade(mid=2))
    part = where.cascades[0].segments[1]  # type: ignore[union-attr]
    assert isinstance(part, ThreeTiers)
    for i in range(20):
        feed(where, blocks(5, FRAME, i))
        assert len(state(where, 1)["short"]) <= part.short
        assert len(older(where)) <= part.cap
        assert where.nbytes <= (where.budget_bytes or 0)
    assert len(older(where)) == part.cap


def test_d_survivors_stay_where_they_were() -> None:
    """Stream positions, raw keys and values of what is kept are the originals."""
    where, key, value = memory(cascade(positions="stream")), blocks(40, FRAME), blocks(40, FRAME, 1)
    feed(where, key, value, chunk=31)
    held = state(where, 1)["older"]
    assert len(held) > FRAME
    assert torch.equal(held.key, key[:, held.seen[0]])
    assert torch.equal(held.value, value[:, held.seen[0]])
    assert held.at.tolist() == held.seen.tolist()
    assert held.seen[0].diff().min() > 0


def test_the_oldest_are_anchors() -> None:
    """Where the cap is reached, of each 2 x 2 cells of an old frame the best by semantic score outlives the others."""
    where = memory(cascade(mid=0))
    feed(where, blocks(60, FRAME), chunk=64)
    held, score = state(where, 1)["older"], state(where, 1)["score"]
    worth = ThreeTiers(FRAME, 1, 1, 0, 0.8, 2.0).worth(held.seen[0], score)
    cells: dict[tuple[int, int, int], list[int]] = {}
    for i, seen in enumerate(held.seen[0].tolist()):
        cell = seen % FRAME
        cells.setdefault((seen // FRAME, cell // 4 // 2, cell % 4 // 2), []).append(i)
    for members in cells.values():
        top = max(members, key=lambda i: (float(score[i]), -i))
        for i in members:
            assert float(worth[i]) == pytest.approx(float(score[i]) + 4.0 * (i == top))
    newest = ThreeTiers(FRAME, 1, 1, 2, 0.8, 2.0).worth(held.seen[0], score)
    last = int(held.seen[0, -1]) // FRAME
    assert ((newest >= 16.0) == (held.seen[0] // FRAME > last - 2)).all()


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [4, 8, 16, 32])
def test_distances_are_to_the_neighbourhood(frame: int) -> None:
    here, there = (savemem.joint(blocks(1, frame, seed)) for seed in (1, 2))
    wide = {4: 2, 8: 4, 16: 4, 32: 8}[frame]
    got = savemem.distances(here, there)
    for i in range(frame):
        near = [j for j in range(frame) if abs(i // wide - j // wide) <= 1 and abs(i % wide - j % wide) <= 1]
        assert float(got[i]) == pytest.approx(1 - max(float(here[i] @ there[j]) for j in near), abs=1e-4)
    assert savemem.distances(here, here).max() == 0.0


def test_otsu_splits_where_classes_differ_most() -> None:
    for seed in range(20):
        values = torch.rand(16, generator=torch.Generator().manual_seed(seed))
        ordered = sorted(values.tolist())

        def between(k: int, ordered: list[float] = ordered) -> float:
            low, high = ordered[:k], ordered[k:]
            return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2

        best = max(range(1, 16), key=between)
        assert savemem.otsu(values) == pytest.approx(ordered[best])
    assert savemem.otsu(torch.tensor([0.0, 0.1, 0.9, 1.0])) == pytest.approx(0.9)
    assert savemem.otsu(torch.full((8,), 0.25)) == 0.25
    values = torch.tensor([0.0, 0.1, 0.9, 1.0])
    assert savemem.kept(values, values.flip(0)).tolist() == [True, True, True, True]
    assert savemem.kept(values, values).tolist() == [False, False, True, True]


def test_all_frames_are_read_if_they_fit_alike_and_nine_tenths_if_not() -> None:
    number = torch.arange(20).repeat_interleave(3)
    alike = torch.full((1, 60), 0.5)
    assert savemem.fitting(alike, number).all()
    scores = torch.linspace(0.1, 1.0, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    read = savemem.fitting(scores[number][None], number)[0]
    assert read.unflatten(0, (20, 3)).all(1).sum() == 18  # whole frames
    assert not read[scores[number] <= sorted(scores.tolist())[1]].any()
    values = 1.0 + torch.tensor([0.18, -0.18]).repeat(10)  # half way between the limits of variation
    assert savemem.fitting(values[number][None], number).sum() == 19 * 3


def test_the_gate_closes_on_questions_about_now() -> None:
    """A query along the newest frames, closer than the ratio allows, reads the short tier alone."""
    key = blocks(40, FRAME)
    key[:, -6 * FRAME :] = key[:, -1:] + 0.1 * key[:, -6 * FRAME :]  # the newest frames show one thing
    asked = key[:, -1:]
    for gate, closed in ((0.5, True), (1e6, False)):
        where = memory(cascade(gate=gate))
        feed(where, key)
        tiers = where.cascades[0].segments[1]  # type: ignore[union-attr]
        assert isinstance(tiers, ThreeTiers)
        one = feed(where, asked)[0]
        blind = memory(cascade(gate=1e-9))  # never asks the older tiers
        feed(blind, key)
        other = feed(blind, asked)[0]
        assert torch.equal(one, other) == closed


@pytest.mark.parametrize("positions", ["stream", "contiguous"])
def test_fast_equals_naive_with_alibi(positions: str) -> None:
    key = blocks(30, FRAME)
    outs = [feed(memory(cascade(positions=positions), naive, ALIBI), key, chunk=11) for naive in (False, True)]
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
