"""The compiled library: found beside this file, described to ctypes.

It is built when the package is installed, if a C++ compiler is there (setup.py).  Without it all runs on PyTorch.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

ABI = 5
FLOAT32, BFLOAT16, INT8 = 0, 1, 2
QKV, OUT, GATE_UP, DOWN, HEAD = range(5)
NORM_IN, NORM_MLP, NORM_QUERY, NORM_KEY, NORM_LAST = range(5)
SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
ABSENT = "the native step was not built: install g++ and install penstock again"


class Shape(Structure):
    """pk_shape."""

    _fields_ = (
        *((name, c_int32) for name in ("hidden", "layers", "heads", "kv_heads", "width", "intermediate", "vocabulary")),
        ("weights", c_int32),
        ("stored", c_int32),
        *((name, c_float) for name in ("eps", "eps_heads", "scale", "factor")),
    )


class Source(Structure):
    """pk_source."""

    _fields_ = (("data", c_void_p), ("bias", c_void_p), ("rows", c_int32), ("kind", c_int32))


class Group(Structure):
    """pk_group."""

    _fields_ = (
        ("inv_freq", c_void_p),
        ("sink_cos", c_void_p),
        ("sink_sin", c_void_p),
        ("window", c_int64),
        ("clamp", c_int64),
        *((name, c_int32) for name in ("half", "interleaved", "sinks", "unused")),
    )


class LayerMemory(Structure):
    """pk_layer_memory."""

    _fields_ = (
        ("ring", c_void_p),
        ("raw_sinks", c_void_p),
        ("slots", c_int64),
        ("group", c_int32),
        ("rows", c_int32),
    )


class SpanOf(Structure):
    """pk_span."""

    _fields_ = (("start", c_int64), ("row", c_int32), ("count", c_int32))


class StepOf(Structure):
    """pk_step."""

    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "spans", "places", "logits", "groups", "memory")),
        ("count", c_int64),
        ("wanted", c_int64),
        *((name, c_int32) for name in ("span_count", "group_count", "threads", "unused")),
    )


class Stretch(Structure):
    """pk_stretch."""

    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "hidden", "attended", "query", "key", "value", "places", "logits")),
        ("count", c_int64),
        ("wanted", c_int64),
        ("layer", c_int32),
        ("threads", c_int32),
    )


class OfferOf(Structure):
    """pk_offer."""

    _fields_ = (
        *((name, c_void_p) for name in ("key", "value", "key_scale", "key_zero", "value_scale", "value_zero")),
        *((name, c_void_p) for name in ("query_cos", "query_sin", "key_cos", "key_sin", "bias")),
        *((name, c_int64) for name in ("key_head", "value_head", "bias_head", "count")),
        ("kind", c_int32),
        ("shared", c_int32),
        ("blocks", c_void_p),
        *((name, c_int64) for name in ("blocks_head", "key_at", "value_at", "block")),
        *((name, c_int64) for name in ("bias_member", "bias_token", "query_step")),
        *((name, c_int32) for name in ("first", "last", "causal", "unused")),
    )


class ReadingOf(Structure):
    """pk_reading."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "offers", "out", "lse", "work")),
        ("query_head", c_int64),
        ("query_token", c_int64),
        ("scale", c_float),
        *((name, c_int32) for name in ("offer_count", "heads", "kv_heads", "width", "half", "interleaved")),
        *((name, c_int32) for name in ("stored", "threads", "tokens")),
    )


class CandidatesOf(Structure):
    """pk_candidates."""

    _fields_ = (
        ("rows", c_void_p),
        ("blocks", c_void_p),
        *((name, c_int64) for name in ("rows_head", "blocks_head", "key_head", "key_at")),
        *((name, c_int64) for name in ("marked_head", "marked_at", "count")),
    )


class ChoiceOf(Structure):
    """pk_choice."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "parts", "channels", "scores", "room", "shares")),
        ("block", c_int64),
        *((name, c_int32) for name in ("part_count", "kv_heads", "group", "tokens", "width", "key_width", "rows")),
        *((name, c_int32) for name in ("summary", "stored", "apart", "threads", "unused")),
    )


class BlockRun(Structure):
    """pk_block_run."""

    _fields_ = (("blocks", c_void_p), ("starts", c_void_p), ("first", c_int64), ("last", c_int64))


class SearchOf(Structure):
    """pk_search."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "book", "sizes", "logs", "runs", "scores", "worth", "found")),
        *((name, c_int64) for name in ("oldest", "most", "limit")),
        *(
            (name, c_int32)
            for name in ("run_count", "kv_heads", "queries", "lists", "width", "near", "best", "threads")
        ),
    )


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pk_abi": (c_int32, ()),
    "pk_built": (c_int32, ()),
    "pk_chosen": (c_int32, ()),
    "pk_choose": (c_int32, (c_int32,)),
    "pk_model_new": (c_void_p, (POINTER(Shape),)),
    "pk_model_free": (None, (c_void_p,)),
    "pk_model_bytes": (c_int64, (c_void_p,)),
    "pk_model_matrix": (c_int32, (c_void_p, c_int32, c_int32, c_int32, POINTER(Source), c_int32)),
    "pk_model_norm": (c_int32, (c_void_p, c_int32, c_int32, c_void_p, c_int32)),
    "pk_model_embedding": (c_int32, (c_void_p, c_void_p)),
    "pk_run": (c_int32, (c_void_p, POINTER(StepOf))),
    "pk_run_stretch": (c_int32, (c_void_p, POINTER(Stretch))),
    "pk_read_room": (c_int64, (POINTER(ReadingOf),)),
    "pk_read": (None, (POINTER(ReadingOf),)),
    "pk_choice_room": (c_int64, (c_int32,)),
    "pk_choice_run": (None, (POINTER(ChoiceOf),)),
    "pk_search_run": (c_int64, (POINTER(SearchOf),)),
}


def location() -> Path:
    """Where the build puts the library."""
    return Path(__file__).parent / "_cpu.so"


@cache
def library() -> Any:
    """The loaded library, or None."""
    return opened(location())


def opened(path: Path) -> Any:
    """A library of this interface in a file, or None."""
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not built, for another processor, or of another version
        return None
    return found if found.pk_abi() == ABI else None


def describe() -> dict[str, Any]:
    """What was built and what is used, for people."""
    found = library()
    if found is None:
        return {"built": False, "sets": [], "uses": None, "why_not": ABSENT if not location().exists() else (
            f"{location().name} cannot be loaded here: install penstock again"
        )}  # fmt: skip
    bits = found.pk_built()
    sets = [name for i, name in enumerate(SETS) if bits >> i & 1]
    return {"built": True, "sets": sets, "uses": SETS[found.pk_chosen()], "why_not": None}


__all__ = [
    "ABSENT",
    "SETS",
    "BlockRun",
    "CandidatesOf",
    "ChoiceOf",
    "Group",
    "LayerMemory",
    "OfferOf",
    "ReadingOf",
    "SearchOf",
    "Shape",
    "Source",
    "SpanOf",
    "StepOf",
    "Stretch",
    "describe",
    "library",
]
