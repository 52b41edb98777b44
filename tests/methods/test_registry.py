"""Methods by name: discovery, options, budgets."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from pathlib import Path

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from penstock import methods
from penstock.core import Budget
from penstock.errors import BudgetError, CompositionError, PenstockError, UnknownName, UsageError
from penstock.memory import Geometry, Layer, row_bytes
from penstock.methods import Method, parse, registry
from penstock.methods.base import entries_for
from penstock.methods.dense import Dense
from penstock.methods.streaming_llm import StreamingLLM

BOUNDED = [name for name, method in registry().items() if method().needs_budget]


def test_the_first_three() -> None:
    assert list(registry()) == sorted(registry())
    assert {"dense", "streaming-llm", "window"} <= set(registry())


def test_adding_a_method_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names in one file are two methods; what a file imports and what has no name is not."""
    (tmp_path / "brand_new.py").write_text(
        "from dataclasses import dataclass\n"
        "from penstock.methods.base import Method\n"
        "@dataclass(frozen=True)\nclass Base(Method):\n    size: int = 3\n"
        "@dataclass(frozen=True)\nclass A(Base):\n    name = 'brand-new'\n"
        "@dataclass(frozen=True)\nclass B(Base):\n    name = 'brand-newer'\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    registry.cache_clear()
    try:
        assert set(registry()) >= {"brand-new", "brand-newer", "dense"}
        assert parse("brand-new:size=5") == registry()["brand-new"](size=5)  # type: ignore[call-arg]
        with pytest.raises(CompositionError, match=r"does not say how it is composed: define cascade\(budget\)"):
            parse("brand-new").cascade(10)
    finally:
        monkeypatch.undo()
        registry.cache_clear()
    assert "brand-new" not in registry()


def test_options() -> None:
    assert parse("streaming-llm") == StreamingLLM()
    assert parse("streaming-llm:sinks=8,positions=stream") == StreamingLLM(8, "stream")
    assert parse("streaming-llm: sinks = 8 ") == StreamingLLM(8)
    assert parse(StreamingLLM(2)) == StreamingLLM(2)
    assert str(StreamingLLM()) == "streaming-llm"
    assert str(StreamingLLM(8, "stream")) == "streaming-llm:sinks=8,positions=stream"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("streaming-ll", UnknownName, "unknown memory 'streaming-ll': did you mean streaming-llm"),
        ("", UnknownName, "choose one of astra, "),
        ("xyz:sinks=4", UnknownName, ", dense, "),
        ("streaming-llm:sink=4", UnknownName, "unknown option of streaming-llm 'sink': did you mean sinks?"),
        ("dense:sinks=4", UnknownName, "unknown option of dense 'sinks': choose one of none"),
        ("streaming-llm:sinks", UsageError, "write it as streaming-llm:key=value"),
        ("streaming-llm:sinks=four", UsageError, "cannot be 'four': give a whole number"),
        ("streaming-llm:sinks=4.5", UsageError, "cannot be '4.5': give a whole number"),
        ("streaming-llm:sinks=", UsageError, "give a whole number"),
        ("streaming-llm:positions=clamp", UnknownName, "'clamp': did you mean clamped?"),
        ("streaming-llm:sinks=4,sinks=8", UsageError, "sinks is given twice"),
    ],
)
def test_mistakes_are_told_with_their_fix(text: str, error: type[PenstockError], words: str) -> None:
    with pytest.raises(error) as caught:
        parse(text)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@dataclasses.dataclass(frozen=True)
class Options(Method):
    """One option of each kind."""

    name: typing.ClassVar[str] = "options"
    count: int = 1
    share: float = 0.5
    on: bool = False
    kind: typing.Literal["a", "b"] = "a"


def test_option_kinds() -> None:
    read = Options.with_options({"count": "3", "share": "0.25", "on": "True", "kind": "b"})
    assert read == Options(3, 0.25, True, "b")
    assert Options.with_options({"on": "0"}) == Options()
    for name, text, words in (("on", "yes", "true or false"), ("share", "half", "give a number")):
        with pytest.raises(UsageError, match=words):
            Options.with_options({name: text})


def values(kind: object, default: object = None) -> st.SearchStrategy[object]:
    if kind is str:  # sizes, folders, names of heads
        return st.just(default)
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    return {int: st.integers(0, 999), float: st.floats(0, 1), bool: st.booleans()}[kind]  # type: ignore[index]


@pytest.mark.parametrize("name", [*registry(), "options"])
@given(data=st.data())
def test_a_method_reads_what_it_writes(name: str, data: st.DataObject) -> None:
    method = Options if name == "options" else registry()[name]
    hints = typing.get_type_hints(method)
    fields = dataclasses.fields(method)  # type: ignore[arg-type]
    chosen = {f.name: data.draw(values(hints[f.name], f.default)) for f in fields}
    try:
        made = method(**chosen)
    except PenstockError:  # options that do not go together
        reject()
    written, _, rest = str(made).partition(":")
    assert written == name
    assert method.with_options(dict(pair.split("=") for pair in filter(None, rest.split(",")))) == made
    assert made.options() == chosen


# -- budgets ----------------------------------------------------------------------------------------------------------


def geometry(own: int | None = None) -> Geometry:
    """Three layers of two heads of width 8, the middle one with a window of its own."""
    layers = tuple(Layer(i, 4, 2, 8, 8, None, window) for i, window in enumerate((None, own, None)))
    return Geometry(layers, torch.float32, torch.device("cpu"))


def test_budgets_in_entries_and_seconds() -> None:
    method = StreamingLLM()
    assert entries_for(method, geometry(), Budget(entries=4096)) == 4096
    assert entries_for(method, geometry(), Budget(seconds=30), rate=12.5) == 375
    assert entries_for(method, geometry(), Budget(seconds=0.001), rate=12.5) == 1
    with pytest.raises(BudgetError, match="needs a stream with a rate: give entries"):
        entries_for(method, geometry(), Budget(seconds=30))
    assert entries_for(method, geometry(), None) is None
    for budget in (Budget(entries=5), Budget(bytes=5), Budget(seconds=5)):
        assert entries_for(Dense(), geometry(), budget) is None


@pytest.mark.parametrize("name", BOUNDED)
@given(size=st.integers(1, 400_000), own=st.sampled_from([None, 4]))
def test_a_budget_in_bytes_is_the_most_entries_that_fit(name: str, size: int, own: int | None) -> None:
    method, layout = registry()[name](), geometry(own)

    def cost(entries: int) -> int:
        found = row_bytes(layout, method.cascades(layout, entries))
        assert found is not None
        return found

    if size < cost(least(method, layout)):
        with pytest.raises(BudgetError, match=f"{size} bytes are too few for {name} on this model"):
            entries_for(method, layout, Budget(bytes=size))
    else:
        entries = entries_for(method, layout, Budget(bytes=size))
        assert entries is not None
        assert cost(entries) <= size
        assert size < cost(entries + 1) or cost(entries) == cost(2 * entries)  # some need no more than their own sizes


def least(method: Method, layout: Geometry) -> int:
    """The smallest budget that a method takes."""
    for entries in range(1, 1000):
        with contextlib.suppress(BudgetError):
            method.cascades(layout, entries)
            return entries
    raise AssertionError(f"{method} takes no budget below 1000 entries")
