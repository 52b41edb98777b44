"""Laws over all reducers: the no-op is exact, the future changes nothing, cuts change nothing, states are values of
bounded size; and the checks of their cards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from penstock.core import Frame
from penstock.errors import InputError, UnknownName, UsageError
from penstock.reducers import Chain, Moment, Reducer, parse, registry, state_bytes
from penstock.reducers.curvestream import CurveStream, path_score
from penstock.reducers.fixed_rate import FixedRate
from penstock.reducers.showui import components
from penstock.reducers.similar_frames import SimilarFrames
from penstock.reducers.stc import Stc, likeness
from penstock.reducers.stc_cache import StcCache
from penstock.reducers.timechat import TimeChat
from penstock.reducers.videoscan import VideoScan

GRID, WIDTH = (4, 5), 12


class Layer:
    """A SigLIP block as a tower layer."""

    def __init__(self, block: Any) -> None:
        self.block, self.heads = block, block.self_attn.num_heads

    def norm1(self, x: Tensor) -> Tensor:
        return self.block.layer_norm1(x)

    def norm2(self, x: Tensor) -> Tensor:
        return self.block.layer_norm2(x)

    def mlp(self, x: Tensor) -> Tensor:
        return self.block.mlp(x)

    def qkv(self, x: Tensor, part: int) -> Tensor:
        own = self.block.self_attn
        return (own.q_proj, own.k_proj, own.v_proj)[part](x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.block.self_attn.out_proj(out.transpose(0, 1).flatten(1))


@pytest.fixture(scope="module")
def tower() -> list[Layer]:
    torch.manual_seed(0)
    config = SiglipVisionConfig(hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return [Layer(block) for block in SiglipEncoder(config).eval().layers]


def inputs(reducer: Reducer, count: int, seed: int = 0) -> list[Any]:
    """A stream that changes now and then, in the form the reducer's stage takes."""
    random = np.random.default_rng(seed)
    image, tokens, out = random.integers(0, 256, (32, 40, 3), np.uint8), torch.zeros(20, WIDTH), []
    for i in range(count):
        torch.manual_seed(seed * 1000 + i)
        if i % 3 == 0:
            image = image.copy()
            image[8 * (i % 4) :, : 10 + i % 20] = random.integers(0, 256, 3, np.uint8)
            tokens = torch.where(torch.rand(20, 1) < 0.4, torch.randn(20, WIDTH), tokens)
        if reducer.stage == "frames":
            out.append(Frame(image, i / 4, i))
        elif reducer.stage == "tokens":
            out.append(Moment(tokens, GRID, image, i / 4))
        else:
            out.append(tokens + 0.01 * i)
    return out


@torch.no_grad()
def run(reducer: Any, given: Sequence[Any], tower: Any, state: Any = None) -> tuple[Any, list[Any]]:
    """The last state, and what came out as comparable values."""
    state, out = reducer.start() if state is None else state, []
    for item in given:
        if reducer.stage == "tower":
            state, hidden = reducer.step(state, tower, item)
            out.append(hidden.numpy().tobytes())
        elif reducer.stage == "tokens":
            state, reduced = reducer.step(state, item)
            extra = None if reduced.carriers is None else reduced.carriers.numpy().tobytes()
            out.append((reduced.index.tolist(), extra, reduced.change))
        else:
            state, (frame, score) = reducer.step(state, item)
            out.append((None if frame is None else frame.image.tobytes(), score))
    return state, out


@pytest.mark.parametrize("name", registry())
def test_laws(name: str, tower: list[Layer]) -> None:
    reducer: Any = parse({"stc": "stc:keep=7"}.get(name, name))  # pictures here have 20 tokens, fewer than its default
    given = inputs(reducer, 40)
    state, out = run(reducer, given, tower)
    assert len(set(map(repr, out))) > 1, "the stream exercises nothing"

    # causal: another future, the same past
    other = given[:20] + inputs(reducer, 20, seed=1)
    assert run(reducer, other, tower)[1][:20] == out[:20]

    # resumable and forkable: a state is a value; running on does not change it, and it survives being written
    middle, _ = run(reducer, given[:21], tower)
    before = pickle.dumps(middle)
    rest = run(reducer, given[21:], tower, copy.copy(middle))[1]
    assert rest == out[21:]  # chunk-invariant: cut anywhere, the same
    run(reducer, inputs(reducer, 5, seed=2), tower, middle)
    assert pickle.dumps(middle) == before
    assert run(reducer, given[21:], tower, pickle.loads(before))[1] == out[21:]

    # bounded
    assert state_bytes(state) == state_bytes(run(reducer, inputs(reducer, 80), tower)[0])


