"""Families whose attention cannot be reached through the interface: one small file each, named by its model type.

These are the only places where an attention forward is replaced.  An adapter module defines `Adapter(hf)` with

    use(step)         context manager: attention layers read this step
    suspended()       context manager: attention layers are the model's own again
    remove()          undo the replacement
    encoding(layer)   the layer's encoding when probing cannot see it (ALiBi), else None
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import nn


def adapter_for(hf: nn.Module) -> Any:
    """An installed adapter for the model's family, or None when the family needs none."""
    config: Any = hf.config
    name = f"{__name__}.{config.model_type}"
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name).Adapter(hf)
