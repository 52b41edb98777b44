"""The conversation on the stream: which tokens are whose, what can be taken back, what of it the memory holds.  Pure.

All that changes the stream is a flow: it yields one Put, and nothing has changed here if that is refused.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from penstock.models.chat import Turns
from penstock.serve.asked import Finished
from penstock.serve.realtime.items import Item, Items
from penstock.serve.realtime.outputs import Flow, Out, Put
from penstock.serve.realtime.script import NOTHING, Part, Placed, Script
from penstock.serve.refusal import Refusal


class Conversation:
    """Items and the length of the stream; `window` tokens stay in the memory (None: all of them)."""

    def __init__(
        self, turns: Turns | None, window: int | None, said: str = "", tokens: int = 0, items: Items | None = None
    ) -> None:  # fmt: skip
        self.turns, self.window, self.said, self.items = turns, window, said, items or Items()
        self.length = tokens  # of the stream, as far as it was written from here
        self._answers = 0  # answers that are in `length`
        self._told: Item | None = None  # the newest instructions
        self._read = 0  # what the last response had read

    def id_before(self, item: Item) -> str | None:
        """The id of the item in front of one."""
        at = next((index for index, each in enumerate(self.items.all) if each is item), len(self.items.all))
        return self.items.id_before(at)

    # -- writing -------------------------------------------------------------------------------------------------

    def _written(self, script: Script, items: Sequence[Item]) -> tuple[list[str], list[list[Part]]]:
        befores, groups = [], []
        for item in items:
            befores.append(script.state)
            groups.append(script.answer(item.text) if item.is_spoken else script.message(item.role, item.text))
        return befores, groups

    def _placed(self, script: Script, items: Sequence[Item], befores: Sequence[str], placed: Placed) -> None:
        starts = [placed.start, *placed.ends]
        for item, before, start, end in zip(items, befores, starts, placed.ends):
            item.before, item.start, item.end, item.answers = before, start, end, placed.answers
            if item.is_hidden:
                self._told = item
        self.said, self.length, self._answers = script.state, starts[-1], placed.answers

    def append(self, items: Sequence[Item]) -> Flow:
        """Items go behind the stream."""
        script = Script(self.turns, self.said)
        befores, groups = self._written(script, items)
        placed = yield Put(groups, script.state)
        self._placed(script, items, befores, placed)
        for item in items:
            self.items.insert(len(self.items.all), item)

    def rewrite(self, at: int, items: Sequence[Item]) -> Flow:
        """The stream is taken back to where item `at` began, and `items` are put there.

        Where the memory has forgotten too much for that, the whole conversation is read anew, if all of it is known.
        """
        first = self.items.all[at]
        if first.start is None:
            raise Refusal("the item is not in the memory any more: go on behind it.", 409, code="not_exact")
        try:
            yield from self._put_anew(first.start, first.before, items)
        except Refusal as refusal:
            if refusal.code != "not_exact" or self.items.all[0].start != 0:
                raise
            yield from self._put_anew(0, NOTHING, [*self.items.all[:at], *items])
        self.items.all[at:] = items
        self.items.trim()

    def _put_anew(self, to: int, state: str, items: Sequence[Item]) -> Flow:
        script = Script(self.turns, state)
        befores, groups = self._written(script, items)
        placed = yield Put(groups, script.state, to, self.length)
        self._placed(script, items, befores, placed)

    def answered(self, item: Item, end: Finished) -> None:
        """An answer is over: what came behind it meanwhile stands so many tokens later."""
        if item.end is not None:
            item.end, item.answers = item.end + end.kept, end.answers
        at = next((index for index, each in enumerate(self.items.all) if each is item), -1)
        for other in self.items.all[at + 1 :]:
            if other.answers < end.answers and other.start is not None and other.end is not None:
                other.start, other.end, other.answers = other.start + end.kept, other.end + end.kept, end.answers
        if self._answers < end.answers:
            self.length, self._answers = self.length + end.kept, end.answers

    def drop(self, item: Item) -> None:
        """The answer that was to stand here does not come."""
        self.items.all[:] = [each for each in self.items.all if each is not item]

    # -- instructions --------------------------------------------------------------------------------------------

    def prelude(self, instructions: str) -> list[Item]:
        """Instructions that must be told (again): they are new, or the memory has forgotten them."""
        told = self._told
        if not instructions:
            return []
        if told is not None and told.text == instructions and told.start is not None and told.end is not None:
            size, age = told.end - told.start, self.length - told.start
            if self.window is None or age < self.window or size > self.window // 2:
                return []
        return [Item("", "system", instructions, is_hidden=True)]

    def question(self, instructions: str) -> list[Part]:
        """What stands before an answer on a fork."""
        script = Script(self.turns, self.said)
        _, groups = self._written(script, self.prelude(instructions))
        parts = [part for group in groups for part in group] + script.answer()
        if self.length == 0 and not parts:
            raise _nothing()
        return parts

    # -- before an answer ----------------------------------------------------------------------------------------

    def prepare(
        self, item: Item, instructions: str, truncation: str | dict[str, Any]
    ) -> Generator[Out, Any, int | None]:
        """Everything in front of an answer, which is `item`; returns how many tokens it may have (None: any)."""
        if isinstance(truncation, dict):
            yield from self._retain(instructions, truncation)
        limit = self.window if truncation == "disabled" else None
        before = self.prelude(instructions)
        if self.length == 0 and not before:
            raise _nothing()
        if limit is not None and self.length >= limit:
            raise Refusal(
                f"the conversation has {self.length} tokens and the memory holds {limit}: set truncation to auto.", 400,
                param="session.truncation", code="context_length_exceeded",
            )  # fmt: skip
        yield from self.append([*before, item])
        return None if limit is None else max(1, limit - self.length)

    def _retain(self, instructions: str, truncation: dict[str, Any]) -> Flow:
        """Where the conversation is longer than its limit, begin anew with its newest items."""
        limits = truncation.get("token_limits") or {}
        limit = limits.get("post_instructions")
        limit = self.window if limit is None else limit
        if limit is None or self.length <= limit:
            return
        room, kept = truncation["retention_ratio"] * limit, list[Item]()
        visible = [item for item in self.items.all if not item.is_hidden and item.start is not None]
        for item in reversed(visible):
            room -= (item.end or 0) - (item.start or 0)
            if room < 0 and kept:
                break
            kept.insert(0, item)
        if not kept or kept[0].start == 0:
            return
        told, self._told = self._told, None
        new = [*self.prelude(instructions), *kept]
        try:
            yield from self._put_anew(0, NOTHING, new)
        except Refusal:
            self._told = told
            raise
        for item in self.items.all:
            if not any(item is each for each in new):
                item.start = item.end = None
        old = [item for item in self.items.all if item.start is None and not item.is_hidden]
        self.items.all[:] = [*old, *new]
        self.items.trim()

    def usage(self) -> tuple[int, int]:
        """Tokens that an answer reads, and how many of them were read for an earlier one."""
        whole = self.length if self.window is None else min(self.length, self.window)
        cached = max(0, min(whole, whole - (self.length - self._read)))
        self._read = self.length
        return whole, cached


def _nothing() -> Refusal:
    return Refusal(
        "there is nothing to answer yet: send a conversation.item.create first.", code="invalid_value",
        param="response",
    )  # fmt: skip
