"""On what was it measured? Hardware, versions, how busy the machine was, and the lock that asks training to pause."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("penstock", "torch", "transformers", "numpy", "matplotlib")


def record() -> dict[str, Any]:
    """Processor, caches, memory, system and package versions."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"flags\s*:\s*(.+)", text)
    instructions = set(flags.group(1).split()) if flags else set()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": model.group(1) if model else platform.processor(),
        "instructions": sorted(instructions & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "cores": os.cpu_count(),
        "l3_bytes": _l3_bytes(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _l3_bytes() -> int | None:
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    with contextlib.suppress(OSError, ValueError):
        return int(size.read_text(encoding="ascii").strip().removesuffix("K")) * 1024
    return None


def busy_percent(seconds: float = 2.0) -> float:
    """How much of all cores others use now; a warning goes to stderr when the machine is not idle."""
    percent = psutil.cpu_percent(seconds)
    if percent > 10:
        print(f"warning: the machine is {percent:.0f}% busy before the start; figures will be noisy", file=sys.stderr)
    return percent


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Training in the background pauses while this is held; nothing happens where the package has no such lock."""
    try:
        module = importlib.import_module("penstock.worlds.quiet")
    except ImportError:
        return contextlib.nullcontext()
    lock: contextlib.AbstractContextManager[Any] = module.quiet()
    return lock
