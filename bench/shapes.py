"""Which model shapes are measured, and how many bytes must one decode step read?

Standard library only: the workers of peers in other environments import this file.
"""

from __future__ import annotations

from dataclasses import dataclass

SINKS = 4
WINDOW = 1020
BUDGET = SINKS + WINDOW  # entries that a query may read, itself included
CHUNK = 256  # tokens per ingest call
ROPE_THETA = 10000.0
RMS_EPS = 1e-6
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """All weights, the embedding counted once when it is tied."""
        embedding = 0 if self.tied else self.vocabulary * self.hidden
        return self.parameters_read + embedding

    @property
    def parameters_read(self) -> int:
        """Weights that one decode step reads: every matrix and norm once; of an untied embedding only one row."""
        kv_width = self.kv_heads * self.head_dim
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv_width
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden

    def kv_bytes(self, entries: int, itemsize: int) -> int:
        """Keys and values of `entries` positions in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * entries * itemsize

    def step_bytes(self, itemsize: int, visible: int = BUDGET) -> int:
        """The physical limit of a decode step: the weights once, plus keys and values of what the query sees."""
        return self.parameters_read * itemsize + self.kv_bytes(visible, itemsize)


SHAPES = {
    "T": Shape("T", 288, 6, 6, 6, 768, 32_000, tied=False),
    "M": Shape("M", 576, 30, 9, 3, 1536, 49_152, tied=True),
}
