"""What does penstock cost? Our own contestant, behind the same protocol as all peers.

The option `path` picks the eager or the compiled step. The stream is filled by reading tokens, then its counter is
shifted to the far position; the memory is the same as if every token before had been read.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bench.peers.llama_torch import Tokens, build_model, versions
from bench.peers.protocol import Peer, Setup, Skip, Timing, serve, timed
from bench.shapes import BUDGET


class Ours(Peer):
    """An open stream on the same random model."""

    def setup(self, setup: Setup) -> None:
        try:
            import penstock

            self.open = penstock.open
        except (ImportError, AttributeError) as reason:
            raise Skip(f"penstock.open is not available yet ({reason})") from reason
        self.setup_ = setup
        self.model = build_model(setup)
        self.tokens = Tokens(setup.shape)
        self.restart()

    def restart(self) -> None:
        self.stream = self.open(
            self.model, tokenizer=None, memory="streaming-llm", budget=BUDGET, path=self.setup_.options["path"]
        )

    def check(self, tokens: list[int]) -> list[float]:
        self.restart()
        for token in tokens:
            logits = self.stream.decode(token)
        return torch.as_tensor(logits).flatten().float().tolist()

    def read_singly(self, ids: list[int]) -> torch.Tensor:
        """Logits after each token, read one by one, [T, vocabulary]."""
        return torch.stack([torch.as_tensor(self.stream.decode(token)).flatten() for token in ids])

    def read_block(self, ids: list[int]) -> torch.Tensor:
        """Logits after each token, read as one chunk, [T, vocabulary]."""
        return torch.as_tensor(self.stream.ingest(ids, logits="all")).reshape(len(ids), -1)

    def seek(self, position: int) -> None:
        if self.position == 0:
            self.stream.ingest(self.tokens.take(BUDGET)[0].tolist(), logits="none")
            self.position = BUDGET
        self.stream.shift(position - self.position)
        self.position = position

    def decode(self, steps: int, phase: float) -> Timing:
        ids = self.tokens.take(steps)[0].tolist()
        return Timing([timed(self.stream.decode, token) for token in ids])

    def ingest(self, chunk: int, count: int) -> Timing:
        chunks = [self.tokens.take(chunk)[0].tolist() for _ in range(count)]
        read = functools.partial(self.stream.ingest, logits="last")
        return Timing([timed(read, ids) for ids in chunks])

    def memory_bytes(self) -> int:
        return int(self.stream.memory.nbytes)

    def describe(self) -> dict[str, Any]:
        return versions() | {"path": self.setup_.options["path"]}


if __name__ == "__main__":
    serve(Ours())
