"""A coded window holds the right entries in the right form, and reads what it decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from penstock.core import Phase
from penstock.errors import BudgetError, CompositionError
from penstock.memory import Cascade, Memory, Sinks, Window
from penstock.memory.codec import BitPlanes, BlockFloat, Codec, Floats, Int4, Int8
from penstock.memory.codec.base import Field
from penstock.memory.coded import Coded, Groups, coded_window
from penstock.memory.entries import Entries
from penstock.memory.frames import Frame
from penstock.memory.parts import Place, Query, Readable, State, Unit
from penstock.memory.reading import decoded
from penstock.methods.base import LAWS, Method
from penstock.testing import tiny_tokens
from tests.laws import laws
from tests.laws.cases import ENCODINGS, Case, same


@dataclass(frozen=True)
class PlainCoded(Method):
    """A coded window without loss; not registered."""

    name: ClassVar[str] = "plain-coded"
    title: ClassVar[str] = "A coded window without loss"
    source: ClassVar[str] = "tests"
    differs: ClassVar[str] = "in everything"
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    positions: str = "clamped"
    full: int = 64

    def cascade(self, budget: int | None) -> Cascade:
        return coded_window(budget, 4, self.full, None, self.positions)


CASES = [Case(PlainCoded(p), "llama") for p in ("clamped", "contiguous", "stream")]
CASES += [Case(PlainCoded(), ENCODINGS["alibi"])]
TABLE = [
    pytest.param(case, law, id=f"{law}-{case.method.positions}-{case.family}")  # type: ignore[attr-defined]
    for case in CASES
    for law in ("naive", *sorted(case.method.claims))
    if law in ("naive", "exact_when_large", "chunk_invariant") or case is CASES[0]
    if law != "resumable"  # needs a registered method; `test_saved_and_loaded` holds it
]


@pytest.mark.parametrize(("case", "law"), TABLE)
def test_laws(case: Case, law: str) -> None:
    """Without loss a coded window is exact, and all that the laws say of a window holds of it."""
    (laws.naive if law == "naive" else laws.LAWS[law])(case)


def place_of(case: Case, cascade: Cascade) -> Place:
    """Where layer 0 works."""
    memory = Memory(case.model.geometry, [cascade] * len(case.model.geometry.layers))
    return memory.groups[0].branches[0][0].place  # type: ignore[no-any-return]


LLAMA = Case(PlainCoded(), "llama")
CODECS: list[Callable[[int], tuple[Codec, Codec]]] = [
    lambda group: (Floats(torch.float32), Floats(torch.float32)),
    lambda group: (Int4("channel", group), Int4("token", 8)),
    lambda group: (Int8("channel", group), Int8("token", 32)),
    lambda group: (BlockFloat(4, 8, sort=True), BlockFloat(4, 8)),
    lambda group: (BitPlanes("channel", group), BitPlanes("token", 16, count=3)),
]


def arrivals(place: Place, count: int, unit: int, start: int = 0) -> list[Entries]:
    """A stream of raw entries, unit by unit."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for at in range(start, start + count, unit):
        shape = (place.heads, unit, place.layer.key_width)
        seen = torch.arange(at, at + unit).expand(place.heads, -1)
        key, value = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        out.append(Entries(key, value, seen, torch.zeros_like(seen, dtype=torch.uint8)))
    return out


