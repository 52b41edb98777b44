"""Whether kernels can run on a device, found by trying."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

ABSENT = "Triton is not installed (pip install 'penstock[gpu]')"


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU in this process (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def present() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@cache
def obstacle(device: torch.device) -> str | None:
    """Why no kernel can run on a device, or None.  The first call for a device compiles and runs a small kernel."""
    if device.type != "cuda":
        return "the model is not on a CUDA device"
    if not present():
        return ABSENT
    if interpreted():
        return "Triton interprets kernels in this process (TRITON_INTERPRET=1)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the device is older than compute capability 8.0"
    try:
        from penstock.kernels.gpu.decode import Singles, decode
        from penstock.kernels.gpu.store import Store

        zeros = torch.zeros(1, 1, 1, 16, device=device)
        numbers = torch.zeros(1, dtype=torch.int64, device=device)
        angle = torch.zeros(1, 8, device=device)
        store = Store(torch.zeros(2, 1, 1, 16, 16, device=device), None, 0, 16, 8, False)
        singles = Singles(numbers, numbers, angle, angle, angle[:, None][:, :0], angle[:, None][:, :0])
        decode(store, zeros, zeros, zeros, singles, scale=1.0)
        torch.cuda.synchronize(device)
    except Exception as error:  # no compiler for the launcher, a driver that is too old: whatever it is, PyTorch runs
        first = str(error).strip().splitlines()
        return f"a trial kernel failed there ({first[0] if first else type(error).__name__})"
    return None
