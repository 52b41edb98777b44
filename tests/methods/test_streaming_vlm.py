"""streaming-vlm: four bounded regions, whatever the stream shows."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BudgetError, UsageError
from penstock.methods import parse
from penstock.methods.streaming_vlm import StreamingVLM
from penstock.testing import tiny_tokens
from tests.laws.cases import same
from tests.methods.kinds import ANSWER, TEXT, VISION, Alone, Mixed, random_kinds, states

PATTERN = (TEXT, TEXT, TEXT, *[VISION] * 8, TEXT, ANSWER, ANSWER, *[VISION] * 4, TEXT, *[VISION] * 12, TEXT)


def test_defaults() -> None:
    method = StreamingVLM()
    assert (method.sinks, method.positions) == (512, "contiguous")
    assert method.sizes(8008) == (512, 8000 - 512 - 5200, 5200)
    assert StreamingVLM(frame=100).sizes(8008) == (512, 8000 - 512 - 5200, 52)
    assert str(parse("streaming-vlm:frame=4")) == "streaming-vlm:frame=4"


def test_a_while_nothing_leaves_it_is_dense_attention() -> None:
    case, tokens = Mixed(StreamingVLM(), "llama", PATTERN), tiny_tokens(60, 3)
    with case.model.native(), torch.no_grad():
        expected = case.model.hf(input_ids=tokens[None], use_cache=False).logits[0]
    same(case.feed(case.memory(entries=300), tokens, 7), expected)


@pytest.mark.parametrize("positions", ["contiguous", "stream"])
def test_b_and_d_regions_hold_what_they_should_for_ten_thousand_tokens(positions: str) -> None:
    method = StreamingVLM(frame=4, positions=positions)  # type: ignore[arg-type]
    sinks, window, frames = method.sizes(64)
    alone, kinds = Alone(method.cascade(64)), random_kinds(10_000, 4, frame=4)[:10_000]
    keys = torch.randn(2, 10_000, 4, generator=torch.Generator().manual_seed(1))
    text: list[int] = []
    seen: list[int] = []
    for start in range(0, 10_000, 8):
        alone.feed(keys[:, start : start + 8], kinds[start : start + 8])
        for i in range(start, start + 8):
            (seen if kinds[i] == VISION else text).append(i)
        while len(seen) > frames * 4:
            del seen[:4]
        del text[sinks : max(sinks, len(text) - window)]
        assert alone.held()[0] == sorted(text + seen)
        assert len(text) + len(seen) <= sinks + window + frames * 4
        for value in alone.states[0].values():  # keys and values are moved, never made anew
            assert torch.equal(value.key, keys.gather(1, value.seen[..., None].expand(-1, -1, 4)))
            assert torch.equal(value.value, value.key)


def test_c_no_position_is_beyond_what_is_held() -> None:
    case = Mixed(StreamingVLM(), "llama", PATTERN)
    memory = case.memory()
    for i in range(60):
        case.feed(memory, tiny_tokens(5, i))
        for _, group in states(memory):
            for layer in group.lanes[0]:
                ranks = layer[0].ranks
                assert ranks is not None
                position = ranks.position[0]
                assert ranks.total + len(layer[0].tail.at) <= case.budget  # type: ignore[operator]
                if position is not None:
                    assert position[0].sort().values.tolist() == list(range(ranks.total))


def test_laws_on_a_stream_of_both() -> None:
    Mixed(StreamingVLM(frame=2), "llama", PATTERN).check()
    Mixed(StreamingVLM(frame=2, positions="stream"), "llama", PATTERN).check("naive", "chunk_invariant")


def test_a_flood_of_frames_does_not_push_out_text() -> None:
    method = StreamingVLM(frame=4)
    sinks, window, _ = method.sizes(64)
    alone = Alone(method.cascade(64))
    alone.feed(torch.randn(2, 8, 4), torch.full((8,), TEXT))
    for _ in range(50):
        alone.feed(torch.randn(2, 8, 4), torch.full((8,), VISION))
    assert alone.held()[0][:8] == list(range(8))
    assert sinks + window >= 8


def test_refused() -> None:
    with pytest.raises(BudgetError, match="needs a budget"):
        StreamingVLM().cascade(None)
    with pytest.raises(BudgetError, match="give at least") as caught:
        StreamingVLM(frame=16).cascade(16)
    StreamingVLM(frame=16).cascade(int(str(caught.value).split("give at least ")[1].split(",")[0]))
    with pytest.raises(UsageError, match="vision from 0"):
        StreamingVLM(vision=1.0).cascade(64)
