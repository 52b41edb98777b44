"""What does llama.cpp cost on an endless stream? Its context shift, with the sinks kept.

Two ways, by the option `shift`:
`one`   the same function as ours: before each token the oldest entry behind the sinks is removed and the positions of
        the rest move down by one, so a query sees 4 + 1020 entries, itself included;
`half`  the customary cheaper way of its own programs: when the context is full, half of what is not kept is removed
        at once. Steps between two shifts see 514 to 1024 entries; the cost of the shift is spread over them.

Runs in its own environment (llama-cpp-python, compiled for this machine). A half-precision row is float16 here, for
weights, keys and values; the option `flash` picks its fused attention.
"""

from __future__ import annotations

import ctypes
import statistics
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as api

from bench.peers.gguf_model import write_model
from bench.peers.protocol import Peer, Setup, Skip, Timing, serve, timed
from bench.peers.weights import token_stream
from bench.shapes import BUDGET, CHUNK, SINKS

GGML_F32, GGML_F16 = 0, 1
EVENTS = 5


def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log below errors."""
    if level == 4:
        print(text.decode(errors="replace"), end="")


class LlamaCpp(Peer):
    """One context of BUDGET cells, driven through the low-level interface."""

    def setup(self, setup: Setup) -> None:
        self.log = api.llama_log_callback(_quiet)
        api.llama_log_set(self.log, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.setup_ = setup
        self.half = setup.options.get("shift", "one") == "half"
        self.dtype = "float32" if setup.dtype == "float32" else "float16"
        path = write_model(setup.shape, self.dtype, setup.scratch)
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self.model:
            raise Skip(f"llama.cpp does not load {path.name}")
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = BUDGET, CHUNK, CHUNK
        params.n_threads = params.n_threads_batch = setup.threads
        params.type_k = params.type_v = GGML_F32 if self.dtype == "float32" else GGML_F16
        params.flash_attn_type = 1 if setup.options.get("flash", True) else 0
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context or api.llama_n_ctx(self.context) != BUDGET:
            raise Skip("llama.cpp makes no context of the wanted size")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(CHUNK, 0, 1)
        self.ids = token_stream(setup.shape, 8192)
        self.next = 0
        self.cells = 0
        self.shifts: list[float] = []

    def take(self, count: int) -> list[int]:
        if self.next + count > len(self.ids):
            self.next = 0
        self.next += count
        return self.ids[self.next - count : self.next]

    def make_room(self, coming: int) -> None:
        """The context shift: remove the oldest behind the sinks, move the positions of the rest."""
        if self.cells + coming <= BUDGET:
            return
        gone = (self.cells - SINKS) // 2 if self.half else self.cells + coming - BUDGET
        if not api.llama_memory_seq_rm(self.memory, 0, SINKS, SINKS + gone):
            raise RuntimeError("llama.cpp refused to remove entries")
        api.llama_memory_seq_add(self.memory, 0, SINKS + gone, self.cells, -gone)
        self.cells -= gone

    def forward(self, ids: list[int]) -> Any:
        """Make room, read the tokens, and return the pointer to the logits of the last one."""
        self.make_room(len(ids))
        batch = self.batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = self.cells + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(ids) - 1
        status = api.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status} with {self.cells} cells used")
        self.cells += len(ids)
        return api.llama_get_logits_ith(self.context, -1)

    def fill(self, cells: int) -> None:
        """Have exactly this many cells in use."""
        if self.cells > cells:
            api.llama_memory_seq_rm(self.memory, 0, cells, -1)
            self.cells = cells
        while self.cells < cells:
            self.forward(self.take(min(CHUNK, cells - self.cells)))

    def check(self, tokens: list[int]) -> list[float]:
        self.fill(0)
        for token in tokens:
            logits = self.forward([token])
        return np.ctypeslib.as_array(logits, shape=(self.setup_.shape.vocabulary,)).tolist()

    def seek(self, position: int) -> None:
        self.fill(0)
        self.fill(min(position, BUDGET))

    def decode(self, steps: int, phase: float) -> Timing:
        if not self.half:
            return Timing([timed(self.forward, self.take(1)) for _ in range(steps)])
        after = BUDGET - (BUDGET - SINKS) // 2  # cells in use after a shift
        cycle = BUDGET - after
        if len(self.shifts) < EVENTS:  # the rare event is timed on the first visits only
            self.fill(BUDGET)
            shifting = timed(self.forward, self.take(1))
            plain = statistics.median(timed(self.forward, self.take(1)) for _ in range(3))
            self.shifts.append(max(0.0, shifting - plain))
        self.fill(after + round(phase * (cycle - steps)))
        seconds = [timed(self.forward, self.take(1)) for _ in range(steps)]
        return Timing(seconds, amortised=statistics.median(self.shifts) / cycle)

    def ingest(self, chunk: int, count: int) -> Timing:
        return Timing([timed(self.forward, self.take(chunk)) for _ in range(count)])

    def memory_bytes(self) -> int:
        """The preallocated cells (the formula; llama.cpp allocates all of them at the start)."""
        return self.setup_.shape.kv_bytes(BUDGET, 4 if self.dtype == "float32" else 2)

    def describe(self) -> dict[str, Any]:
        return {
            "llama_cpp_python": llama_cpp.__version__,
            "system": api.llama_print_system_info().decode().strip(),
            "dtype": self.dtype,
            "flash_attention": bool(self.setup_.options.get("flash", True)),
            "shift": "half" if self.half else "one",
        }


if __name__ == "__main__":
    serve(LlamaCpp())
