"""Which physical block is which id of a store: pages of ids that forks share.

A fork copies a list of pages (59 for 60,000 blocks); the ids themselves are shared.  A page is append-only: a table
writes behind its last entry as long as nobody else has, otherwise it goes on in a copy of its own.

    original   [page 0][page 1][page 2 ····]        used = the longest of its users
    fork       [page 0][page 1][page 2 ··]          appends: a copy of page 2, cut at its count

A page holds one reference to each block in it, however many tables share the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

PAGE = 1024  # ids
Ids = NDArray[np.int64]


class Blocks(Protocol):
    """Whoever counts the references to physical blocks."""

    def retain(self, blocks: Ids) -> None:
        """One reference more to each."""

    def release(self, blocks: Ids) -> None:
        """One reference less to each; a block without references is forgotten."""

    def gone(self, blocks: Ids) -> NDArray[np.bool_]:
        """Which of them no tier holds any more."""


class Page:
    """`PAGE` consecutive ids from `start`: the physical block of each, -1 for one that is known to be lost."""

    __slots__ = ("blocks", "start", "used", "users")

    def __init__(self, start: int) -> None:
        self.start, self.used = start, 0
        self.blocks: Ids = np.empty(PAGE, dtype=np.int64)
        self.users: WeakSet[Table] = WeakSet()  # tables hold their pages

    def held(self, first: int = 0, last: int | None = None) -> Ids:
        """The blocks at these offsets that are not known to be lost."""
        part = self.blocks[first : self.used if last is None else last]
        return part[part >= 0]


class Table:
    """The ids 0 .. count - 1 of one store.  A page of which every block is gone is None."""

    __hash__ = object.__hash__

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.count = 0
        self.first = 0  # pages before this one are gone and not listed
        self.pages: list[Page | None] = []
        self._oldest = 0

    def __len__(self) -> int:
        return self.count

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, index: int) -> int:
        """The physical block of an id, -1 if there is none."""
        at = index // PAGE - self.first
        if not 0 <= index < self.count or at < 0:
            return -1
        page = self.pages[at]
        return -1 if page is None else int(page.blocks[index % PAGE])

    def find(self, ids: Sequence[int] | Ids) -> Ids:
        """`get` of each."""
        wanted = np.array(ids, dtype=np.int64)
        out = np.full(len(wanted), -1)
        if not len(wanted):
            return out
        ends = [0, *(np.flatnonzero(np.diff(wanted // PAGE)) + 1).tolist(), len(wanted)]
        for start, stop in pairwise(ends):  # neighbours are mostly of one page
            some = wanted[start:stop]
            at = int(some[0]) // PAGE - self.first
            page = self.pages[at] if 0 <= at < len(self.pages) else None
            if page is not None:
                out[start:stop] = np.where(some < self.count, page.blocks[some % PAGE], -1)
        return out

    @property
    def oldest(self) -> int:
        """The smallest id of which a tier may still hold the block; `count` if there is none."""
        while self._oldest < self.count:
            block = self.get(self._oldest)
            if block >= 0 and not self.blocks.gone(np.array([block]))[0]:
                break
            at = self._oldest // PAGE - self.first
            whole = at < 0 or self.pages[at] is None
            self._oldest = (self._oldest // PAGE + 1) * PAGE if whole else self._oldest + 1
        self._oldest = min(self._oldest, self.count)
        return self._oldest

    def live(self) -> Iterator[Page]:
        """The pages that are not gone."""
        return (page for page in self.pages if page is not None)

    # -- writing ------------------------------------------------------------------------------------------------

    def append(self, block: int) -> int:
        """Give the next id to a physical block, whose one reference the table takes over."""
        at = self.count // PAGE - self.first
        if at == len(self.pages):
            self._sweep()
            at = self.count // PAGE - self.first
            self.pages.append(None)
        page = self.pages[at]
        offset = self.count % PAGE
        if page is None or page.used != offset:
            page = self.pages[at] = self._own(page, offset)
        page.blocks[offset] = block
        page.used = offset + 1
        self.count += 1
        return self.count - 1

    def truncate(self, count: int) -> None:
        """Forget the ids from `count` on."""
        self.count = count
        self._oldest = min(self._oldest, count)
        keep = max(0, -(-count // PAGE) - self.first)
        left, self.pages = self.pages[keep:], self.pages[:keep]
        self._reopen()
        for page in left:
            if page is not None:
                page.users.discard(self)
                self._trim(page)
        if self.pages and self.pages[-1] is not None:
            self._trim(self.pages[-1])

    def fork(self, count: int) -> Table:
        """A table that shares the first `count` ids."""
        other = Table(self.blocks)
        other.count, other._oldest = count, min(self._oldest, count)
        other.first = self.first
        other.pages = self.pages[: max(0, -(-count // PAGE) - self.first)]
        other._reopen()
        for page in other.live():
            page.users.add(other)
        return other

    def close(self) -> None:
        """Give every reference back."""
        self.truncate(0)

    # -- pages --------------------------------------------------------------------------------------------------

    def _page(self, index: int) -> Page:
        page = Page(index // PAGE * PAGE)
        page.users.add(self)
        return page

    def _own(self, shared: Page | None, offset: int) -> Page:
        """A page of this table alone with the first `offset` entries of a shared one (of a gone one: lost entries)."""
        page = self._page(self.count)
        page.used = offset
        page.blocks[:offset] = -1
        if shared is not None:
            page.blocks[:offset] = shared.blocks[:offset]
            self.blocks.retain(page.held())
            shared.users.discard(self)
            self._trim(shared)
        return page

    def _trim(self, page: Page) -> None:
        """Release the entries that no user of the page reaches any more."""
        reach = max((min(PAGE, user.count - page.start) for user in page.users), default=0)
        if reach < page.used:
            loose = page.held(reach)
            page.used = reach
            self.blocks.release(loose)

    def _reopen(self) -> None:
        """After a cut among pages that are gone: list the last one again, for the entries before the cut."""
        if self.first > self.count // PAGE:
            self.first, rest = divmod(self.count, PAGE)
            self.pages = [None] if rest else []

    def _sweep(self) -> None:
        """Let go of pages whose blocks are all gone; done once per page of appends, so it costs little per block."""
        for at, page in enumerate(self.pages):
            if page is None or page.used < PAGE:
                continue
            held = page.held()
            if self.blocks.gone(held).all():
                page.users.discard(self)
                self._trim(page)
                self.pages[at] = None
        gone = next((at for at, page in enumerate(self.pages) if page is not None), len(self.pages))
        self.first += gone
        del self.pages[:gone]
