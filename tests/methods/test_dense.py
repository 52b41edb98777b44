"""dense: the attention that the model was trained with, however the stream is cut."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import ContextFull
from penstock.memory import Cascade, Everything
from penstock.methods.dense import Dense
from penstock.testing import LEARNED, tiny_tokens

from .running import Running, difference


def test_composition() -> None:
    assert Dense().cascade(None) == Dense().cascade(5) == Cascade((Everything(),))
    assert not Dense().needs_budget
    assert "steady" in Dense.waived


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_the_library_with_its_own_cache(family: str) -> None:
    """Token by token beside transformers' own growing cache, and in steps of 7 beside one forward pass."""
    model, tokens = Running.of(family), tiny_tokens(60)
    whole = model.native(tokens)
    with model.attached.native(), torch.no_grad():
        outs, cache = [], None
        for token in tokens:
            out = model.attached.hf(input_ids=token[None, None], past_key_values=cache, use_cache=True)
            outs.append(out.logits[0])
            cache = out.past_key_values
    assert difference(model.feed(model.memory("dense"), tokens, 1), torch.cat(outs)) < 1e-5
    assert difference(model.feed(model.memory("dense"), tokens, 7), whole) < 1e-5


def test_the_first_token_is_never_forgotten() -> None:
    single, outs = Running.of("llama", num_hidden_layers=1), []
    for first in (7, 8):
        memory = single.memory("dense")
        outs.append(single.feed(memory, torch.cat((torch.tensor([first]), tiny_tokens(700, 1))), 64)[-1])
        assert [view.seen for view in memory.view()] == [range(701)]
    assert difference(outs[0], outs[1]) > 1e-6


def test_learned_positions_end_with_a_sentence() -> None:
    model = Running.of("gpt2")
    memory = model.memory("dense")
    model.feed(memory, tiny_tokens(LEARNED), 64)
    with pytest.raises(ContextFull, match=f"learned positions for {LEARNED} tokens and the stream would reach"):
        model.feed(memory, tiny_tokens(1), 1)
    assert memory.length() == LEARNED
    memory.reset()
    tokens = tiny_tokens(9)
    assert difference(model.feed(memory, tokens, 4), model.native(tokens)) < 1e-5