def unit_of(entries: Entries) -> Unit:
    return Unit(int(entries.seen[0, 0]), len(entries), Phase.INGEST, None, entries.seen[0], None)


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("budget", [24, 48, 100])
def test_holds_what_the_rule_says(codecs: Callable[[int], tuple[Codec, Codec]], budget: int) -> None:
    """The rule with lists of indices: code the oldest group when `fresh` is exceeded, then drop the oldest group."""
    cascade = coded_window(budget, 0, budget // 2, codecs)
    [part] = cascade.segments
    assert isinstance(part, Coded)
    place = place_of(LLAMA, cascade)
    stream = arrivals(place, 5 * budget, cascade.unit)
    keys = torch.cat([e.key for e in stream], 1)
    state, fresh, coded = part.begin(place), list[int](), list[list[int]]()
    for entries in stream:
        before = _copied(state)
        after, left = part.admit(state, entries, unit_of(entries), place)
        assert _same(before, _copied(state)), "a past state is a reference"
        fresh += entries.seen[0].tolist()
        gone: list[int] = []
        if len(fresh) > part.fresh:
            coded.append(fresh[: part.group])
            fresh = fresh[part.group :]
        if len(coded) > part.groups:
            gone = coded.pop(0)
        state = after
        held = [i for group in coded for i in group] + fresh
        assert part.held(state)[0].tolist() == held  # type: ignore[index]
        assert part.remembered(state).tolist() == held
        assert len(held) <= part.entries
        assert len(fresh) + cascade.unit <= budget // 2
        assert torch.equal(state["key"], keys[:, fresh[0] : fresh[-1] + 1] if fresh else keys[:, :0])
        decoded = state["keys"].decode(torch.float32) if coded else keys[:, :0]
        bound = [part.keys.bound(piece) for piece in state["keys"].pieces]
        expected = keys[:, coded[0][0] : coded[-1][-1] + 1] if coded else keys[:, :0]
        error = (decoded - expected).abs().split(part.group, dim=1) if coded else ()
        assert all((e <= b + 1e-7).all() for e, b in zip(error, bound))
        assert sum(t.numel() * t.itemsize for t in _tensors(state).values()) <= part.nbytes(place)
        assert (left is None) == (not gone)
        if left is not None:
            assert left.seen[0].tolist() == gone
            assert not left.turned


@pytest.mark.parametrize("codecs", CODECS)
def test_reads_what_it_decodes(codecs: Callable[[int], tuple[Codec, Codec]]) -> None:
    """The offers, joined, are the decoded keys rotated to their indices, and the values, each once, oldest first."""
    cascade = coded_window(2000, 0, 64, codecs)
    [part] = cascade.segments
    assert isinstance(part, Coded)
    place = place_of(LLAMA, cascade)
    state: State = part.begin(place)
    for entries in arrivals(place, 640, 16):
        state, _ = part.admit(state, entries, unit_of(entries), place)
    at = torch.arange(640, 643)
    query = Query(torch.randn(4, 3, 16), at, at, torch.zeros(3, dtype=torch.uint8), Phase.INGEST, place)
    read = part.read(state, query, Frame("stream", at), place)
    offers = [o for o in decoded(read) if isinstance(o, Readable)]
    assert len(offers) >= 3, "it is decoded in pieces"
    assert all(o.turned and torch.equal(o.query_at, at) for o in offers)
    position = torch.cat([o.position for o in offers], 1)
    assert torch.equal(position, torch.arange(640).expand(place.heads, -1))
    raw = torch.cat((state["keys"].decode(torch.float32), state["key"]), 1)
    assert torch.allclose(torch.cat([o.key for o in offers], 1), place.turn(raw, position), atol=1e-6)
    value = torch.cat((state["values"].decode(torch.float32), state["value"]), 1)
    assert torch.equal(torch.cat([o.value for o in offers], 1), value)


@pytest.mark.parametrize("length", [3, 16, 61, 130])
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_saved_and_loaded(length: int, family: str) -> None:
    case = Case(PlainCoded(), family)
    memory, other = case.memory(), case.memory()
    tokens = tiny_tokens(200, 3)
    case.feed(memory, tokens[:length], 7)
    other.load_row(memory.save_row(0), length, 0)
    assert torch.equal(case.feed(memory, tokens[length:], 5), case.feed(other, tokens[length:], 5))


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_groups_are_saved_and_loaded(codecs: Callable[[int], tuple[Codec, Codec]], count: int) -> None:
    for codec in codecs(12):
        groups = Groups(codec, 2, 12, 16)
        for i in range(count):
            groups = groups.append(torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(i)))
        saved = groups.save()
        back = Groups(codec, 2, 12, 16).load(saved)
        assert len(back) == count
        if count:
            assert torch.equal(back.decode(torch.float32), groups.decode(torch.float32))
            assert sum(t.numel() * t.itemsize for t in saved.values()) == codec.nbytes(2, 12 * count, 16)
        for name in saved:
            for damaged in ({k: t for k, t in saved.items() if k != name}, {**saved, name: saved[name][:1]}):
                with pytest.raises(CompositionError, match="does not fit this memory"):
                    Groups(codec, 2, 12, 16).load(damaged)


def test_what_leaves_can_enter_another_window() -> None:
    """Nothing is lost between a coded window and what comes after it: with room for all, it is exact."""

    @dataclass(frozen=True)
    class Then(PlainCoded):
        def cascade(self, budget: int | None) -> Cascade:
            coded = Coded(None, None, group=8, groups=2, fresh=8)
            return Cascade((Sinks(4), coded, Window(200)), self.positions, 4)

    for positions in ("clamped", "contiguous", "stream"):
        case = Case(Then(positions), "llama")
        tokens = tiny_tokens(120, 2)
        with case.model.native(), torch.no_grad():
            expected = case.model.hf(input_ids=tokens[None], use_cache=False).logits[0]
        same(case.feed(case.memory(entries=300), tokens, 7), expected)


