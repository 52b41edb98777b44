"""What does penstock cost? Our own contestant, behind the same protocol as all peers.

The option `path` picks the step: eager, compiled, native, native with int8 weights, or (`auto`) what a session ends up
with by itself: the native one where it is built. A window is filled by reading tokens, then
the counter of the stream is shifted to the far position, which leaves the memory as if every token before had been
read. The option `memory` names another method, one with an archive; that one reads all the way. Steps go through the
public session (`decode`, `ingest`), its bookkeeping included; chunks of 256 are read as one step in the
chunk-invariant form, in which every query sees the 4 + 1020 entries of its own position.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from bench.peers.llama_torch import Tokens, build_model, versions
from bench.peers.protocol import Peer, Setup, Skip, Timing, serve, timed
from bench.shapes import BUDGET, CHUNK


class Ours(Peer):
    """An open session on the same random model."""

    def setup(self, setup: Setup) -> None:
        try:
            import penstock

            self.open = penstock.open
        except (ImportError, AttributeError) as reason:
            raise Skip(f"penstock.open is not available yet ({reason})") from reason
        self.path, self.method = setup.options["path"], setup.options.get("memory", "streaming-llm")
        self.model = penstock.load(build_model(setup))
        self.tokens = Tokens(setup.shape)
        self.restart()
        begin = time.monotonic()
        self.seek(BUDGET)  # full memories have fixed shapes: here the compiled path compiles, both kinds of steps
        self.decode(2, 0.0)
        self.ingest(CHUNK, 2)
        self.ready = {"runs": self.session.runner.status, "ready_seconds": round(time.monotonic() - begin, 1)}
        self.restart()

    def restart(self) -> None:
        self.session = self.open(self.model, self.method, BUDGET, chunk=CHUNK, path=self.path)
        if self.path == "auto":  # compiled once per process, then found again
            self.session.runner.prepare(1)
            self.session.runner.prepare(CHUNK)

    def check(self, tokens: list[int]) -> list[float]:
        self.restart()
        logits = self.read_singly(tokens)[-1].float().tolist()
        self.restart()
        return logits

    def read_singly(self, ids: list[int]) -> torch.Tensor:
        """Logits after each token, read one by one, [T, vocabulary]."""
        return torch.stack([self.session.decode(token) for token in ids])

    def read_block(self, ids: list[int]) -> torch.Tensor:
        """Logits after each token, read as one chunk, [T, vocabulary]."""
        from penstock.core import Span

        logits = self.session.runner.step([Span(0, len(ids))], ids, "all")
        assert logits is not None
        return logits

    def seek(self, position: int) -> None:
        """Read to a full window first, then shift the counter; an archive is filled by reading all the way."""
        if self.method != "streaming-llm":
            while self.session.tokens < position:
                self.session.ingest(self.tokens.take(min(CHUNK, position - self.session.tokens))[0].tolist())
            return
        if self.session.tokens < BUDGET:
            self.session.ingest(self.tokens.take(BUDGET - self.session.tokens)[0].tolist())
        self.session._memory.shift(position - self.session.tokens)

    def decode(self, steps: int, phase: float) -> Timing:
        ids = self.tokens.take(steps)[0].tolist()
        return Timing([timed(self.session.decode, token) for token in ids])

    def ingest(self, chunk: int, count: int) -> Timing:
        chunks = [self.tokens.take(chunk)[0].tolist() for _ in range(count)]
        return Timing([timed(self.session.ingest, ids) for ids in chunks])

    def memory_bytes(self) -> int:
        return int(self.session.memory.nbytes)

    def describe(self) -> dict[str, Any]:
        return versions() | {"path": self.path} | self.ready


if __name__ == "__main__":
    serve(Ours())
