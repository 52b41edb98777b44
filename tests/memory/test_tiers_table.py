"""Tables of ids that forks share: against lists, and with every reference counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.memory.tiers import table as module
from penstock.memory.tiers.table import Table


class Counting:
    """Blocks that only count: how many pages hold each."""

    def __init__(self) -> None:
        self.refs: Counter[int] = Counter()
        self.lost: set[int] = set()
        self._next = 0

    def new(self) -> int:
        self._next += 1
        self.refs[self._next] = 1
        return self._next

    def retain(self, blocks: NDArray[np.int64]) -> None:
        self.refs.update(blocks.tolist())

    def release(self, blocks: NDArray[np.int64]) -> None:
        for block in blocks.tolist():
            self.refs[block] -= 1
            assert self.refs[block] >= 0, f"block {block} was released twice"

    def gone(self, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.array([block in self.lost for block in blocks.tolist()], dtype=bool)

    def held(self) -> set[int]:
        return {block for block, refs in self.refs.items() if refs}


OPS = st.lists(st.tuples(st.sampled_from(["append", "append", "truncate", "fork", "close", "lose"]),
                         st.integers(0, 3), st.floats(0, 1)), max_size=60)  # fmt: skip


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 4)


CUT_AMONG_THE_GONE = [
    ("append", 0, 0.0),
    ("append", 0, 1.0),
    ("lose", 0, 1.0),
    ("append", 0, 0.0),
    ("truncate", 0, 0.25),
]


@given(OPS)
@example(CUT_AMONG_THE_GONE)  # once an IndexError: the page that the cut fell in was no longer listed
def test_tables_are_lists_that_share_their_entries(ops: list[tuple[str, int, float]]) -> None:
    module.PAGE = 4  # type: ignore[misc]  # hypothesis enters the fixture once for all examples
    blocks = Counting()
    tables, models = [Table(blocks)], [[]]
    for op, which, share in ops:
        if not tables:
            break
        which %= len(tables)
        table, model = tables[which], models[which]
        if op == "append":
            for _ in range(1 + int(share * 6)):
                block = blocks.new()
                assert table.append(block) == len(model)
                model.append(block)
        elif op == "truncate":
            count = round(share * len(model))
            table.truncate(count)
            del model[count:]
        elif op == "fork" and len(tables) < 4:
            count = round(share * len(model))
            tables.append(table.fork(count))
            models.append(model[:count])
        elif op == "close":
            table.close()
            del tables[which], models[which]
        elif op == "lose":
            blocks.lost |= set(model[: round(share * len(model))])
        for table, model in zip(tables, models):
            assert len(table) == len(model)
            got = [table.get(i) for i in range(-1, len(model) + 1)]
            assert table.find(range(-1, len(model) + 1)).tolist() == got
            assert got[0] == got[-1] == -1
            assert all(g == m or (g == -1 and m in blocks.lost) for g, m in zip(got[1:-1], model))
            assert table.oldest == next((i for i, m in enumerate(model) if m not in blocks.lost), len(model))
        wanted = {block for model in models for block in model}
        assert wanted - blocks.lost <= blocks.held() <= wanted, "a block is kept for nobody, or forgotten too early"
    for table in tables:
        table.close()
    assert not blocks.held()


def test_pages_of_lost_blocks_are_let_go() -> None:
    blocks = Counting()
    table = Table(blocks)
    for index in range(400):
        block = blocks.new()
        table.append(block)
        if index >= 10:
            blocks.lost.add(block - 10)
    assert len(table.pages) <= 5
    assert len(blocks.held()) <= 10 + 2 * 4
    assert table.oldest == 390


def test_a_fork_copies_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 1024)
    blocks = Counting()
    table = Table(blocks)
    for _ in range(3000):
        table.append(blocks.new())
    before = blocks.refs.copy()
    other = table.fork(2999)
    assert all(mine is theirs for mine, theirs in zip(table.pages, other.pages))
    assert blocks.refs == before
    other.append(blocks.new())  # now the last page is its own
    assert [mine is theirs for mine, theirs in zip(table.pages, other.pages)] == [True, True, False]
    assert table.get(2999) != other.get(2999)
