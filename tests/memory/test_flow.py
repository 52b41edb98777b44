"""The general store holds what the ring holds and reads what the specification reads, unit by unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from penstock.core import Kind, Phase, Span
from penstock.errors import CompositionError, MemoryStateError, NotRewindable
from penstock.memory import Cascade, Everything, Geometry, Heads, Memory, Placement, Sinks, Window
from penstock.methods.base import LAWS, Method
from penstock.testing import tiny_tokens
from tests.laws import laws
from tests.laws.cases import ENCODINGS, Case, attached, same

UNIT = 8


@dataclass(frozen=True)
class Flowing(Method):
    """Sinks and a window that move by units; not registered."""

    name: ClassVar[str] = "flowing"
    title: ClassVar[str] = "Sinks and a window, unit by unit"
    source: ClassVar[str] = "tests"
    differs: ClassVar[str] = "in everything"
    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"grows"}

    positions: str = "clamped"

    def cascade(self, budget: int | None) -> Cascade:
        assert budget is not None
        return Cascade((Sinks(4), Window(budget - 4 - UNIT)), self.positions, UNIT)


@dataclass(frozen=True)
class Growing(Flowing):
    """Everything, unit by unit."""

    claims: ClassVar[frozenset[str]] = frozenset(LAWS) - {"bounded", "steady"}

    def cascade(self, budget: int | None) -> Cascade:
        return Cascade((Sinks(4), Everything()), self.positions, UNIT)


@dataclass(frozen=True)
class Split(Flowing):
    """Some heads see far, some do not; needs two key-value heads or more."""

    def cascades(self, geometry: Geometry, budget: int | None) -> tuple[Placement, ...]:
        assert budget is not None
        out: list[Placement] = []
        for layer in geometry.layers:
            far = Cascade((Sinks(4), Window(budget - 4 - UNIT)), self.positions, UNIT)
            near = Cascade((Sinks(4), Window(8)), self.positions, UNIT)
            heads = tuple(range(layer.kv_heads))
            whole = far if layer.window is None else far.limited_to(layer.window)
            out.append(Heads(((heads[1:], far), (heads[:1], near))) if len(heads) > 1 else whole)
        return tuple(out)


CASES = [
    *(Case(Flowing(positions=p), f) for p in ("clamped", "contiguous", "stream") for f in ("llama", "mpt")),
    Case(Flowing(), ENCODINGS["some-layers-without"]),
    Case(Flowing(), ENCODINGS["learned-sinks"]),
    Case(Growing(), "llama"),
    Case(Growing("contiguous"), "gpt_neox"),
    Case(Growing("stream"), "mpt"),
    Case(Split(), "llama"),
    Case(Split("contiguous"), "llama"),
]
SHAPES = {"naive", "exact_when_large", "chunk_invariant"}  # what positions, encodings and placement may break
TABLE = [
    pytest.param(
        case, law, id=f"{law}-{type(case.method).__name__}-{getattr(case.method, 'positions', '')}-{case.family}"
    )
    for case in CASES
    for law in ("naive", *sorted(case.method.claims))
    if not (isinstance(case.method, Split) and law in ("exact_when_large",))
    if law in SHAPES or (case.family == "llama" and case.method.positions == "clamped")
    if law != "resumable"  # needs a registered method; `test_saved_and_loaded` holds it
]


@pytest.mark.parametrize(("case", "law"), TABLE)
def test_laws(case: Case, law: str) -> None:
    (laws.naive if law == "naive" else laws.LAWS[law])(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{type(c.method).__name__}-{c.method.positions}-{c.family}")
@pytest.mark.parametrize("length", [3, 8, 61])
def test_saved_and_loaded(case: Case, length: int) -> None:
    memory, other = case.memory(), case.memory()
    tokens = tiny_tokens(90, 3)
    case.feed(memory, tokens[:length], 7)
    other.load_row(memory.save_row(0), length, 0)
    assert torch.equal(case.feed(memory, tokens[length:], 5), case.feed(other, tokens[length:], 5))


def test_refuses_what_does_not_fit() -> None:
    case = Case(Flowing(), "llama")
    memory = case.memory()
    case.feed(memory, tiny_tokens(40), 8)
    state = memory.save_row(0)
    for name in list(state)[:6]:
        with pytest.raises(CompositionError, match="does not fit this memory"):
            case.memory().load_row({k: v for k, v in state.items() if k != name}, 40, 0)
    with pytest.raises(CompositionError, match="does not fit this memory"):
        case.memory().load_row(state, 41, 0)


def test_marks_return_exactly() -> None:
    case = Case(Flowing(), "llama")
    tokens = tiny_tokens(120, 5)
    memory, plain = case.memory(), case.memory()
    case.feed(memory, tokens[:50], 7)
    case.feed(plain, tokens[:50], 7)
    mark = memory.mark(0, 30)
    case.feed(memory, tiny_tokens(30, 9), 4)
    inner = memory.mark(0)
    case.feed(memory, tiny_tokens(9, 10), 9)
    memory.rollback(inner)
    memory.truncate(63)
    memory.truncate(57)
    memory.rollback(mark)
    memory.commit(mark)
    assert memory.nbytes == plain.nbytes
    same(case.feed(memory, tokens[50:], 6), case.feed(plain, tokens[50:], 6))
    with pytest.raises(NotRewindable):
        memory.truncate(50)


def test_a_mark_covers_what_it_said() -> None:
    case = Case(Flowing(), "llama")
    memory = case.memory()
    case.feed(memory, tiny_tokens(50), 7)
    memory.mark(0, 8)
    case.feed(memory, tiny_tokens(16), 4)
    with pytest.raises(NotRewindable, match="larger max_new"):
        case.feed(memory, tiny_tokens(40), 4)


def test_a_failed_step_breaks_its_row_only() -> None:
    case = Case(Flowing(), "llama")
    memory = case.memory(2)
    case.feed(memory, tiny_tokens(20), 7, 0)
    case.feed(memory, tiny_tokens(20), 7, 1)

    def fail() -> None:
        with memory.step([Span(0, 3)]) as step:
            step.attend(0, *(torch.zeros(1, h, 3, w) for h, w in _shape(case)), scale=1.0)
            raise RuntimeError("a failing model")

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(MemoryStateError):
        case.feed(memory, tiny_tokens(1))
    case.feed(memory, tiny_tokens(1), None, 1)
    memory.truncate(19)
    memory.reset(0)


def _shape(case: Case) -> list[tuple[int, int]]:
    layer = case.model.geometry.layers[0]
    return [
        (layer.query_heads, layer.key_width),
        (layer.kv_heads, layer.key_width),
        (layer.kv_heads, layer.value_width),
    ]


def test_kinds_that_do_not_see_each_other() -> None:
    """With `blind` and `apart`, source tokens compute what they would compute if the targets were not there."""
    model = attached("llama")
    cascade = Cascade((Everything(),), "stream", 8, ((int(Kind.TEXT), int(Kind.ANSWER)),), apart=True)
    tokens = tiny_tokens(40, 2)
    target = torch.zeros(40, dtype=torch.uint8)
    target[10:14] = target[25:30] = int(Kind.ANSWER)

    def run(which: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        memory = Memory(model.geometry, [cascade] * len(model.geometry.layers))
        out = []
        for part, kind in zip(which.split(7), kinds.split(7)):
            with torch.no_grad(), memory.step([Span(0, len(part))], Phase.INGEST, kind) as step:
                out.append(model.run(part, step, None, "all"))
        return torch.cat([o for o in out if o is not None])

    source = target == 0
    both, alone = run(tokens, target), run(tokens[source], target[source])
    same(both[source], alone)


def test_heads_must_be_named_once() -> None:
    model = attached("llama")
    near = Cascade((Window(8),), "stream", 4)
    with pytest.raises(CompositionError, match="one branch only"):
        Heads((((0,), near), ((0, 1), near)))
    with pytest.raises(CompositionError, match="name each of 0 to"):
        Memory(model.geometry, [Heads((((0, 9), near),))] * len(model.geometry.layers))
