"""A starting point from which looking things up in pictures is learned in minutes.

The hidden width is cut into orthogonal subspaces.  In one of them each word of the world has a direction of its own;
in another the projector says what it sees in a place (shape, colour, plate, place), one direction for each.  The first
layer writes the words 1 to 4 back into subspaces of their own (worlds/circuit.py); the second compares them with what
pictures show, both ways, and copies.  Everything stays trainable.
"""

from __future__ import annotations

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

    `frame` is orthogonal: column 0 is the constant, then the words, what is seen, and the words 1 to 4 back.
    """

    def __init__(self, config: NetConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        start = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 1))
        start[:, 0] = F.one_hot(torch.tensor(0), width)
        frame = torch.linalg.qr(start)[0]
        parts = [1, len(WORDS), 2 + sum(len(words) for words in CODES.values()), *[len(WORDS)] * _BACK]
        _, self.read, space, *self.slots = frame[:, : sum(parts)].split(parts, dim=1)
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
        self._look_back(first, angle)
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


def _weights(attention: nn.Module) -> list[Tensor]:
    return [attention.get_parameter(f"{part}_proj.weight") for part in "qkvo"]
