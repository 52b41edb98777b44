"""Who takes part? Every contestant by name, with the process that runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.shapes import BUDGET


@dataclass(frozen=True)
class Entrant:
    """A contestant: its worker module, the environment it runs in, and the options it is set up with."""

    name: str
    what: str
    worker: str
    environment: str = ""  # a key of environments.ENVIRONMENTS; empty: the environment of the benchmark itself
    options: dict[str, Any] = field(default_factory=dict)
    family: str = ""  # contestants of one family are settings of one program; ratios use the fastest of them
    weight_bytes: int = 0  # of one weight that it reads; 0: that of the precision
    visible: int = BUDGET  # entries that a query sees, on average; 0: all of the stream

    @property
    def group(self) -> str:
        return self.family or self.name


ENTRANTS = {
    entrant.name: entrant
    for entrant in (
        Entrant("ours", "penstock, streaming-llm, path auto", "ours_worker", options={"path": "auto"}),
        Entrant(
            "ours-int8",
            "penstock, native step, int8 weights",
            "ours_worker",
            options={"path": "native-int8"},
            weight_bytes=1,
        ),
        Entrant("ours-compiled", "penstock, compiled step", "ours_worker", options={"path": "compiled"}),
        Entrant("ours-eager", "penstock, streaming-llm, eager step", "ours_worker", options={"path": "eager"}),
        *(
            Entrant(
                f"ours-{name}",
                f"penstock, {name}, eager step",
                "ours_worker",
                options={"path": "eager", "memory": name},
            )
            for name in ("infllm", "rekv", "lserve")
        ),
        Entrant("dense", "transformers DynamicCache, sdpa; sees everything", "dense_worker", visible=0),
        Entrant("reencode", "the window encoded again for each token, sdpa", "reencode_worker"),
        Entrant(
            "concat",
            "concatenate and re-rotate: our re-implementation of the StreamingLLM reference scheme, eager attention",
            "concat_worker",
            options={"attention": "eager"},
            family="concat",
        ),
        Entrant(
            "concat-sdpa",
            "the same scheme with torch's fused attention, which the reference does not use",
            "concat_worker",
            options={"attention": "sdpa"},
            family="concat-sdpa",
        ),
        Entrant(
            "kvpress", "StreamingLLMPress under DecodingPress, compressed at every step", "kvpress_worker", "kvpress"
        ),
        Entrant(
            "kvpress-lazy",
            "the same, compressed from 1024 to 512 entries every 512 steps",
            "kvpress_worker",
            "kvpress",
            {"lazy": True},
            visible=3 * BUDGET // 4,
        ),
        Entrant(
            "llama-cpp-one",
            "llama.cpp, context shift by one entry before each token",
            "llamacpp_worker",
            "llama-cpp",
            {"shift": "one", "flash": False},
            "llama.cpp shift by one",
        ),
        Entrant(
            "llama-cpp-one-flash",
            "the same with its fused attention",
            "llamacpp_worker",
            "llama-cpp",
            {"shift": "one", "flash": True},
            "llama.cpp shift by one",
        ),
        Entrant(
            "llama-cpp-half",
            "llama.cpp, customary context shift by half of the context",
            "llamacpp_worker",
            "llama-cpp",
            {"shift": "half", "flash": False},
            "llama.cpp shift by half",
            visible=3 * BUDGET // 4,
        ),
        Entrant(
            "llama-cpp-half-flash",
            "the same with its fused attention",
            "llamacpp_worker",
            "llama-cpp",
            {"shift": "half", "flash": True},
            "llama.cpp shift by half",
            visible=3 * BUDGET // 4,
        ),
    )
}
