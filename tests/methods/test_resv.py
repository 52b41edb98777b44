"""resv against its card: checks (a) to (d), the table against a literal loop, and what a query reads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from penstock.errors import BudgetError, UsageError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.merging import codes
from penstock.memory.parts import State
from penstock.methods.resv import Clusters, ReSV
from tests.memory.stack import Stack, difference, tokens

UNIT, SINKS, WINDOW = 4, 4, 8


def stack(encoding: str = "none") -> Stack:
    return Stack(encoding, (None,))


def composed(size: int = 40, clusters: int = 40, positions: str = "contiguous", **options: object) -> Cascade:
    store = Clusters(size, clusters, **options)  # type: ignore[arg-type]
    return Cascade((Sinks(SINKS), Window(WINDOW), store), positions, UNIT)


def stored(memory: Memory) -> State:
    return memory.groups[0].lanes[0][0][0].states[2]


def test_composition() -> None:
    parts = (Sinks(4), Window(19), Clusters(57, 14, 0.3, 6, 32))
    assert ReSV().cascade(96) == Cascade(parts, "contiguous", 16)
    assert ReSV().lossless() == ReSV(share=1.0)
    with pytest.raises(BudgetError, match="too small for resv: give at least 24"):
        ReSV().cascade(23)
    with pytest.raises(UsageError, match=r"share cannot be 1\.5"):
        ReSV(share=1.5).cascade(96)
    with pytest.raises(UsageError, match="codes of 0 bits"):
        ReSV(bits=0).cascade(96)


@pytest.mark.parametrize("encoding", ["none", "half", "alibi"])
def test_a_the_whole_share_is_dense(encoding: str) -> None:
    layer, stream = stack(encoding), tokens(50)
    dense = layer.feed(layer.memory(Cascade((Window(99),), "stream")), stream)
    whole, some = (layer.feed(layer.memory(composed(share=share)), stream, 7) for share in (1.0, 0.3))
    assert difference(whole, dense) < 1e-6
    assert difference(some, dense) > 1e-3


def test_b_at_distance_zero_only_equal_codes_meet() -> None:
    layer, stream = stack(), tokens(60)
    memory = layer.memory(composed(60, 60, distance=0, bits=3))
    layer.feed(memory, stream)
    state = stored(memory)
    for head in range(layer.kv_heads):
        of, code = state["of"][head], codes(state["held"].key[head], 3, 0)
        for i in range(len(of)):
            for j in range(len(of)):
                assert bool(of[i] == of[j]) == torch.equal(code[i], code[j])


def test_c_equal_keys_are_one_cluster() -> None:
    layer = stack()
    memory = layer.memory(composed())
    layer.feed(memory, [7] * 40)
    count, mean = stored(memory)["count"], stored(memory)["mean"]
    assert count[:, 0].tolist() == [40 - SINKS - WINDOW] * 2
    assert int(count[:, 1:].sum()) == 0
    assert difference(mean[:, 0], layer.keys[0, 7]) < 1e-6


def test_d_more_share_reads_more() -> None:
    layer = stack()
    memory = layer.memory(composed())
    layer.feed(memory, tokens(52))
    query = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    count = stored(memory)["count"][:, None, None]
    read, before = [], None
    for share in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0):
        chosen = Clusters(40, 40, share).choose(stored(memory), query)
        assert before is None or bool((chosen | ~before).all())
        before = chosen
        read.append(int((chosen * count).sum()))
    assert read == sorted(read)
    assert read[0] < read[2] < read[-1] == 40 * 20  # the best cluster alone; some; everything


def literal(keys: Tensor, size: int, clusters: int, distance: int, bits: int) -> list[list[int]]:
    """Members of each cluster after keys [N, D] arrived in units: the card's table, by rows."""
    code = codes(keys.float(), bits, 0)
    rows: list[dict] = [{"code": None, "members": []} for _ in range(clusters)]
    held: list[int] = []
    for start in range(0, len(keys), UNIT):
        for _ in range(max(0, len(held) + UNIT - size)):
            oldest = held.pop(0)
            for row in rows:
                row["members"] = [m for m in row["members"] if m != oldest]
        for j in range(start, start + UNIT):
            apart = [int((code[j] ^ r["code"]).sum()) if r["members"] else bits + 1 for r in rows]
            at = apart.index(min(apart))
            empty = [i for i, r in enumerate(rows) if not r["members"]]
            if min(apart) > distance and empty:
                at = empty[0]
                rows[at]["code"] = code[j]
            rows[at]["members"].append(j)
            held.append(j)
    return [row["members"] for row in rows]


@pytest.mark.parametrize(("clusters", "distance"), [(20, 2), (20, 5), (4, 2)])
def test_the_table_is_that_of_the_loop(clusters: int, distance: int) -> None:
    """Also when the oldest leave and when the table is full."""
    layer, stream, size = stack(), tokens(132), 20
    memory = layer.memory(composed(size, clusters, distance=distance, bits=16))
    layer.feed(memory, stream, 13)
    state, gone = stored(memory), torch.tensor(stream[SINKS:-WINDOW])
    first = int(state["held"].seen[0, 0])
    for head in range(layer.kv_heads):
        keys = layer.keys[0, gone, head]
        expected = literal(keys, size, clusters, distance, 16)
        for row, members in enumerate(expected):
            got = (state["of"][head] == row).nonzero()[:, 0] + first - SINKS
            assert got.tolist() == members
            assert int(state["count"][head, row]) == len(members)
            if members:
                assert difference(state["mean"][head, row], keys[members].double().mean(0)) < 1e-5


def test_a_query_reads_the_best_clusters_until_they_carry_the_share() -> None:
    layer, stream, share = stack(), tokens(55), 0.5
    memory = layer.memory(composed(share=share, distance=11))
    got = layer.feed(memory, stream)[0, -1]
    state, ids = stored(memory), torch.tensor(stream)
    last = (len(ids) - 1) // UNIT * UNIT - WINDOW
    for head in range(layer.heads):
        kv = head // (layer.heads // layer.kv_heads)
        query = layer.queries[0, ids[-1], head].double()
        key, value = (t[0, ids, kv].double() for t in (layer.keys, layer.values))
        of = state["of"][kv].tolist()
        members = {c: [i + SINKS for i, x in enumerate(of) if x == c] for c in set(of)}
        score = {c: float(query @ key[m].mean(0)) * layer.scale for c, m in members.items()}
        total = sum(len(members[c]) * math.exp(score[c]) for c in members)
        read, carried = [*range(SINKS), *range(last, len(ids))], 0.0
        for c in sorted(members, key=lambda c: -score[c]):
            read += members[c]
            carried += len(members[c]) * math.exp(score[c])
            if carried > share * total:
                break
        assert len(read) < len(ids)
        weights = (key[read] @ query * layer.scale).softmax(0)
        assert difference(got[head], weights @ value[read]) < 1e-5


def test_what_leaves_is_given_up() -> None:
    layer = stack()
    memory = layer.memory(composed(12, 6))
    layer.feed(memory, tokens(200), 7)
    held = stored(memory)["held"]
    assert held.seen[0].tolist() == list(range(200 - WINDOW - 12, 200 - WINDOW))
    assert int(stored(memory)["count"].sum()) == 2 * 12
