"""forcing-kv against its card: checks (a) to (c), and the store against loops written from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Heads, Memory, Sinks, Window
from penstock.methods import parse
from penstock.methods.forcing_kv import Changes, ForcingKV
from penstock.testing import tiny_tokens

from .running import Running, difference

FRAME, BLOCK = 4, 4


@pytest.fixture(scope="module")
def llama() -> Running:
    return Running.of("llama")


def method(**options: object) -> ForcingKV:
    return ForcingKV(frame=FRAME, block=BLOCK, **options)  # type: ignore[arg-type]


def test_composition(llama: Running) -> None:
    geometry = llama.attached.geometry
    static = Cascade((Sinks(4), Window(4)), "stream", 16)
    dynamic = Cascade((Sinks(4), Changes(4, 1, 1, 4)), "stream", 16)
    first, second, third = method(static="0.0+1.1").cascades(geometry, 28)
    assert first == static  # never split
    assert second == Heads((((1,), static), ((0,), dynamic)))
    assert third == dynamic
    assert static.entries == 4 + 4 + 16
    assert dynamic.entries == 4 + 8 + 16
    assert ForcingKV(frame=1560, block=3, static="none").dynamic(1 << 16).segments[1] == Changes(1560, 1, 1, 6)


def test_mistakes() -> None:
    with pytest.raises(BudgetError, match="give at least 28, or smaller frames"):
        method().cascade(27)
    with pytest.raises(BudgetError, match="needs a budget"):
        method().cascade(None)
    with pytest.raises(UsageError, match="give 1 or more"):
        parse("forcing-kv:block=0")


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_all_static_is_sinks_and_window(llama: Running, chunk: int) -> None:
    """With a context of window - sink; both move by blocks."""
    tokens = tiny_tokens(150)
    geometry = llama.attached.geometry
    got = llama.feed(Memory(geometry, method(static="all", context=3).cascades(geometry, 100)), tokens, chunk)
    plain = Cascade((Sinks(FRAME), Window(3 * FRAME)), "stream", FRAME * BLOCK)
    expected = llama.feed(Memory(geometry, [plain] * 3), tokens, 64)
    assert difference(got, expected) < 1e-6


def test_b_each_group_holds_the_same_number_after_every_block(llama: Running) -> None:
    geometry = llama.attached.geometry
    memory = Memory(geometry, method(static="1.1+2.0").cascades(geometry, 28))
    counts = []
    for block in range(6):
        llama.feed(memory, tiny_tokens(FRAME * BLOCK, block))
        counts.append(
            [
                [sum(len(e) for state in lane.states for e in state.values()) for lane in lanes]
                for group in memory.groups
                for lanes in group.lanes[0]
            ]
        )
    assert all(count == counts[0] for count in counts[1:])
    flat = sorted(n for layer in counts[0] for n in layer)
    assert flat == [8, 8, 8, 12, 12]  # sink and newest frame; and a frame's worth of what changed


def test_c_heads_of_equal_policies_may_change_groups(llama: Running) -> None:
    tokens = tiny_tokens(150)
    same = Cascade((Sinks(4), Window(4)), "stream", 16)
    geometry = llama.attached.geometry
    outs = [
        llama.feed(Memory(geometry, [placed] * 3), tokens, 64)
        for placed in (same, Heads((((0,), same), ((1,), same))), Heads((((1,), same), ((0,), same))))
    ]
    assert difference(outs[1], outs[0]) < 1e-6
    assert difference(outs[2], outs[0]) < 1e-6


# -- the store ----------------------------------------------------------------------------------------------------


def literal(key: Tensor, frames: int, frame: int, pieces: int, store: int) -> list[int]:
    """The card's rule in loops: entries of the least similar segments, in order of time."""
    size = frame // pieces
    scores = []
    for f in range(frames):
        for p in range(pieces):
            alike = []
            for token in range(size):
                here, there = f * frame + p * size + token, (f + 1) * frame + p * size + token
                for head in range(len(key)):
                    a, b = key[head, here], key[head, there]
                    alike.append(float(a @ b / (a.norm() * b.norm())))
            scores.append((sum(alike) / len(alike), f * frame + p * size))
    kept = sorted(start for _, start in sorted(scores)[: store * pieces])
    return [start + token for start in kept for token in range(size)]


@pytest.mark.parametrize(("frame", "pieces", "store"), [(6, 3, 1), (6, 6, 2), (4, 2, 1), (12, 6, 1)])
def test_the_least_similar_segments_stay(frame: int, pieces: int, store: int) -> None:
    generator = torch.Generator().manual_seed(frame)
    key = torch.randn(2, 5 * frame, 8, generator=generator)
    part = Changes(frame, 1, store, pieces)
    assert part.changing(key, 4).tolist() == literal(key, 4, frame, pieces, store)


def test_what_does_not_change_is_dropped() -> None:
    """One segment of one frame differs from its successor: it is kept, and so is the one before it."""
    frame, pieces = 8, 4
    key = torch.ones(1, 5 * frame, 4)
    key[:, 2 * frame + 4 : 2 * frame + 6] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # third segment of the third frame
    kept = Changes(frame, 1, 1, pieces).changing(key, 4).tolist()
    assert {2 * frame + 4, 2 * frame + 5} <= set(kept)
    assert {frame + 4, frame + 5} <= set(kept)
    assert len(kept) == frame


def test_what_a_dynamic_head_remembers(llama: Running) -> None:
    """Sink, store and newest frame, from one layer's own keys."""
    geometry = llama.attached.geometry
    memory = Memory(geometry, method(static="none").cascades(geometry, 28))
    llama.feed(memory, tiny_tokens(4 * FRAME * BLOCK, 3), 64)
    lane = next(g for g in memory.groups if isinstance(g.cascade, Cascade) and len(g.layers) == 2).lanes[0][0][0]
    sinks, changes = lane.states
    now = memory.length()
    assert sinks["held"].seen[0].tolist() == list(range(FRAME))
    assert changes["held"].seen[0].tolist() == list(range(now - FRAME, now))
    store = changes["store"].seen[0].tolist()
    assert store == sorted(store)
    assert len(store) == FRAME
    # candidates: the frame that was newest before the block, and those of the block but its last
    assert all(now - FRAME * (BLOCK + 1) <= seen < now - FRAME for seen in store)


def test_streams_do_not_share_a_choice(llama: Running) -> None:
    """Two rows with different texts: each keeps what changed in its own."""
    geometry = llama.attached.geometry
    memory = Memory(geometry, method(static="none").cascades(geometry, 28), rows=2)
    alone = Memory(geometry, method(static="none").cascades(geometry, 28))
    from penstock.core import Span

    mine, other = tiny_tokens(96, 1), tiny_tokens(96, 2)
    with memory.step([Span(0, 96), Span(1, 96)]) as step, torch.no_grad():
        both = llama.attached.run(torch.cat((mine, other)), step, None, "all")
    assert both is not None
    assert difference(both[96:], llama.feed(alone, other)) < 1e-5
