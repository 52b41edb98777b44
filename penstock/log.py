"""The log of a session: what entered the memory, in which order, token-exact.

An order, not a store: a count, a rolling hash and a bounded tail in memory.  The full log is an optional file of
little-endian int32 token ids, from which evicted text can be found again.

What the file cannot take (a full disk) stays in memory and is written with the next tokens: the log itself is never
behind the session.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import NotRewindable, OutputError

TAIL = 4096  # tokens kept in memory
BLOCK = 256  # tokens per link of the hash chain


class Tail:
    """The newest `most` of a row of tokens, four bytes each (a list needs forty), in one buffer that never moves."""

    def __init__(self, most: int, tokens: Iterable[int] = ()) -> None:
        self.most = most
        self._ring = array("i", bytes(4 * most))
        self._end = self._length = 0  # the next place is _end % most
        self.extend(tokens)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self.last(self._length))

    def __getitem__(self, index: int) -> int:
        return self.last(self._length)[index]

    def last(self, count: int) -> array[int]:
        """The newest `count`; all, if there are fewer."""
        count = min(count, self._length)
        start = (self._end - count) % self.most
        return self._ring[start : start + count] + self._ring[: max(0, start + count - self.most)]

    def extend(self, tokens: Iterable[int]) -> None:
        """More come; the oldest go."""
        new = array("i", tokens)[-self.most :]
        at = self._end % self.most
        first = min(len(new), self.most - at)
        self._ring[at : at + first] = new[:first]
        self._ring[: len(new) - first] = new[first:]
        self._end += len(new)
        self._length = min(self.most, self._length + len(new))

    def cut(self, count: int) -> None:
        """Forget the newest `count`."""
        self._end -= count
        self._length -= count


class TokenLog:
    """Counts and chains tokens.  `digest` after n tokens depends on all n and their order, not on how they arrived."""

    def __init__(self, tail: int = TAIL, sink: Path | None = None) -> None:
        self.count = 0
        self.tail = Tail(tail)
        self._chains: deque[bytes] = deque([b"\0" * 16], maxlen=tail // BLOCK + 1)  # one per block, newest last
        self._block = array("i")  # tokens since the last full block
        self._sink = sink
        self._sink_start: int | None = None  # tokens of other streams in front of ours; None: not looked yet
        self._sink_size = 0  # tokens in the file, those in front included
        self._unwritten = array("i")

    def append(self, tokens: Sequence[int]) -> None:
        """Record tokens that enter the memory; raises OutputError when the file cannot be written."""
        self.count += len(tokens)
        self.tail.extend(tokens)
        for token in tokens:
            self._block.append(token)
            if len(self._block) == BLOCK:
                self._chains.append(self._folded())
                self._block = array("i")
        if self._sink is not None:
            self._unwritten.extend(tokens)
            self._write(self._sink)

    def _write(self, sink: Path) -> None:
        try:
            with sink.open("ab") as file:
                if self._sink_start is None:
                    self._sink_start = self._sink_size = file.tell() // 4
                if file.tell() > self._sink_size * 4:
                    file.truncate(self._sink_size * 4)  # what a failed write has left
                file.write(self._unwritten.tobytes())
        except OSError as error:
            raise OutputError(f"the log {sink} cannot be written ({error.strerror}): free space.") from None
        self._sink_size += len(self._unwritten)
        self._unwritten = array("i")

    def _folded(self) -> bytes:
        return hashlib.blake2b(self._chains[-1] + self._block.tobytes(), digest_size=16).digest()

    @property
    def digest(self) -> str:
        """A hash of everything recorded."""
        return self._folded().hex()

    @property
    def rewindable(self) -> int:
        """How many of the newest tokens can be taken back: whole blocks of the tail, and the unfinished one."""
        blocks = min(len(self._chains) - 1, (len(self.tail) - len(self._block)) // BLOCK)
        return min(len(self.tail), len(self._block)) + max(0, blocks) * BLOCK

    def truncate(self, count: int) -> None:
        """Forget the newest tokens, as if they had never been recorded; within the tail."""
        gone = self.count - count
        if not 0 <= gone <= self.rewindable:
            raise NotRewindable(f"the log can take back {self.rewindable} tokens, not {gone}: resume a snapshot.")
        while gone > len(self._block):
            self._chains.pop()
            first = self.count - len(self._block) - BLOCK
            self._block = array("i", self.slice(first, first + BLOCK)) + self._block
        del self._block[len(self._block) - gone :]
        self.tail.cut(gone)
        self.count = count
        self._cut_sink(gone)

    def clear(self) -> None:
        """Begin again: a new stream."""
        self._cut_sink(self.count)
        self.count = 0
        self.tail = Tail(self.tail.most)
        self._chains = deque([b"\0" * 16], maxlen=self._chains.maxlen)
        self._block = array("i")

    def _cut_sink(self, gone: int) -> None:
        """Take the newest `gone` tokens out of the file; one that was begun later may not hold them all."""
        waiting = min(gone, len(self._unwritten))
        del self._unwritten[len(self._unwritten) - waiting :]
        if self._sink is None or self._sink_start is None or gone == waiting:
            return
        size = max(self._sink_start, self._sink_size - (gone - waiting))
        try:
            with self._sink.open("r+b") as file:
                file.truncate(size * 4)
        except OSError as error:
            raise OutputError(f"the log {self._sink} cannot be cut ({error.strerror}): check the file.") from None
        self._sink_size = size

    def slice(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) by index in the stream, as far as the tail still has them."""
        newest = self.tail.last(max(0, self.count - start))
        return newest[: max(0, len(newest) - max(0, self.count - stop))].tolist()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        chains = [chain.hex() for chain in self._chains]
        return {"count": self.count, "tail": list(self.tail), "chains": chains, "block": list(self._block)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.count = int(state["count"])
        self.tail = Tail(self.tail.most, state["tail"])
        self._chains = deque((bytes.fromhex(c) for c in state["chains"]), maxlen=self._chains.maxlen)
        self._block = array("i", state["block"])

    def copy(self) -> TokenLog:
        """An independent log with the same past; the copy has no file."""
        other = TokenLog(self.tail.most)
        other.load_state_dict(self.state_dict())
        return other
