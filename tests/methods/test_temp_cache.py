"""temp-cache against its card: checks (a) to (c), and the store against a literal loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.parts import State
from penstock.methods.temp_cache import Duplicates, TempCache
from tests.memory.stack import Stack, difference, tokens

UNIT = 4


def stack(encoding: str = "none") -> Stack:
    return Stack(encoding, (None,))


def composed(size: int, threshold: float = 0.999, search: str = "exact", sinks: int = 0) -> Cascade:
    return Cascade((Sinks(sinks), Duplicates(size, threshold, search)), "contiguous", UNIT)


def stored(memory: Memory) -> State:
    return memory.groups[0].lanes[0][0][0].states[1]


def test_composition() -> None:
    expected = Cascade((Sinks(4), Duplicates(76, 0.95, "exact")), "contiguous", 16)
    assert TempCache().cascade(96) == expected
    assert TempCache(seed=3).cascade(96).segments[1] == Duplicates(76, 0.95, seed=3)
    assert TempCache().lossless().threshold > 1
    with pytest.raises(BudgetError, match=r"too small for temp-cache: give at least 36"):
        TempCache().cascade(35)
    with pytest.raises(UsageError, match=r"threshold cannot be 0\.0"):
        TempCache(threshold=0.0).cascade(96)


def test_a_merged_duplicates_are_dense_attention() -> None:
    """Equal keys with different values: one entry with the mean value and the logarithm of the count is exact."""
    layer = stack()
    layer.keys[0, 10:20] = layer.keys[0, 0:10]
    layer.keys[0, 20:30] = layer.keys[0, 0:10]
    stream = [i + 10 * k for k in (0, 1, 2, 1, 0, 2) for i in range(8)]  # 8 keys, 6 times each, values of 3 kinds
    memory = layer.memory(composed(64))
    got = layer.feed(memory, stream, 5)
    dense = layer.feed(layer.memory(Cascade((Window(200),))), stream)
    assert len(stored(memory)["held"]) == 8
    assert stored(memory)["count"].tolist() == [[6] * 8] * 2
    assert difference(got, dense) < 1e-6


@pytest.mark.parametrize("search", ["exact", "lsh", "quantised"])
def test_b_above_one_nothing_merges(search: str) -> None:
    layer, stream = stack("half"), tokens(60)
    got = layer.feed(layer.memory(composed(64, 2.0, search, sinks=4)), stream, 7)
    dense = layer.feed(layer.memory(Cascade((Sinks(4), Window(64)), "contiguous", UNIT)), stream, 7)
    assert torch.equal(got, dense)
    merging = layer.feed(layer.memory(composed(64, 0.999, search, sinks=4)), stream, 7)
    assert difference(merging, dense) > 1e-3


@pytest.mark.parametrize("search", ["exact", "lsh", "quantised"])
def test_c_repeated_frames_take_no_room(search: str) -> None:
    layer = stack("half")
    memory = layer.memory(composed(64, 0.999, search))
    for turn in range(1, 6):
        layer.feed(memory, list(range(3 * UNIT)))  # a picture of three units, again and again
        state = stored(memory)
        assert len(state["held"]) == 3 * UNIT
        assert bool((state["count"] == turn).all())
        newest = torch.arange((turn - 1) * 3 * UNIT, turn * 3 * UNIT)
        assert torch.equal(state["held"].seen[0], newest)


def test_heads_merge_apart() -> None:
    """Keys that are alike in one head only: the other keeps both, and the empty place is not read."""
    layer = stack()
    layer.keys[0, 10:14, 0] = layer.keys[0, 0:4, 0]
    memory, stream = layer.memory(composed(32)), [0, 1, 2, 3, 10, 11, 12, 13, 30]
    got = layer.feed(memory, stream)
    held, count = stored(memory)["held"], stored(memory)["count"]
    assert count.tolist() == [[0] * 4 + [2] * 4, [1] * 8]
    assert held.seen.tolist() == [[-1] * 4 + [4, 5, 6, 7], list(range(8))]
    assert difference(got, layer.feed(layer.memory(Cascade((Window(99),))), stream)) < 1e-6  # equal keys: still exact
    assert memory.remembered()[0] == range(9)


def literal(keys: Tensor, values: Tensor, size: int, threshold: float) -> list[tuple[Tensor, Tensor, int, int]]:
    """The store of one head after keys [N, D], in stream order: (key, value, count, newest)."""
    store: list[list] = []
    for start in range(0, len(keys), UNIT):
        fresh: list[list] = []
        old = [list(e) for e in store]
        for j in range(start, start + UNIT):
            near = [round(float(torch.cosine_similarity(keys[j], e[0], 0)), 9) for e in old]
            if near and max(near) >= threshold:
                into = store[near.index(max(near))]
                into[1] = (into[1] * into[2] + values[j]) / (into[2] + 1)
                into[2], into[3] = into[2] + 1, j
            else:
                fresh.append([keys[j], values[j], 1, j])
        store += fresh
        now = start + UNIT
        store.sort(key=lambda e: math.log(e[2]) - (now - e[3]) / size, reverse=True)
        store = sorted(store[:size], key=lambda e: e[3])
    return [(e[0], e[1], e[2], e[3]) for e in store]


@pytest.mark.parametrize("threshold", [0.5, 0.999])
def test_the_store_is_that_of_the_loop(threshold: float) -> None:
    layer, stream, size = stack(), tokens(160), 12
    memory = layer.memory(composed(size, threshold))
    layer.feed(memory, stream, 13)
    state, ids = stored(memory), torch.tensor(stream)
    for head in range(layer.kv_heads):
        expected = literal(layer.keys[0, ids, head].double(), layer.values[0, ids, head].double(), size, threshold)
        used = state["held"].seen[head] >= 0
        assert state["held"].seen[head][used].tolist() == [e[3] for e in expected]
        assert state["count"][head][used].tolist() == [e[2] for e in expected]
        assert difference(state["held"].key[head][used], torch.stack([e[0] for e in expected])) < 1e-6
        assert difference(state["held"].value[head][used], torch.stack([e[1] for e in expected])) < 1e-5


def test_the_limit_holds_and_what_is_frequent_stays() -> None:
    layer, size = stack(), 12
    memory = layer.memory(composed(size))
    layer.feed(memory, [0, 1, 2, 3] * 8)
    layer.feed(memory, list(range(10, 34)))  # 24 new ones pass
    held = stored(memory)["held"]
    assert len(held) == size
    assert {28, 29, 30, 31} <= set(held.seen[0].tolist())  # the picture seen eight times
    layer.feed(memory, list(range(10, 50)))
    assert not {28, 29, 30, 31} & set(stored(memory)["held"].seen[0].tolist())  # not for ever


def test_approximate_searches_find_what_is_equal_and_nothing_below_the_threshold() -> None:
    layer, ids = stack(), torch.arange(32)
    held = layer.memory(composed(64))
    layer.feed(held, ids.tolist())
    entries, key = stored(held)["held"], layer.keys[0, ids].transpose(0, 1)
    near = torch.nn.functional.normalize(key, dim=-1)
    near = near @ near.transpose(1, 2)
    noisy = key + 0.05 * torch.randn(key.shape, generator=torch.Generator().manual_seed(1))
    for search in ("lsh", "quantised"):
        part = Duplicates(64, 0.95, search)
        assert torch.equal(part.match(key, entries), ids.expand(2, -1))
        found = part.match(noisy, entries)
        assert bool(((found == ids) | (found == -1)).all())
        assert float((found == ids).float().mean()) > 0.6
