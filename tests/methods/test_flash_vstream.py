"""flash-vstream against its card: checks (a) to (d), on frames and on what becomes of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Entries, Memory, Sinks, Window
from penstock.memory.parts import State
from penstock.methods.flash_vstream import FlashMemory, FlashVStream, kmeans, pooled
from tests.memory.stack import Stack, difference, tokens

FRAME, SLOTS = 16, 4
PICTURES = [[(7 * p + 3 * i * (p + 1)) % 50 for i in range(FRAME)] for p in range(6)]  # frames of 16 tokens


def stack() -> Stack:
    return Stack("half", (None,))


def composed(slots: int = SLOTS, frames: int = 2) -> Cascade:
    """Frames reach the memories one frame late: the window holds one."""
    return Cascade((Window(FRAME), FlashMemory(FRAME, slots, slots, frames)), "contiguous", FRAME)


def shown(pictures: list[int], cascade: Cascade | None = None, chunk: int | None = 13) -> tuple[Stack, Memory]:
    """A memory that has absorbed all pictures but the last, which is in the window."""
    layer = stack()
    memory = layer.memory(cascade or composed())
    layer.feed(memory, [t for p in pictures for t in PICTURES[p]], chunk)
    return layer, memory


def stored(memory: Memory) -> State:
    return memory.groups[0].lanes[0][0][0].states[-1]


def parts(memory: Memory) -> tuple[Entries, Entries, Entries]:
    """Digest, clusters, retrieved frames."""
    state = stored(memory)
    digest, rest = state["held"].split(min(int(state["absorbed"]), SLOTS))
    return digest, *rest.split(len(state["weight"]) * FRAME // 4)


def picture(layer: Stack, p: int) -> Tensor:
    """Keys [H, P, D] of a picture."""
    return layer.keys[0, torch.tensor(PICTURES[p])].transpose(0, 1)


def halved(key: Tensor) -> Tensor:
    """[H, 4, D]: means over the four quarters of a 4 x 4 picture, by hand."""
    corners = (0, 2, 8, 10)
    return torch.stack([torch.stack([key[:, c + d] for d in (0, 1, 4, 5)]).mean(0) for c in corners], 1)


def test_composition() -> None:
    memory = FlashMemory(16, 4, 4, 1, 0.2)
    assert FlashVStream().cascade(96) == Cascade((Sinks(16), Window(16), memory), "contiguous", 16)
    large = FlashVStream(sinks=0).cascade(4096)
    assert large.segments == (Window(3904), FlashMemory(16, 25, 25, 3))  # what the memories do not need is window
    assert FlashVStream().lossless().cascade(96).segments == (Sinks(16), Window(64))
    with pytest.raises(BudgetError, match=r"a budget of 90 has no room .* give at least 93, or smaller frames"):
        FlashVStream().cascade(90)
    assert FlashVStream().cascade(93)
    with pytest.raises(UsageError, match="a frame of 15 tokens is no square"):
        FlashVStream(frame=15).cascade(96)
    with pytest.raises(UsageError, match=r"share cannot be 1\.0"):
        FlashVStream(share=1.0).cascade(96)


def test_sizes_never_shrink_where_the_budget_grows() -> None:
    for method in (FlashVStream(), FlashVStream(frame=4), FlashVStream(share=0.3)):
        sizes = [method._sizes(left) for left in range(1, 1200)]
        assert all(b >= a for one, other in pairwise(sizes) for a, b in zip(one, other))
        for left, (window, clusters, frames) in enumerate(sizes, 1):
            memory = FlashMemory(method.frame, clusters, clusters, frames).entries
            assert window + memory <= left


def test_a_never_more_than_the_slots() -> None:
    layer = stack()
    memory, part = layer.memory(composed()), FlashMemory(FRAME, SLOTS, SLOTS, 2)
    for turn in range(12):
        layer.feed(memory, tokens(FRAME, turn))
        state = stored(memory)
        absorbed = turn  # the newest is in the window
        assert len(state["weight"]) == len(state["time"]) == min(absorbed, SLOTS)
        assert [len(p) for p in parts(memory)] == [
            min(absorbed, SLOTS), min(absorbed, SLOTS) * 4, min(absorbed, 2) * FRAME
        ]  # fmt: skip
        assert len(state["held"]) <= part.entries


def test_b_weights_sum_to_the_frames_absorbed() -> None:
    for seed in range(3):
        layer = stack()
        memory = layer.memory(composed())
        layer.feed(memory, tokens(FRAME * 20, seed), 7)
        assert float(stored(memory)["weight"].sum()) == int(stored(memory)["absorbed"]) == 19


def test_c_few_frames_are_kept_as_they_are() -> None:
    layer, memory = shown([0, 1, 2, 5], composed(frames=3))
    digest, clusters, retrieved = parts(memory)
    for i, p in enumerate((0, 1, 2)):
        key = picture(layer, p)
        assert difference(digest.key[:, i], key.mean(1)) < 1e-6
        assert difference(clusters.key[:, 4 * i : 4 * i + 4], halved(key)) < 1e-6
        assert torch.equal(retrieved.key[:, FRAME * i : FRAME * (i + 1)], key)
    assert retrieved.seen[0].tolist() == list(range(3 * FRAME))
    assert clusters.seen[0].tolist() == [FRAME * f + c for f in range(3) for c in (0, 2, 8, 10)]
    assert digest.seen[0].tolist() == [0, FRAME, 2 * FRAME]


def test_d_one_cluster_per_picture_however_they_come() -> None:
    """As many slots as pictures: one after the other gives what all at once gives."""
    order = [0, 1, 0, 2, 2, 0, 3, 1, 3, 3, 0, 2, 5]
    layer, memory = shown(order)
    weight, (_, clusters, _) = stored(memory)["weight"], parts(memory)
    features = torch.stack([halved(picture(layer, p)).flatten() for p in order[:-1]])
    once = kmeans(features, torch.ones(len(features)), SLOTS, 10)
    for i in range(SLOTS):
        mine = clusters.key[:, 4 * i : 4 * i + 4].flatten()
        [p] = [p for p in range(4) if difference(mine, halved(picture(layer, p)).flatten()) < 1e-5]
        assert int(weight[i]) == order[:-1].count(p)
        together = once == once[order.index(p)]
        assert together.tolist() == [q == p for q in order[:-1]]
        when = torch.tensor([FRAME * n for n, q in enumerate(order[:-1]) if q == p], dtype=torch.float64).mean()
        assert float(stored(memory)["time"][i]) == pytest.approx(float(when))
        assert int(clusters.seen[0, 4 * i]) == round(float(when))
    assert stored(memory)["time"].tolist() == sorted(stored(memory)["time"].tolist())


def test_equal_frames_leave_no_empty_clusters() -> None:
    _, memory = shown([0] * 10)
    assert stored(memory)["weight"].tolist() == [9.0]
    _, memory = shown([0] * 6 + [1] * 5)
    assert stored(memory)["weight"].tolist() == [6.0, 3.0, 1.0]  # free slots fill before frames are counted together


def test_retrieved_frames_are_those_of_the_largest_clusters() -> None:
    layer, memory = shown([4, 1, 1, 2, 1, 3, 2, 1, 2, 5])
    _, _, retrieved = parts(memory)
    found = {
        p for p in range(6) for i in range(2) if torch.equal(retrieved.key[:, 16 * i : 16 * i + 16], picture(layer, p))
    }
    assert found == {1, 2}


def test_the_digest_moves_by_the_ratio() -> None:
    layer, memory = shown([0, 1, 2, 3, 4, 5])
    means = [picture(layer, p).mean(1) for p in range(5)]  # [H, D]
    digest, _, _ = parts(memory)
    for head in range(2):
        scores = torch.stack([m[head] @ means[4][head] for m in means[:4]]) * 8**-0.5
        for i, share in enumerate((0.2 * scores.softmax(0)).tolist()):
            expected = (1 - share) * means[i][head] + share * means[4][head]
            assert difference(digest.key[head, i], expected) < 1e-6


def test_kmeans_finds_what_is_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.randint(0, 3, (40,), generator=generator)
    of = kmeans(centres[truth] + torch.randn(40, 2, generator=generator), torch.ones(40), 3, 10)
    assert len({(int(a), int(b)) for a, b in zip(of, truth)}) == 3
    heavy = kmeans(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([1.0, 5.0, 1.0]), 2, 10)
    assert heavy.tolist() == [0, 0, 1]


def test_pooling_a_square() -> None:
    entries = stack().memory(composed()).groups[0].branches[0][0].place.none()
    grid = torch.arange(16.0).view(1, 16, 1).expand(2, -1, 8)
    index = torch.arange(16).expand(2, -1)
    frame = Entries(grid, grid, index, torch.zeros(2, 16, dtype=torch.uint8), entries.place)
    assert pooled(frame, 2).key[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(frame, 4).value[0, :, 0].tolist() == [7.5]