@pytest.mark.parametrize("name", registry())
def test_the_noop_is_exact(name: str, tower: list[Layer]) -> None:
    reducer = registry()[name].noop()
    given = inputs(reducer, 20)
    out = run(reducer, given, tower)[1]
    for item, got in zip(given, out, strict=True):
        if reducer.stage == "frames":
            assert got[0] == item.image.tobytes()
        elif reducer.stage == "tokens":
            assert got[:2] == (list(range(20)), None)
        else:
            assert got == run(StcCache(interval=1), [item], tower)[1][0]


def test_names_and_options_are_checked() -> None:
    assert str(parse("timechat:threshold=0.3,by=pixel")) == "timechat:threshold=0.3,by=pixel"
    with pytest.raises(UnknownName, match="did you mean timechat"):
        parse("timechatt")
    for wrong in ("stc:keep=x", "stc:k", "stc:keep=1,keep=2", "stc:keep=-1", "timechat:threshold=nan"):
        with pytest.raises(UsageError):
            parse(wrong)
    with pytest.raises(UnknownName):
        parse("timechat:by=sound")
    with pytest.raises(InputError, match="needs the picture"):
        parse("showui").step((), Moment(torch.zeros(20, 2), GRID))  # type: ignore[attr-defined]


def test_timechat_keeps_what_changed_and_sees_drift_only_against_the_kept() -> None:
    first = torch.nn.functional.one_hot(torch.arange(20) % WIDTH, WIDTH).float()
    second = first.clone()
    second[[3, 7]] = second[[3, 7]].roll(1, 1)
    reducer = TimeChat()
    state, reduced = reducer.step(reducer.start(), Moment(first, GRID))
    assert len(reduced.index) == 20
    state, reduced = reducer.step(state, Moment(first, GRID))
    assert (len(reduced.index), reduced.change) == (0, 0.0)  # a still picture
    state, reduced = reducer.step(state, Moment(second, GRID))
    assert reduced.index.tolist() == [3, 7]

    angles = torch.linspace(0, 3.0, 40)  # turns by 4.4 degrees a frame: never much since the last one
    drift = [torch.stack((a.cos(), a.sin())).expand(20, 2) for a in angles]
    kept = {}
    for against in ("previous", "kept"):
        reducer = TimeChat(against=against)  # type: ignore[arg-type]
        state = reducer.start()
        kept[against] = 0
        for tokens in drift:
            state, reduced = reducer.step(state, Moment(tokens, GRID))
            kept[against] += len(reduced.index)
    assert kept == {"previous": 20, "kept": 60}  # at 0, and again past 60 and 120 degrees


def test_timechat_keeps_frames_whole_or_leaves_nothing_of_them() -> None:
    first = torch.nn.functional.one_hot(torch.arange(20) % WIDTH, WIDTH).float()
    second = first.clone()
    second[[3, 7]] = second[[3, 7]].roll(1, 1)
    chain = Chain([TimeChat(unit="frame", against="kept")])
    state, found = chain.start(), []
    for tokens in (first, first, second, second, first):
        state, reduced = chain.visual(state, Moment(tokens, GRID))
        found.append((len(reduced.index), reduced.skips, round(reduced.change, 2)))
    assert found == [(20, False, 1.0), (0, True, 0.0), (20, False, 0.1), (0, True, 0.0), (20, False, 0.1)]
    plain = Chain([TimeChat()])
    state, _ = plain.visual(plain.start(), Moment(first, GRID))
    assert not plain.visual(state, Moment(first, GRID))[1].skips  # tokens are left out, the frame is told
    with pytest.raises(UsageError, match="leave unit out"):
        TimeChat(by="relative", unit="frame")


def test_similar_frames_never_skips_below_the_threshold_and_caps_the_skips() -> None:
    image = np.full((32, 32, 3), 90, np.uint8)
    given = [Frame(image, float(i), i) for i in range(23)]
    kept = [got[0] is not None for got in run(SimilarFrames(most=10), given, None)[1]]
    assert [i for i, keeps in enumerate(kept) if keeps] == [0, 11, 22]
    random = np.random.default_rng(0)
    noise = [Frame(random.integers(0, 2, (32, 32, 3), np.uint8) * 255, float(i), i) for i in range(9)]
    assert all(got[0] is not None for got in run(SimilarFrames(), noise, None)[1])


