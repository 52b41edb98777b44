"""What does the stock transformers cache cost? DynamicCache with scaled-dot-product attention, growing for ever."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from bench.peers.llama_torch import Tokens, build_model, cache_bytes, fill_cache, versions
from bench.peers.protocol import Peer, Setup, Timing, serve, timed


class Dense(Peer):
    """Sees everything, keeps everything."""

    def setup(self, setup: Setup) -> None:
        self.setup_ = setup
        self.model = build_model(setup)
        self.tokens = Tokens(setup.shape)
        self.cache = DynamicCache(config=self.model.config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits

    def check(self, tokens: list[int]) -> list[float]:
        self.cache = DynamicCache(config=self.model.config)
        for token in tokens:
            logits = self.forward(torch.tensor([[token]]))
        return logits[0, -1].float().tolist()

    def seek(self, position: int) -> None:
        self.cache = DynamicCache(config=self.model.config)
        fill_cache(self.cache, self.setup_, position)

    def decode(self, steps: int, phase: float) -> Timing:
        return Timing([timed(self.forward, self.tokens.take(1)) for _ in range(steps)])

    def ingest(self, chunk: int, count: int) -> Timing:
        return Timing([timed(self.forward, self.tokens.take(chunk)) for _ in range(count)])

    def memory_bytes(self) -> int:
        return cache_bytes(self.cache)

    def describe(self) -> dict[str, Any]:
        return versions() | {"attention": "sdpa", "cache": "DynamicCache"}


if __name__ == "__main__":
    serve(Dense())
