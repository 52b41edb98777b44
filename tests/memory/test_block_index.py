"""The index of blocks: that it finds what a scan finds, and that its runs say the same however they are joined."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.memory.block_index import BlockIndex, number

H, G, D, P, RUN = 2, 3, 8, 4, 32


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(points: Tensor, most: int) -> BlockIndex:
    index = BlockIndex.trained(points[:RUN])
    for first in range(0, len(points), RUN):
        index = index.with_run(first, index.codes(points[first : first + RUN]), most)
    return index


def test_joined_runs_list_the_same_blocks() -> None:
    points = random(11 * RUN, H, P, D)
    apart, joined = built(points, RUN), built(points, 4 * RUN)
    assert [len(run) for run in apart.runs] == [RUN] * 11
    assert [len(run) for run in joined.runs] == [4 * RUN, 4 * RUN, RUN, RUN, RUN]
    assert apart.sizes is not None
    assert joined.sizes is not None
    assert torch.equal(apart.sizes, joined.sizes)
    codes = apart.codes(points)  # by hand: each block stands once in the list of each centre that is nearest to a point
    near = torch.cdist(points.transpose(0, 1).flatten(1, 2), apart.book).argmin(-1).view(H, len(points), P)
    assert torch.equal(codes.long(), near.transpose(0, 1))
    expected = torch.zeros(H, number(RUN * P))
    for h in range(H):
        for block in near[h].tolist():
            for code in set(block):
                expected[h, code] += 1
    assert torch.equal(apart.sizes, expected)
    for seed in range(5):
        query = random(H, G, 2, D, seed=seed)
        assert torch.equal(apart.search(query, 40, 20), joined.search(query, 40, 20))


def by_hand(points: Tensor, index: BlockIndex, query: Tensor, oldest: int, most: int) -> set[int]:
    """The search as its module tells it, block by block."""
    sizes, book = index.sizes, index.book
    assert sizes is not None
    best: dict[tuple[int, int], float] = {}  # what a list is worth
    for h in range(H):
        for q in query[h].flatten(0, 1):
            weights = (book[h] @ q).exp() * (sizes[h] > 0)
            share = weights / (weights * sizes[h]).sum()
            for code in share.topk(2).indices.tolist():
                best[h, code] = max(best.get((h, code), 0.0), float(share[code]))
    codes = index.codes(points)
    worth = {}
    for block in range(oldest, len(points)):
        lists = {(h, code) for h in range(H) for code in codes[block, h].tolist()}
        worth[block] = sum(best.get(each, 0.0) for each in lists)
    newest = {block: worth[block] or 1e-30 for block in range(len(points) - most, len(points))}
    return set(sorted(worth | newest, key=lambda block: (worth | newest)[block])[-most:])


def test_the_search_is_what_it_says() -> None:
    points = random(9 * RUN, H, P, D, seed=4)
    index = built(points, 4 * RUN)
    for seed in range(4):
        query = random(H, G, 1, D, seed=10 + seed)
        assert set(index.search(query, 7, 12).tolist()) == by_hand(points, index, query, 7, 12)


def test_the_search_finds_what_stands_out() -> None:
    """Keys are those of a few words; the blocks with the word that a query asks for are among the few it looks at."""
    words, query = random(6, D, seed=2) * 2, random(H, G, 1, D, seed=1)
    rare = query.mean((0, 1, 2)) * 6
    which = torch.randint(0, 6, (20 * RUN, H, P), generator=torch.Generator().manual_seed(3))
    points = words[which] + 0.05 * random(20 * RUN, H, P, D)
    wanted = {5, 7 * RUN - 1, 11 * RUN, 19 * RUN + 9}
    for block in wanted:
        points[block, :, 0] = rare
    found = built(points, 4 * RUN).search(query, 3, 8)
    assert len(found) == 8
    assert wanted <= set(found.tolist())
    assert torch.equal(found, found.unique())
    later = built(points, 4 * RUN).search(query, 6, 8)
    assert wanted - {5} <= set(later.tolist())
    assert later.min() >= 6


def test_old_runs_are_let_go() -> None:
    points, query = random(8 * RUN, H, P, D), random(H, G, 1, D, seed=1)
    index = built(points, RUN)
    later = index.since(3 * RUN)
    assert [run.first for run in later.runs] == [n * RUN for n in range(3, 8)]
    assert index.since(3 * RUN - 1).runs[0].first == 2 * RUN
    assert len(index.runs) == 8, "values do not change"
    found = later.search(query, 3 * RUN + 5, 16)
    assert found.min() >= 3 * RUN + 5
    assert later.search(query, 8 * RUN - 9, 16).tolist() == list(range(8 * RUN - 9, 8 * RUN))
    assert not len(later.search(query, 8 * RUN, 16))
    assert sum(b.data.untyped_storage().nbytes() for b in later.buffers) < sum(
        b.data.untyped_storage().nbytes() for b in index.buffers
    )


def test_a_head_that_is_sure_outweighs_one_that_is_loud() -> None:
    """A loud head gives all blocks alike, a quiet one knows one of them."""
    points = torch.zeros(4 * RUN, 1, 1, D)
    points[..., 0] = 30
    wanted = 2 * RUN + 9
    points[wanted, 0, 0, 1] = points[3, 0, 0, 1] = 6
    query = torch.zeros(1, 2, 1, D)
    query[0, 0, 0, 0] = query[0, 1, 0, 1] = 1
    assert wanted in built(points, RUN).search(query, 0, 8).tolist()