def test_curvature_is_that_of_the_card() -> None:
    a, b, _ = np.eye(3, dtype=np.float32)
    straight = path_score(0 * a, a / 4, a / 2, bend=1.0)  # the same step twice
    assert straight == pytest.approx(path_score(None, a / 4, a / 2, bend=1.0), abs=1e-6)
    turned = np.array([-0.5, 0.5, 0.5**0.5], np.float32)  # b -> turned is at right angles to a -> b
    assert path_score(a, b, turned, bend=1.0) - path_score(None, b, turned, bend=1.0) == pytest.approx(1.0, abs=1e-6)
    assert path_score(a, b, b, bend=1.0) == 0.0  # nothing moves: the direction says nothing


def test_curvestream_scales_down_what_is_neither_clear_nor_dull() -> None:
    given = inputs(CurveStream(), 40)
    sizes = set()
    state, reducer = CurveStream().start(), CurveStream(side=20)
    for frame in given:
        state, (out, _) = reducer.step(state, frame)
        sizes.add(None if out is None else out.image.shape)
    assert sizes == {None, (32, 40, 3), (16, 20, 3)}


def test_showui_finds_the_areas_and_keeps_one_of_each_at_least() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    assert set(components(image, GRID, 1.0)) == {0}
    image[:, 30:] = 255
    labels = components(image, GRID, 1.0).reshape(GRID)
    assert (labels[:, :3] == 0).all()
    assert (labels[:, 3:] == 3).all()
    _, reduced = parse("showui:ratio=1").step((), Moment(torch.zeros(20, 2), GRID, image))  # type: ignore[attr-defined]
    assert reduced.index.tolist() == [0, 3]


def test_stc_keeps_exactly_the_most_distinctive() -> None:
    tokens = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
    state, reduced = Stc(keep=7).step(Stc().start(), Moment(tokens, GRID))
    order = likeness(tokens, tokens.mean(0)).argsort(stable=True)
    assert reduced.index.tolist() == sorted(order[:7].tolist())
    state, _ = Stc(keep=7).step(state, Moment(3 * tokens, GRID))
    assert state.count == 2
    torch.testing.assert_close(state.mean, 2 * tokens.mean(0))


@torch.no_grad()
def test_stc_cache_is_the_plain_tower_where_it_should_be(tower: list[Layer]) -> None:
    tokens = torch.randn(20, WIDTH)
    plain = tokens[None]
    for layer in tower:
        plain = layer.block(plain, attention_mask=None)
        plain = plain[0] if isinstance(plain, tuple) else plain
    for reducer in (StcCache(ratio=1.0), StcCache(interval=1)):
        state, _ = reducer.step(reducer.start(), tower, torch.randn(20, WIDTH))
        torch.testing.assert_close(reducer.step(state, tower, tokens)[1], plain[0], atol=1e-5, rtol=1e-5)
    for ratio in (0.0, 0.25):  # the same frame again
        state, full = StcCache(ratio).step(StcCache().start(), tower, tokens)
        torch.testing.assert_close(StcCache(ratio).step(state, tower, tokens)[1], full, atol=1e-5, rtol=1e-5)
    moved = tokens.clone()
    moved[:5] += 1.0
    exact = StcCache(interval=1).step(StcCache().start(), tower, moved)[1]
    part = StcCache(0.25).step(state, tower, moved)[1]
    assert (part - exact).norm() < (full - exact).norm()  # better than not looking


def test_a_chain_keeps_what_all_keep_and_stops_at_the_first_that_drops() -> None:
    chain = Chain([FixedRate(1.0), parse("scene-change"), Stc(keep=10), TimeChat(), VideoScan()])
    state = chain.start()
    image = np.zeros((32, 40, 3), np.uint8)
    kept = []
    for i in range(8):
        state, (frame, _) = chain.frame(state, Frame(image + 40 * (i // 4), i / 2, i))
        kept.append(frame is not None)
    assert kept == [True, False, False, False, True, False, False, False]
    tokens = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))
    state, first = chain.visual(state, Moment(tokens, GRID))
    state, second = chain.visual(state, Moment(tokens, GRID))
    assert (len(first.index), len(second.index), second.change) == (10, 0, 0.0)
    assert second.carriers is not None
    torch.testing.assert_close(second.carriers, tokens.mean(0, keepdim=True))
