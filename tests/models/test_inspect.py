"""The sink meter: its numbers are those of a softmax written out, and it finds what was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.errors import InputError, UsageError
from penstock.memory import Layer, Rotary
from penstock.models.inspect import (
    CopyWatch,
    DenseStep,
    MassWatch,
    MeanWatch,
    Rule,
    Settings,
    SinkWatch,
    Watch,
    dense,
    inspect,
    old_mass,
)
from penstock.models.probe import attach
from penstock.testing import VOCABULARY, tiny_model, tiny_tokens

BOS = 1
FAMILIES = ("llama", "qwen3", "gpt_neox", "gemma2", "gemma3", "gpt_oss", "gpt2", "falcon-alibi", "mpt", "falcon-new")


class Keep(Watch):
    """All probabilities of all layers, as one [S, Hq, L, L] each: for tests only."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[tuple[int, Tensor]]] = {}
        self.learned: dict[int, list[Tensor]] = {}

    def weights(self, layer: int, first: int, weights: Tensor, learned: Tensor | None) -> None:
        self.blocks.setdefault(layer, []).append((first, weights))
        if learned is not None:
            self.learned.setdefault(layer, []).append(learned)

    def whole(self, layer: int) -> Tensor:
        blocks = self.blocks[layer]
        length = blocks[-1][1].shape[-1]
        return torch.cat([nn.functional.pad(w, (0, length - w.shape[-1])) for _, w in blocks], dim=2)


def read(model: nn.Module, rows: Tensor, *watches: Watch, logits: str = "none") -> Tensor | None:
    """Samples [S, L] in one pass."""
    attached = attach(model)
    try:
        step = DenseStep(attached.geometry, rows.shape[1], watches)
        where = torch.arange(rows.shape[1]).repeat(len(rows)) if attached.geometry.is_absolute else None
        with torch.no_grad():
            return attached.run(rows.flatten(), step, where, logits)  # type: ignore[arg-type]
    finally:
        attached.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_several_samples_is_the_models_own_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 2 * 4 * 40 * 7)  # blocks of about seven queries
    model = tiny_model(family)
    rows = tiny_tokens(80).view(2, 40)
    keep = Keep()
    logits = read(model, rows, keep, logits="all")
    assert logits is not None
    if not family.startswith("falcon"):  # has code of its own, and another formula where it gives attentions away
        model.set_attn_implementation("eager")  # type: ignore[operator]
    with torch.no_grad():
        out = model(input_ids=rows, use_cache=False, output_attentions=not family.startswith("falcon"))
    expected = out.logits.flatten(0, 1)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    for layer, blocks in keep.blocks.items():
        assert len(blocks) > 3
        total = keep.whole(layer).sum(-1)
        if keep.learned:
            total = total + torch.cat(keep.learned[layer], dim=2)
        torch.testing.assert_close(total, torch.ones_like(total))
        if not family.startswith("falcon"):
            torch.testing.assert_close(keep.whole(layer), out.attentions[layer].float(), atol=1e-5, rtol=0)


