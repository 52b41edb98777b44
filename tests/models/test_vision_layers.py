"""Vision towers layer by layer: the tower's own result where nothing is left out, and nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from penstock.core import SimulatedClock
from penstock.errors import CompositionError
from penstock.io.video.world import Generated
from penstock.models.vision.layers import can_run, layer_by_layer, plain
from penstock.reducers import Chain
from penstock.reducers.base import state_bytes
from penstock.reducers.stc_cache import StcCache
from penstock.triggers import parse as trigger
from penstock.watch import Limits, Pipeline, Requests, Watch
from penstock.watch.model_eyes import ModelEyes
from penstock.watch.opening import Sight, open_sight
from penstock.worlds.shapes import Shapes
from tests.models.vlms import eyes, video


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_a_tower_is_itself_with_nothing_left_out(family: str) -> None:
    vision = eyes(family)
    assert can_run(vision)
    before = [id(module) for module in vision.model.attached.hf.modules()]
    frames = video(4)
    expected = [vision.encode([frame]).embeddings for frame in frames]
    for reducer in (StcCache(ratio=1.0), StcCache(interval=1)):
        found = ModelEyes(vision, None)  # type: ignore[arg-type]
        found.use(Chain([reducer]))
        sizes = set()
        for frame, tokens in zip(frames, expected):
            assert torch.allclose(found.encode([frame]).tokens, tokens, atol=1e-5)
            sizes.add(state_bytes(found._tower_state))
        assert len(sizes) == 1, "what is remembered does not grow"
    for ratio in (0.0, 0.3):  # the same picture again: whatever is left out
        found = ModelEyes(vision, None)  # type: ignore[arg-type]
        found.use(Chain([StcCache(ratio, 3)]))
        for _ in range(4):
            assert torch.allclose(found.encode([frames[0]]).tokens, expected[0], atol=1e-5)
    assert [id(module) for module in vision.model.attached.hf.modules()] == before


def test_it_is_put_back_when_something_fails() -> None:
    vision = eyes("internvl")
    hf: Any = vision.model.attached.hf
    before = [id(module) for module in hf.modules()]

    def broken(layers: list[Any], hidden: torch.Tensor) -> torch.Tensor:
        assert torch.isfinite(plain(layers, hidden)).all()
        raise RuntimeError("a layer broke")

    with pytest.raises(RuntimeError, match="broke"), layer_by_layer(hf, broken):
        vision.encode([np.zeros((16, 16, 3), np.uint8)])
    assert [id(module) for module in hf.modules()] == before


def test_towers_that_we_do_not_know_are_refused() -> None:
    assert not can_run(eyes("qwen2_5_vl"))
    with pytest.raises(CompositionError, match="layer by layer"), layer_by_layer(torch.nn.Linear(1, 1), plain):
        pass


def test_a_watch_with_the_cacher_that_leaves_nothing_out_sees_what_it_would_see() -> None:
    found = {}
    for name, chain in (("without", Chain()), ("off", Chain([StcCache.noop()])), ("on", Chain([StcCache(0.1)]))):
        sight: Sight = open_sight(None, "streaming-llm", "64")
        sight.use(chain)
        pipeline = Pipeline(Generated(Shapes(0), "shapes", rate=2.0), sight.eyes, chain, SimulatedClock())
        requests = Requests([], trigger("change"), sight.reader)
        watch = Watch(pipeline, sight.eyes, sight.reader, requests, limits=Limits(frames=8))
        for _ in watch.run():
            pass
        assert watch.counts.frames == 8
        found[name] = sight.reader.logits
    assert found["without"] is not None
    assert torch.allclose(found["off"], found["without"], atol=1e-4)  # type: ignore[arg-type]
    assert not torch.allclose(found["on"], found["without"], atol=1e-4)  # type: ignore[arg-type]
