"""A starting point from which looking things up in pictures is learned in minutes.

The hidden width is cut into orthogonal subspaces.  In one of them each word of the world has a direction of its own;
in another the projector says what it sees in a place (shape, colour, plate, place), one direction for each.

    layer 0   the words 1 to 4 back, into subspaces of their own (worlds/circuit.py), and how many of the four tokens
              back are empty or meet; what was in the same place a frame ago; a unit that fires where something is new
    layer 1   compares the words back with what pictures show, both ways, and copies
    layer 2   behind a frame: what is new in it; at the end of a question about two things: the words of the first
    layer 3   pictures that show one of the words back, rather new things, rather late ones

Everything stays trainable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.worlds.net import NetConfig
from penstock.worlds.shapes.things import COLOURS, PLACES, SHAPES

CODES = {"shape": SHAPES, "colour": COLOURS, "plate": COLOURS, "place": PLACES}
WORDS = SHAPES + COLOURS + PLACES
_CONSTANT = 0.08  # dimension 0 of every embedding, as in worlds/circuit.py
_SIZE = 0.3  # of a word in its direction
_EMPTY = 0.5  # of the direction that says that nothing is in a place
_BACK = 4  # how many words back the first layer reads
_STRENGTH = 2.0  # of the heads that read back
_LOOK_BACK = 0.1  # what they write
_MATCH = 0.95  # strength of the comparison in the second layer
_WRITE = 0.08  # what it copies
_COUNT = 0.03  # what a head writes for each empty place among the four tokens back
_BEFORE = 6.0  # about so many tokens back the same place was a frame ago; twice that if something was said since
_SAME = 1.2  # of the comparison of places
_PAST = 0.06  # what is written of the frame before
_APART = 7  # tokens from the end of a question about two things to the end of the first
# What the words 1, 2, 3 and 4 back may name in a question.
_ROLES = ("plate", "place", "shape", "colour")


def spread(count: int, dim: int, seed: int = 11) -> Tensor:
    """Unit vectors [count, dim], as far from parallel and opposite as some rounds of pushing make them."""
    x = F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)
    for _ in range(400):
        gram = x @ x.T - torch.eye(count)
        x = F.normalize(x - 0.1 * (gram.sign() * gram.abs() ** 3) @ x * 4, dim=1)
    return x


class Outline(nn.Module):
    """The directions of what is seen: what the projector is trained to say at first.

    All directions are orthogonal: the constant, the words, what is seen, the words 1 to 4 back, what was seen a frame
    before, how many meet and are empty, and two signs of something new.
    """

    def __init__(self, config: NetConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        start = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 1))
        start[:, 0] = F.one_hot(torch.tensor(0), width)
        frame = torch.linalg.qr(start)[0]
        seen = 2 + sum(len(words) for words in CODES.values())
        parts = [1, len(WORDS), seen, *[len(WORDS)] * _BACK, seen, seen, 2, 1, 1]
        _, self.read, space, *others = frame[:, : sum(parts)].split(parts, dim=1)
        *self.slots, self.before, self.picked, self.counts, self.earlier, self.new = others
        self.space: Tensor
        self.register_buffer("space", space.contiguous())  # [hidden, directions]: where pictures speak

    @staticmethod
    def seen(kind: str) -> slice:
        """The directions of an attribute among those of what is seen."""
        start = 0
        for name, words in CODES.items():
            if name == kind:
                return slice(start, start + len(words))
            start += len(words)
        raise KeyError(kind)

    @staticmethod
    def said(kind: str) -> slice:
        """The directions of an attribute's words among those of words."""
        start = WORDS.index(CODES[kind][0])
        return slice(start, start + len(CODES[kind]))

    def target(self, labels: Tensor) -> Tensor:
        """What is to be said [n, hidden] of labels [n, 5] (shape, colour, plate, place; -1 is none; meets)."""
        inner = torch.zeros(len(labels), self.space.shape[1])
        for column, kind in enumerate(CODES):
            part = F.one_hot(labels[:, column].clamp(min=0), len(CODES[kind])) * (labels[:, column, None] >= 0)
            inner[:, self.seen(kind)] = _SIZE * part
        inner[:, -1] = _EMPTY * (labels[:, 0] < 0)
        inner[:, -2] = _SIZE * labels[:, 4]
        out = inner @ self.space.T
        return out + F.one_hot(torch.zeros(len(labels), dtype=torch.int64), out.shape[1]) * _CONSTANT

    def scores(self, spoken: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute in what the projector says [n, hidden]; the last column is none."""
        inner = spoken @ self.space / _SIZE
        out = {}
        for kind in CODES:
            match = inner[:, self.seen(kind)]  # near 1 for the word that is said
            out[kind] = 12 * torch.cat([match, torch.full_like(match[:, :1], 0.5)], dim=1)
        met = inner[:, -2]
        return out | {"meets": 12 * torch.stack([torch.full_like(met, 0.5), met], dim=1)}

    @torch.no_grad()
    def prepare(self, embedding: nn.Embedding, layers: nn.ModuleList, word_ids: list[int]) -> None:
        """Write the circuit into the embedding and the first two layers; `word_ids` are the tokens of WORDS."""
        config, space, read = self.config, self.space, self.read
        heads, kv, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        first, second = (layers[i].get_submodule("self_attn") for i in (0, 1))
        embedding.weight[:, 0] = _CONSTANT
        for index, token in enumerate(word_ids):
            code = _SIZE * F.one_hot(torch.tensor(index), len(WORDS))
            embedding.weight[token] += read @ (code - read.T @ embedding.weight[token])
        angle = config.rope_theta ** (-torch.arange(dim // 2) * 2 / dim)
        for layer in layers:  # the constant stays one
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                layer.get_parameter(f"{name}.weight")[0] = 0.0
        self._look_back(first, angle)
        self._compare_frames(first, angle)
        self._notice(layers[0])
        self._pick_new(layers[2].get_submodule("self_attn"), angle)
        self._pick_late(layers[3].get_submodule("self_attn"), angle)
        q1, k1, v1, o1 = _weights(second)
        slow = torch.nonzero(angle < 1 / 400).flatten()  # they match at any distance
        slow = torch.cat([slow, slow + dim // 2])
        for group in range(kv):
            codes = _MATCH * spread(space.shape[1], len(slow), 11 + group)  # [directions, dims]
            shown = codes.T @ space.T
            asked = torch.zeros(len(slow), config.hidden_size)
            for slot, kind in zip(self.slots, _ROLES):
                asked += codes[self.seen(kind)].T @ slot.T[self.said(kind)]
            query, key = (asked, shown) if group < kv - 1 else (shown, asked)
            k1[group * dim : (group + 1) * dim] *= 0.2
            k1[group * dim + slow] = key
            v1[group * dim : group * dim + space.shape[1]] = space.T
            for head in range(group * heads // kv, (group + 1) * heads // kv):
                q1[head * dim : (head + 1) * dim] *= 0.2
                q1[head * dim + slow] = query
                kind = list(CODES)[head % 4]
                where = head * dim + torch.arange(dim)[self.seen(kind)]
                o1[:, where] = _WRITE * read[:, self.said(kind)]

    def _look_back(self, layer: nn.Module, angle: Tensor) -> None:
        """Heads 0 to 3 read the words 1 to 4 back and write them into subspaces of their own."""
        q, k, v, o = _weights(layer)
        dim, half = self.config.head_dim, len(angle)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        amplitude = torch.zeros(half)  # slow pairs say little about small distances
        amplitude[: min(6, half)] = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.5])[:half]
        scale = _STRENGTH * amplitude.sqrt().repeat(2)
        for head, slot in enumerate(self.slots):
            rows, shared = head * dim, head // groups * dim
            turn = angle * (head + 1)
            q[rows : rows + dim, 0] = scale * torch.cat([turn.cos(), -turn.sin()])
            k[shared : shared + dim, 0] = scale * torch.cat([torch.ones(half), torch.zeros(half)])
            v[shared : shared + len(WORDS)] = self.read.T
            o[:, rows : rows + len(WORDS)] = _LOOK_BACK * slot
            v[shared + len(WORDS) : shared + len(WORDS) + 2] = self.space[:, -2:].T
            o[:, rows + len(WORDS) : rows + len(WORDS) + 2] = _COUNT * self.counts

    def _near(self, weights: Sequence[float], back: float, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key [head_dim] of the constant that prefer what is about `back` tokens back; weights of pairs."""
        amplitude = torch.zeros(len(angle))
        amplitude[: len(weights)] = torch.tensor(weights)
        scale, turn = _STRENGTH * amplitude.sqrt().repeat(2), angle * back
        one = torch.ones(len(angle))
        return scale * torch.cat([turn.cos(), -turn.sin()]), scale * torch.cat([one, 0 * one])

    def _compare_frames(self, layer: nn.Module, angle: Tensor) -> None:
        """Heads 6 and 7 read the same place of the frame before; 7 where something was said in between."""
        q, k, v, o = _weights(layer)
        dim, shared = self.config.head_dim, 3 * self.config.head_dim
        place = self.space[:, self.seen("place")].T
        slow = 9 + torch.arange(len(place))
        v[shared : shared + self.space.shape[1]] = self.space.T
        for head, back in ((6, _BEFORE), (7, 2 * _BEFORE - 1)):
            query, key = self._near((0.0, 3.0, 3.0, 1.5), back, angle)
            rows = head * dim
            q[rows : rows + dim], q[rows : rows + dim, 0] = 0.0, query
            k[shared : shared + dim], k[shared : shared + dim, 0] = 0.0, key
            q[rows + slow] = _SAME * place
            k[shared + slow] = _SAME * place
        o[:, 6 * dim : 6 * dim + self.space.shape[1]] = _PAST * self.before
        o[:, 7 * dim + self.space.shape[1] - 1] = _PAST * self.earlier[:, 0]

    def _notice(self, layer: nn.Module) -> None:
        """The first unit of the feed-forward fires where something is and was not a frame ago."""
        gate, up, down = (layer.get_parameter(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        gate[0] = 3.0 * self.before[:, -1] - 6.0 * self.space[:, -1] + 4.0 * self.space[:, self.seen("place")].sum(1)
        gate[0, 0] = -14.0
        up[0] = F.one_hot(torch.tensor(0), len(self.space))
        down[:, 0] = 0.034 * self.new[:, 0]

    def _pick_new(self, layer: nn.Module, angle: Tensor) -> None:
        """Heads 0 and 1 read what is new in the last frame, 2 and 3 the words of the first of two things."""
        q, k, v, o = _weights(layer)
        dim = self.config.head_dim
        query, key = self._near((6.0, 12.0, 12.0, 12.0), 2.5, angle)
        q[: 2 * dim], k[:dim] = 0.2 * q[: 2 * dim], 0.2 * k[:dim]
        q[: 2 * dim, 0], k[:dim, 0] = query.repeat(2), key
        q[[12, dim + 12], 0], k[12] = 6.0, 6.0 * self.new[:, 0]
        v[: self.space.shape[1]] = self.space.T
        o[:, : self.space.shape[1]] = _WRITE * self.picked
        query, key = self._near((24.0, 18.0, 12.0, 6.0), _APART, angle)
        rows, shared = slice(2 * dim, 4 * dim), slice(dim, 2 * dim)
        q[rows], k[shared] = 0.2 * q[rows], 0.2 * k[shared]
        q[rows, 0], k[shared, 0] = query.repeat(2), key
        at = dim
        for slot, kind in zip(self.slots, _ROLES):
            if kind != "place":
                words = slot[:, self.said(kind)]
                v[at : at + words.shape[1]] = words.T
                o[:, at + dim : at + dim + words.shape[1]] = _WRITE * words
                at += words.shape[1]

    def _pick_late(self, layer: nn.Module, angle: Tensor) -> None:
        """Heads 0 and 1 look for what the words back name, the latest arrival first."""
        q, k, v, o = _weights(layer)
        dim = self.config.head_dim
        slow = torch.nonzero(angle < 1 / 400).flatten()
        slow = torch.cat([slow, slow + len(angle)])
        codes = 1.4 * spread(self.space.shape[1] + 1, len(slow), 31)  # [directions and newness, dims]
        asked = torch.zeros(len(slow), len(self.space))
        for slot, kind in zip(self.slots, _ROLES):
            if kind != "place":
                asked += codes[self.seen(kind)].T @ slot[:, self.said(kind)].T
        asked[:, 0] += 6.0 * codes[-1]
        k[:dim] *= 0.2
        k[slow] = codes[:-1].T @ self.space.T + codes[-1][:, None] * self.new.T
        late, key = self._near((0.0, 0.0, 0.0, 0.0, 4.0, 8.0), -50.0, angle)
        k[:dim, 0] += key
        v[: self.space.shape[1]] = self.space.T
        for rows in (0, dim):
            q[rows : rows + dim] *= 0.2
            q[rows + slow] = asked
            q[rows : rows + dim, 0] += late
        o[:, : self.space.shape[1]] = _WRITE * self.picked


def _weights(attention: nn.Module) -> list[Tensor]:
    return [attention.get_parameter(f"{part}_proj.weight") for part in "qkvo"]
