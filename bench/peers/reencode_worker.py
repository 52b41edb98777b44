"""What does a sliding window without a cache cost? The newest tokens are encoded again for every new one."""

from __future__ import annotations

from typing import Any

import torch

from bench.peers.llama_torch import Tokens, build_model, versions
from bench.peers.protocol import Peer, Setup, Timing, serve, timed
from bench.shapes import BUDGET


class Reencode(Peer):
    """Keeps token identifiers only; the logits are those of the last token of the window."""

    def setup(self, setup: Setup) -> None:
        self.model = build_model(setup)
        self.tokens = Tokens(setup.shape)
        self.window = self.tokens.take(BUDGET)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        self.window = torch.cat([self.window, ids], dim=1)[:, -BUDGET:]
        return self.model(self.window, use_cache=False, logits_to_keep=1).logits

    def check(self, tokens: list[int]) -> list[float]:
        self.window = torch.tensor([tokens[:-1]])
        return self.step(torch.tensor([tokens[-1:]]))[0, -1].float().tolist()

    def seek(self, position: int) -> None:
        self.window = self.tokens.take(min(position, BUDGET))

    def decode(self, steps: int, phase: float) -> Timing:
        return Timing([timed(self.step, self.tokens.take(1)) for _ in range(steps)])

    def memory_bytes(self) -> int:
        return self.window.numel() * self.window.element_size()

    def describe(self) -> dict[str, Any]:
        return versions() | {"attention": "sdpa", "cache": "none"}


if __name__ == "__main__":
    serve(Reencode())
