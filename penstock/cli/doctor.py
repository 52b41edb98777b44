"""penstock doctor: what this machine offers, and what will be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table
from rich.text import Text

from penstock.cli.derive import Common
from penstock.cli.output import Output
from penstock.models.gpu import obstacle
from penstock.models.load import TINY
from penstock.models.native import describe

PACKAGES = ("penstock", "torch", "transformers", "tokenizers", "safetensors", "numpy", "typer", "rich")
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "neon", "asimd", "bf16", "sve")
_BUFFER = 1 << 28  # bytes: larger than caches
_PASSES = 7


@dataclass(frozen=True)
class DoctorOptions(Common):
    """Nothing of its own."""


def doctor(options: DoctorOptions) -> None:
    """Tell what this machine offers."""
    out = Output(options.json)
    facts = examine()
    if out.as_json:
        out.document(facts)
    else:
        out.show(_table(facts))


def examine() -> dict[str, Any]:
    """Everything, as one document."""
    compiler = find_compiler()
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "system": platform.platform(),
        "processor": processor(),
        "features": features(),
        "memory_bytes": {"total": psutil.virtual_memory().total, "available": psutil.virtual_memory().available},
        "threads": {"cores": os.cpu_count(), "torch": torch.get_num_threads()},
        "bandwidth_bytes_per_second": bandwidth(),
        "accelerator": accelerator(),
        "compiler": compiler,
        "native": describe(),
        "path": chosen_path(compiler),
        "extras": extras(),
        "tiny_model": tiny_model(),
    }


def versions() -> dict[str, str | None]:
    """Installed versions of what we stand on."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor() -> str:
    """Its name."""
    match = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return match[1] if match else platform.processor() or platform.machine()


def features() -> list[str]:
    """Instructions that matter for small matrices."""
    match = re.search(r"(?:flags|Features)\s*:\s*(.+)", _cpuinfo())
    flags = set(match[1].split()) if match else set()
    if not flags:
        flags = {str(torch.backends.cpu.get_cpu_capability()).lower()}
    return [name for name in _FEATURES if name in flags]


def bandwidth() -> float:
    """Bytes per second that all threads together read: the best of several sums over a large buffer."""
    data = torch.ones(_BUFFER // 4)
    best = 0.0
    for _ in range(_PASSES):
        began = time.perf_counter()
        data.sum()
        best = max(best, _BUFFER / (time.perf_counter() - began))
    return best


def accelerator() -> str | None:
    """The first device besides the processor."""
    if torch.cuda.is_available():
        reason = obstacle(torch.device("cuda", 0))
        steps = "steps run on kernels" if reason is None else f"steps run on PyTorch: {reason}"
        return f"cuda: {torch.cuda.get_device_name(0)} ({steps})"
    return "mps" if torch.backends.mps.is_available() else None


def find_compiler() -> dict[str, Any]:
    """The C++ compiler that torch.compile would use, and whether a small function compiles with it."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        name: str | None = get_cpp_compiler()
    except Exception:  # torch raises its own types when it finds none
        name = None
    began, error = time.perf_counter(), None
    try:
        torch.compile(_small, fullgraph=True)(torch.ones(64))
    except Exception as failure:
        error = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    return {"name": name, "works": error is None, "error": error, "seconds": time.perf_counter() - began}


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 + 1).tanh().sum()


def chosen_path(compiler: dict[str, Any]) -> dict[str, str]:
    """What `--path auto` comes to."""
    native = describe()
    if native["uses"] not in (None, "portable"):
        why = "Llama blocks have one, over any memory; other models run on PyTorch, compiled if they can"
        return {"path": f"auto: native ({native['uses']})", "why": why}
    if compiler["works"]:
        why = "torch.compile works here: steps of an answer run eager until the compiled step is ready"
        return {"path": "auto: compiled", "why": why}
    if compiler["name"] is None:
        return {"path": "auto: eager", "why": "no C++ compiler was found: install g++ (apt install g++) or clang"}
    why = f"{compiler['name']} does not compile what torch makes ({compiler['error']}): install the Python headers"
    return {"path": "auto: eager", "why": why}


def extras() -> dict[str, dict[str, Any]]:
    """Optional parts: what they need, what is missing, how to install it."""
    try:
        required = importlib.metadata.requires("penstock") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    needs: dict[str, list[str]] = {}
    for line in required:
        match = re.match(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if match:
            needs.setdefault(match[2], []).append(match[1])
    found = {}
    for extra, names in sorted(needs.items()):
        missing = [name for name in names if not _is_installed(name)]
        install = f"pip install 'penstock[{extra}]'" if missing else None
        found[extra] = {"installed": not missing, "missing": missing, "install": install}
    return found


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def tiny_model() -> dict[str, Any]:
    """Whether the shipped model is there."""
    weights = sorted(TINY.glob("*.safetensors"))
    return {"present": bool(weights), "bytes": sum(path.stat().st_size for path in weights)}


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    compiler, memory, tiny = facts["compiler"], facts["memory_bytes"], facts["tiny_model"]
    rows = {
        "versions": ", ".join(f"{name} {version or 'not installed'}" for name, version in facts["versions"].items()),
        "system": facts["system"],
        "processor": f"{facts['processor']} ({', '.join(facts['features']) or 'no special instructions known'})",
        "threads": f"{facts['threads']['torch']} of {facts['threads']['cores']} cores",
        "memory": f"{memory['available'] / 2**30:.1f} of {memory['total'] / 2**30:.1f} GiB available",
        "bandwidth": f"{facts['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s read",
        "accelerator": facts["accelerator"] or "none",
        "compiler": f"{compiler['name'] or 'none found'}, "
        + (f"works ({compiler['seconds']:.1f} s)" if compiler["works"] else f"does not work: {compiler['error']}"),
        "native step": ", ".join(facts["native"]["sets"]) + f"; uses {facts['native']['uses']}"
        if facts["native"]["built"]
        else facts["native"]["why_not"],
        "path": f"{facts['path']['path']} ({facts['path']['why']})",
        "tiny model": f"{tiny['bytes'] / 1e6:.1f} MB" if tiny["present"] else "missing: install penstock again",
    }
    for name, text in rows.items():
        table.add_row(name, Text(str(text)))
    for extra, found in facts["extras"].items():
        missing = f"missing {', '.join(found['missing'])}: {found['install']}"
        table.add_row(Text(f"[{extra}]"), Text("installed" if found["installed"] else missing))
    return table
