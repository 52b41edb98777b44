"""window: a model under it is the model that was configured with that window."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError
from penstock.memory import Cascade, Window
from penstock.methods.window import SlidingWindow
from penstock.testing import SLIDING, tiny_tokens

from .running import Running, difference


def test_composition() -> None:
    assert SlidingWindow().cascade(7) == Cascade((Window(7),), "stream")
    with pytest.raises(BudgetError, match="at least 1 entry, got 0"):
        SlidingWindow().cascade(0)
    with pytest.raises(BudgetError, match="needs a budget"):
        SlidingWindow().cascade(None)


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_equals_a_model_with_that_window(chunk: int | None) -> None:
    """Mistral with its own window, read by transformers; the same weights without one, read through `window`."""
    configured, plain = Running.of("mistral"), Running.of("mistral", sliding_window=None)
    tokens = tiny_tokens(100)
    expected = configured.native(tokens)
    assert difference(plain.native(tokens), expected) > 1e-3
    got = plain.feed(plain.memory("window", SLIDING), tokens, chunk)
    assert difference(got, expected) < 1e-5
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("budget", [1, 5, SLIDING, 40])
def test_a_layer_with_its_own_window_keeps_the_smaller_of_the_two(budget: int) -> None:
    configured, smaller = Running.of("mistral"), Running.of("mistral", sliding_window=min(budget, SLIDING))
    tokens = tiny_tokens(100)
    memory = configured.memory("window", budget)
    assert difference(configured.feed(memory, tokens, 7), smaller.native(tokens)) < 1e-5
    assert [len(view.seen) for view in memory.view()] == [min(budget, SLIDING)]


def test_one_layer_sees_the_window_and_nothing_else() -> None:
    single = Running.of("llama", num_hidden_layers=1)
    tokens = tiny_tokens(90)
    streamed = single.feed(single.memory("window", 20), tokens, 7)
    for now in (5, 19, 20, 89):
        assert difference(streamed[now], single.native(tokens[max(0, now - 19) : now + 1])[-1]) < 1e-5


def test_positions_never_end() -> None:
    model = Running.of("llama")
    near, far = (model.memory("window", 20) for _ in range(2))
    for memory in (near, far):
        model.feed(memory, tiny_tokens(100), 64)
    far.shift(4_194_304)
    tokens = tiny_tokens(80, 1)
    assert (model.feed(far, tokens, 7) - model.feed(near, tokens, 7)).abs().max() < 1e-4