def test_the_watches_are_sums_over_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 3 * 4 * 37 * 5)
    length, sinks, window, start, segment = 37, 3, 9, 1, 18
    watches: tuple[Any, ...] = (
        Keep(), SinkWatch(length, 0.05), MassWatch(sinks, window), CopyWatch(start, segment), MeanWatch(2)
    )  # fmt: skip
    keep, sink, mass, copy, _ = watches
    model = tiny_model("llama")
    read(model, tiny_tokens(3 * length).view(3, length), *watches)
    for layer in range(3):
        whole = keep.whole(layer).double()  # [S, H, L, L]
        importance = torch.stack([whole[:, :, k:, k].mean(-1) for k in range(length // 4)], dim=-1)
        torch.testing.assert_close(sink.importance(layer), importance.mean(0))
        torch.testing.assert_close(sink.rate(layer), (importance > 0.05).double().mean(0))
        rest = {"first": 0.0, "local": 0.0, "distance": 0.0}
        queries = range(sinks + window - 1, length)
        for i in queries:
            rest["first"] += whole[:, :, i, :sinks].sum(-1).mean(0)
            rest["local"] += whole[:, :, i, i - window + 1 : i + 1].sum(-1).mean(0)
            rest["distance"] += (whole[:, :, i] * (i - torch.arange(length)).clamp_min(0)).sum(-1).mean(0)
        for name, total in rest.items():
            torch.testing.assert_close(mass.mean(layer, name), total / len(queries), atol=1e-6, rtol=1e-6)
        found = [whole[:, :, start + segment + t, start + t + 1] for t in range(segment - 1)]
        torch.testing.assert_close(copy.mean(layer), torch.stack(found).mean((0, 1)))


def test_batches_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = attach(tiny_model("llama"))
    text = tiny_tokens(400).tolist()
    settings = Settings(tokens=256, length=64, window=16, prompts=9, prompt=32, segment=20, copies=3)
    one = inspect(attached, text, [BOS], settings)
    monkeypatch.setattr(dense, "_BLOCK", 4 * 64 * 3)
    monkeypatch.setattr("penstock.models.inspect.measure._BATCH", 64)
    other = inspect(attached, text, [BOS], settings)
    attached.detach()
    for a, b in zip(one.layers, other.layers):
        for x, y in zip(a.heads, b.heads):
            assert x.kind == y.kind
            for name in ("importance", "first", "local", "distance", "copy"):
                assert getattr(x, name) == pytest.approx(getattr(y, name), abs=1e-5)
    assert one.sink_rate == other.sink_rate


# -- the checks of the metric -------------------------------------------------------------------------------------


def show(watch: Watch, whole: Tensor, block: int = 10) -> None:
    """A whole matrix [S, H, L, L] in blocks of queries, as a layer 0."""
    length = whole.shape[-1]
    for first in range(0, length, block):
        end = min(length, first + block)
        watch.weights(0, first, whole[:, :, first:end, :end], None)


def test_uniform_attention_has_no_sinks() -> None:
    length = 64
    uniform = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    watch = SinkWatch(length)
    show(watch, uniform[None, None])
    harmonic = sum(1 / i for i in range(1, length + 1)) / length
    assert float(watch.importance(0)[0, 0]) == pytest.approx(harmonic, rel=1e-6)
    assert harmonic == pytest.approx(0.074, abs=5e-4)
    assert float(watch.importance(0).max()) == pytest.approx(harmonic, rel=1e-6)
    assert float(watch.rate(0).max()) == 0.0
    assert watch.needed() == 0


@pytest.mark.parametrize("place", [0, 2])
def test_attention_to_one_key_is_a_sink_there(place: int) -> None:
    length = 64
    onehot = torch.eye(length)
    onehot[place:] = nn.functional.one_hot(torch.tensor(place), length).float()
    watch = SinkWatch(length)
    show(watch, onehot[None, None].expand(5, 2, -1, -1))
    assert watch.importance(0)[:, place].tolist() == [1.0, 1.0]
    assert watch.rate(0)[:, place].tolist() == [1.0, 1.0]
    assert watch.needed() == place + 1


def test_a_head_that_looks_at_itself_is_no_sink() -> None:
    watch = SinkWatch(64)
    show(watch, torch.eye(64)[None, None])
    assert float(watch.rate(0).max()) == 0.0


def test_copying_is_found_exactly() -> None:
    segment, start = 12, 2
    length = start + 2 * segment
    whole = torch.eye(length)
    for query in range(start + segment, length - 1):
        whole[query] = nn.functional.one_hot(torch.tensor(query - segment + 1), length).float() * 0.75
    watch = CopyWatch(start, segment)
    show(watch, whole[None, None])
    assert float(watch.mean(0)) == pytest.approx(0.75)


# -- what was planted is found ------------------------------------------------------------------------------------


def planted(head: int = 2) -> nn.Module:
    """A tiny llama whose first layer has one head that rests on the BOS token, through its slowest rotary pair."""
    model: Any = tiny_model("llama")
    attention = model.model.layers[0].self_attn
    width, groups = attention.head_dim, 2
    slow = width // 2 - 1
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, 0], embedding[:, 1] = 0.0, 3.0
        embedding[BOS, 0] = 3.0
        for other in range(4):
            attention.q_proj.weight[other * width + slow] = 0.0
        attention.q_proj.weight[head * width + slow, 1] = 8.0
        attention.k_proj.weight[head // groups * width + slow] = 0.0
        attention.k_proj.weight[head // groups * width + slow, 0] = 8.0
    return model


def test_a_planted_sink_is_found() -> None:
    attached = attach(planted(head=2))
    settings = Settings(tokens=256, length=64, window=16, prompts=20, prompt=64, segment=16, copies=2)
    found = inspect(attached, tiny_tokens(600).tolist(), [BOS], settings)
    attached.detach()
    kinds = [[head.kind for head in layer.heads] for layer in found.layers]
    assert [(i, h) for i, row in enumerate(kinds) for h, kind in enumerate(row) if kind == "sink"] == [(0, 2)]
    head = found.layers[0].heads[2]
    assert head.importance > 0.9
    assert head.sink_rate == 1.0
    assert head.first > 0.9
    assert head.far < 0.1
    assert found.sinks_needed == 1
    assert found.sink_rate[0] == pytest.approx(1 / 12)
    assert head.kv_head == 1


def test_a_missing_bos_moves_the_sink_away() -> None:
    attached = attach(planted())
    settings = Settings(tokens=256, length=64, window=16, prompts=20, segment=16, copies=2)
    found = inspect(attached, tiny_tokens(600).tolist(), [], settings)
    attached.detach()
    assert all(head.kind != "sink" for layer in found.layers for head in layer.heads)


# -- the training-free score --------------------------------------------------------------------------------------


def layer(encoding: Any = None, window: int | None = None) -> Layer:
    return Layer(0, 2, 1, 4, 4, encoding, window)


def test_old_mass_without_positions_is_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, generator=generator), torch.randn(1, 4, generator=generator)
    [score] = old_mass(query, key, layer(), Rule(0.5, None), repeats=500).tolist()
    assert score == pytest.approx(501 / 1000, rel=1e-5)


def test_old_mass_is_high_for_far_keys_and_low_for_near_ones() -> None:
    # One rotary pair: a half turn over the whole length, so that the score is monotone in the distance.
    rotary = Rotary(torch.tensor([torch.pi / 500, 0.0], dtype=torch.float64))
    query = torch.tensor([[30.0, 0, 0, 0]] * 2)
    near = old_mass(query, torch.tensor([[1.0, 0, 0, 0]]), layer(rotary), Rule(1.0, None))
    far = old_mass(query, torch.tensor([[-1.0, 0, 0, 0]]), layer(rotary), Rule(1.0, None))
    assert float(near) < 0.15
    assert float(far) > 0.85
    windowed = old_mass(query, torch.tensor([[-1.0, 0, 0, 0]]), layer(rotary, window=50), Rule(1.0, None))
    assert float(windowed) < 0.11


def test_old_mass_is_the_formula_written_out() -> None:
    rotary = Rotary(torch.tensor([0.3, 0.01], dtype=torch.float64), interleaved=True)
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 4, generator=generator), torch.randn(1, 4, generator=generator)
    [score] = old_mass(query, key, layer(rotary), Rule(0.7, 5.0), repeats=40).tolist()
    expected = 0.0
    for q in query.double():
        scores = []
        for place in range(40):
            turned = 0.0
            for pair, frequency in enumerate((0.3, 0.01)):
                a, b = (
                    torch.complex(*q[2 * pair : 2 * pair + 2]),
                    torch.complex(*key[0, 2 * pair : 2 * pair + 2].double()),
                )
                turned += float(
                    (
                        a
                        * b.conj()
                        * torch.polar(torch.tensor(1.0).double(), torch.tensor((39 - place) * frequency).double())
                    ).real
                )
            scores.append(5.0 * torch.tanh(torch.tensor(turned * 0.7 / 5.0)))
        expected += float(torch.stack(scores).softmax(0).cumsum(0).mean()) / 2
    assert score == pytest.approx(expected, abs=1e-5)


# -- bad input ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused_with_the_fix() -> None:
    attached = attach(tiny_model("llama"))
    with pytest.raises(InputError, match="longer one"):
        inspect(attached, [5] * 8, [BOS])
    with pytest.raises(UsageError, match="smaller window"):
        inspect(attached, tiny_tokens(60).tolist(), [BOS])
    with pytest.raises(UsageError, match="epsilon"):
        Settings(epsilon=0.0)
    with pytest.raises(UsageError, match="window"):
        Settings(window=0)
    attached.detach()


def test_samples_are_cut_to_what_the_model_knows() -> None:
    attached = attach(tiny_model("gpt2"))
    found = inspect(attached, tiny_tokens(900).tolist(), (), Settings(tokens=900, prompts=4, copies=1))
    attached.detach()
    assert found.settings.length == 256
    assert found.settings.segment == 128
    assert len(found.layers) == 3
    assert VOCABULARY == 128
    document = found.document()
    assert len(document["layers"][0]["heads"]) == 4
    assert len(document["gates"]["copy"][0]) == 4