@pytest.mark.parametrize("sinks", [0, 1, 4, 30])
@pytest.mark.parametrize("full", [8, 40, 64, 100, 1 << 30])
def test_windows_keep_to_their_numbers(sinks: int, full: int) -> None:
    """Any budget is kept, and at the moment before a coding at most `full` entries, tail included, are not coded."""
    for budget in [*range(1, 200), 1000, 1024, 5000]:
        try:
            cascade = coded_window(budget, sinks, full, None)
        except BudgetError:
            least = 2 * (-(-sinks // 4) * 4 + 4)
            assert min(2 * full, budget) < least, "from there on it is possible"
            continue
        assert (cascade.entries or 0) <= budget
        part = cascade.segments[-1]
        assert isinstance(part, Coded)
        assert cascade.sinks == sinks
        assert (cascade.entries or 0) > budget - part.group, "a group more would have fitted"
        most = held = 0
        for end in range(cascade.unit, 20 * part.group + cascade.unit, cascade.unit):
            most = max(most, min(sinks, end - cascade.unit) + held + cascade.unit)
            held += cascade.unit - max(0, min(cascade.unit, sinks - (end - cascade.unit)))
            if held > part.fresh:
                assert held >= part.group
                held -= part.group
        assert most <= min(full, budget // 2)


def test_refuses_what_cannot_be_coded() -> None:
    place = place_of(LLAMA, Cascade((Window(8),), unit=8))
    part = Coded(None, None, group=8, groups=2, fresh=8)
    first, second, third = arrivals(place, 24, 8)
    state, _ = part.admit(part.begin(place), first, unit_of(first), place)
    with pytest.raises(CompositionError, match="consecutive entries: put it after sinks or windows"):
        part.admit(state, third, unit_of(third), place)
    with pytest.raises(CompositionError, match="without a bias"):
        part.admit(state, second.with_bias(), unit_of(second), place)
    gap = second.take(torch.tensor([0, 2, 3]))
    with pytest.raises(CompositionError, match="consecutive entries"):
        part.admit(state, gap, unit_of(gap), place)
    odd = Coded(None, None, group=8, groups=2, fresh=3)
    few = first.cut(0, 5)
    with pytest.raises(CompositionError, match="compose with coded_window"):
        odd.admit(odd.begin(place), few, unit_of(few), place)
    with pytest.raises(BudgetError, match="raise the budget"):
        Coded(None, None, group=8, groups=0, fresh=8)
    with pytest.raises(CompositionError, match="whole groups"):
        Coded(Int4("channel", 8), None, group=12, groups=1, fresh=8)
    with pytest.raises(BudgetError, match="needs a budget"):
        coded_window(None, 4, 64, None)
    with pytest.raises(BudgetError, match=r"4 sinks leave nothing to code .* \(from 16 on\)"):
        coded_window(15, 4, 64, None)
    with pytest.raises(BudgetError, match=r"4 entries are too few for 4 sinks .* give 5 or more"):
        coded_window(4, 4, 64, None)
    with pytest.raises(CompositionError, match="let all kinds of token count together"):
        place_of(LLAMA, Cascade((part,), unit=8, apart=True))
    with pytest.raises(CompositionError, match="do not fill whole bytes"):
        place_of(LLAMA, Cascade((Coded(Narrow(), None, 8, 2, 8),), unit=8))


class Narrow(Int4):
    """As if heads had an odd width."""

    def fields(self, heads: int, entries: int, width: int) -> dict[str, Field]:
        return super().fields(heads, entries, width - 1)


def test_an_order_of_channels_is_found_once_and_kept() -> None:
    cascade = coded_window(100, 0, 40, lambda group: (BlockFloat(4, 8, sort=True), BlockFloat(4, 8)))
    [part] = cascade.segments
    place = place_of(LLAMA, cascade)
    state = part.begin(place)
    orders = []
    for entries in arrivals(place, 400, cascade.unit):
        state, _ = part.admit(state, entries, unit_of(entries), place)
        orders += [piece["order"] for piece in state["keys"].pieces]
    assert len(orders) > 5
    assert all(order is orders[0] for order in orders)


def _tensors(state: State) -> dict[str, Tensor]:
    """All storage of a state; what groups share counts once."""
    found = [t for v in state.values() for t in (v.tensors() if isinstance(v, Groups) else [v])]
    return {str(t.data_ptr()): t for t in found if t.numel()}


def _copied(state: State) -> list[Tensor]:
    return [t.clone() for v in state.values() for t in (v.tensors() if isinstance(v, Groups) else [v])]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
