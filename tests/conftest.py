"""Settings for the whole suite: one thread (tiny tensors only lose by sharing) and quiet, repeatable property tests.

`HYPOTHESIS_PROFILE=deep` tries two hundred random examples of every property instead of a few fixed ones.
"""

from __future__ import annotations

import os

# Where Triton is installed, its kernels run interpreted here; it looks at this when it is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("deep", deadline=None, max_examples=200, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
