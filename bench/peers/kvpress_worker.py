"""What does kvpress cost on an endless stream? StreamingLLMPress under its DecodingPress, 4 sinks.

Two ways, by the option `lazy`:
false   compress after every forward to 1024 entries: the budget of everybody else, held at every step;
true    the customary cheaper way, inside the same budget: compress to 512 entries every 512 steps, the cost of the
        compression spread over the steps.

Runs in its own environment (kvpress asks for an older transformers). DecodingPress takes scorer presses only, so keys
are not rotated again (its KeyRerotationPress does not fit inside): entries keep their stream positions. The scores of
what stays are all equal and the top-k over them does not keep the order of entries, while the next compression looks
for sinks at the front: on this machine one of the four sinks had left after 12 steps. So it is not the paper's
function; its cost is what it is, and is measured as it is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import statistics
from typing import Any

import torch
from kvpress import DecodingPress, StreamingLLMPress
from transformers import DynamicCache

from bench.peers.llama_torch import Tokens, build_model, cache_bytes, fill_cache, versions
from bench.peers.protocol import Peer, Setup, Timing, serve, timed
from bench.shapes import BUDGET, SINKS

LAZY_INTERVAL = 512
EVENTS = 5


class KVPress(Peer):
    """A stock model inside the press's context manager."""

    def setup(self, setup: Setup) -> None:
        logging.getLogger("kvpress").setLevel(logging.ERROR)
        self.setup_ = setup
        self.lazy = bool(setup.options.get("lazy", False))
        self.model = build_model(setup)
        self.press = DecodingPress(
            base_press=StreamingLLMPress(n_sink=SINKS),
            compression_interval=LAZY_INTERVAL if self.lazy else 1,
            target_size=BUDGET - LAZY_INTERVAL if self.lazy else BUDGET,
            hidden_states_buffer_size=0,  # this press looks at no hidden states
        )
        self.hooks = contextlib.ExitStack()
        self.hooks.enter_context(self.press(self.model))
        self.tokens = Tokens(setup.shape)
        self.events: list[float] = []
        self.restart(0)

    def restart(self, position: int) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.position = position
        self.press.reset()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(self.position, self.position + ids.shape[1])[None]
        self.position += ids.shape[1]
        return self.model(ids, position_ids=positions, past_key_values=self.cache, logits_to_keep=1).logits

    def step(self) -> float:
        ids = self.tokens.take(1)
        return timed(self.forward, ids)

    def check(self, tokens: list[int]) -> list[float]:
        self.restart(0)
        for token in tokens:
            logits = self.forward(torch.tensor([[token]]))
        return logits[0, -1].float().tolist()

    def fill(self, entries: int) -> None:
        """A cache of this many entries, the step counters of the press where they would be."""
        self.restart(self.position)
        fill_cache(self.cache, self.setup_, entries)
        if self.lazy:
            for layer in range(self.setup_.shape.layers):
                self.press.layer_step_counts[layer] = entries - (BUDGET - LAZY_INTERVAL)

    def seek(self, position: int) -> None:
        self.position = position
        self.fill(min(position, BUDGET - LAZY_INTERVAL if self.lazy else BUDGET))

    def decode(self, steps: int, phase: float) -> Timing:
        if not self.lazy:
            return Timing([self.step() for _ in range(steps)])
        if len(self.events) < EVENTS:  # the rare event is timed on the first visits only
            self.fill(BUDGET - 4)
            plain = statistics.median(self.step() for _ in range(3))
            self.events.append(max(0.0, self.step() - plain))
        self.fill(BUDGET - LAZY_INTERVAL + round(phase * (LAZY_INTERVAL - steps - 2)))
        self.step()
        seconds = [self.step() for _ in range(steps)]
        return Timing(seconds, amortised=statistics.median(self.events) / LAZY_INTERVAL)

    def ingest(self, chunk: int, count: int) -> Timing:
        """With `lazy` the press counts forwards, not tokens: a chunk would overrun the budget, so it is not offered."""
        if self.lazy:
            return super().ingest(chunk, count)
        return Timing([timed(self.forward, self.tokens.take(chunk)) for _ in range(count)])

    def memory_bytes(self) -> int:
        return cache_bytes(self.cache)

    def describe(self) -> dict[str, Any]:
        return versions() | {"kvpress": importlib.metadata.version("kvpress"), "lazy": self.lazy, "attention": "sdpa"}


if __name__ == "__main__":
    serve(KVPress())
