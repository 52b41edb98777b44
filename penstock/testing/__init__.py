"""For tests, ours and those of people who build on penstock: tiny models of every family, and a server in this process.

model = tiny_model("llama")               # float32, on the CPU, a few tens of thousands of weights
tokens = tiny_tokens(200)                 # [200] int64
with server() as running:                 # the real application, on a free port of the loopback
    running.client().sessions.create().append("a line of the stream\\n")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.testing.models import (
    LEARNED,
    SLIDING,
    VOCABULARY,
    families,
    randomise,
    tiny_config,
    tiny_model,
    tiny_tokens,
)

if TYPE_CHECKING:
    from penstock.testing.running import Running


@contextmanager
def server(
    model: Any = None, memory: str = "streaming-llm", budget: int | str | None = 64, *, state: Path | str | None = None,
    tokens: dict[str, str] | None = None, port: int = 0, rows: int = 4, measure: bool = True, **limits: Any,
) -> Iterator[Running]:  # fmt: skip
    """The application of `penstock serve` in this process, on a thread of its own, until the block ends.

    `model`: as for `penstock.open`; None is the shipped one.  `tokens`: bearer tokens and the names of their owners;
    None asks for none.  `state`: a folder that keeps sessions.  `limits`: fields of `penstock.serve.http.Limits`.
    Needs the extra `serve`.
    """
    from penstock.testing.running import start

    running = start(model, memory, budget, state, tokens, port, rows, measure, limits)
    try:
        yield running
    finally:
        running.stop()


__all__ = [
    "LEARNED",
    "SLIDING",
    "VOCABULARY",
    "families",
    "randomise",
    "server",
    "tiny_config",
    "tiny_model",
    "tiny_tokens",
]
