"""Do the kernels get through Triton's compiler for an H200? No device is needed, and no interpreter may be set.

python -m tests.kernels.gpu_compiles           the first stage only, seconds: types and shapes of every line
python -m tests.kernels.gpu_compiles --whole   down to machine code, with the shared memory that a program takes
"""

from __future__ import annotations

import sys
from typing import Any

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend

from penstock.kernels.gpu import chunk, decode, merge, pages

TARGET = GPUTarget("cuda", 90, 32)
NUMBERS = {"rows", "positions", "spans", "span_of"}
ANGLES = {"cos", "sin", "sink_cos", "sink_sin", "seen_cos", "seen_sin", "own_cos", "own_sin"}
FLOATS = ANGLES | {"outs", "lses", "lse", "scales", "scores"}
ACTIVATIONS = {"query", "key", "value", "turned", "seen", "raw", "logits", "out", "summary"}
# Heads and widths of an 8B model, budget 4096.
SHAPE = {
    "HEADS": 32, "GROUP": 4, "GROUPS": 16, "WIDTH": 128, "CHANNELS": 128, "SINKS": 4, "WINDOW": 4092, "HALF": 64,
    "INTERLEAVED": False, "KV_HEADS": 8, "TOKENS": 16, "QUERIES": 1, "PARTS": 32, "PIECES": 4, "PAGES": 64,
}  # fmt: skip
KERNELS = (decode._place, decode._read, chunk._turn, chunk._read, chunk._keep, merge._merge, pages._score)


def source_of(kernel: Any, ring: str, plain: bool) -> ASTSource:
    """A kernel for a ring in one number format; without or with everything that can be switched on."""
    activation = "*bf16" if ring == "fp8e4nv" else f"*{ring}"
    wide = ring == "fp32"
    constants = SHAPE | {"SCALED": ring == "fp8e4nv", "CAPPED": not plain, "LEARNED": not plain}
    constants |= {"TILE": 16 if wide else 64, "BLOCK": 32 if wide else 64, "INTERLEAVED": not plain}
    kinds = dict.fromkeys(NUMBERS, "*i64") | dict.fromkeys(FLOATS, "*fp32") | {"scale": "fp32", "softcap": "fp32"}
    kinds |= dict.fromkeys(ACTIVATIONS, activation) | dict.fromkeys(("ring", "fresh"), f"*{ring}")
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    return ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)


def main(whole: bool) -> None:
    for ring in ("fp32", "fp16", "bf16", "fp8e4nv") if whole else ("fp8e4nv",):
        for kernel in KERNELS:
            source = source_of(kernel, ring, plain=ring in ("fp32", "bf16"))
            if whole:
                made = compile(source, target=TARGET, options={"num_stages": 3})
                print(f"{kernel.__module__}.{kernel.__name__} {ring}: {made.metadata.shared} bytes shared")
                continue
            backend = make_backend(TARGET)
            options, context = backend.parse_options({}), ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            tools = backend.get_codegen_implementation(options)
            source.make_ir(TARGET, options, tools, backend.get_module_map(), context)
    print("ok")


if __name__ == "__main__":
    main("--whole" in sys.argv)
