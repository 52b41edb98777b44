"""Which keys a layer reads, learned from the rule by which transformers would mask them.

For one pass the model runs with a mask function of ours.  Transformers hands it the model's own rule, a function of the
indices of a query and a key; we keep the rule and ask it about queries far down a stream.  So a sliding window is found
whatever its size and however the layer was told of it, and rules that are no window (chunks, both directions) are
noticed without running a long text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from penstock.errors import UnsupportedModel
from penstock.models.attach import attention

PROBE = "penstock-probe"
_RULE = "_penstock_rule"
_FAR = (1 << 20) + 12345
_OFFSETS = (0, 1, 7, 2048, 9973)  # queries at which a rule must say the same


def _mask(*args: Any, mask_function: Callable[..., Tensor], q_length: int, kv_length: int, **kwargs: Any) -> Tensor:
    """What transformers calls to make a mask: a stand-in that carries the rule."""
    marker = torch.ones(1, 1, int(q_length), int(kv_length), dtype=torch.bool)
    setattr(marker, _RULE, mask_function)
    return marker


AttentionInterface.register(PROBE, attention)
AttentionMaskInterface.register(PROBE, _mask)


def window_of(mask: Tensor | None, causal: bool, name: str) -> int | None:
    """The sliding window of a layer, itself included, or None; raises UnsupportedModel for any other rule.

    `mask` and `causal` are what the layer gave the attention function under PROBE.
    """
    if mask is None:
        if not causal:
            raise UnsupportedModel(f"{name} reads later tokens too, which a stream does not have yet: it is refused.")
        return None
    rule = getattr(mask, _RULE, None)
    if rule is None:
        raise UnsupportedModel(f"{name} changes its attention mask on the way to a layer: its rule cannot be read.")
    try:
        return _window(rule, name)
    except (IndexError, RuntimeError):
        raise UnsupportedModel(f"{name} masks by the contents of the input: a stream cannot be read so.") from None


def _window(rule: Callable[..., Tensor], name: str) -> int | None:
    def sees(query: int, distance: int) -> bool:
        zero = torch.tensor(0)
        return bool(rule(zero, zero, torch.tensor(query), torch.tensor(query - distance)))

    if any(sees(_FAR, -distance) for distance in (1, 2, 1000)):
        raise UnsupportedModel(f"{name} reads later tokens too, which a stream does not have yet: it is refused.")
    window = None
    if not sees(_FAR, _FAR):
        low, high = 0, _FAR  # the last distance seen, the first one hidden
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sees(_FAR, middle) else (low, middle)
        window = high
    near = {0, 1, 500, 5000} if window is None else {0, 1, window // 2, window - 1}
    far = set() if window is None else {window, window + 1, 2 * window, 5 * window + 3}
    for query in (_FAR + offset for offset in _OFFSETS):
        seen = all(sees(query, d) for d in near if window is None or d < window)
        hidden = not any(sees(query, d) for d in far)
        if not (seen and hidden):
            raise UnsupportedModel(
                f"{name} has layers whose reach depends on where a token stands (chunked attention): "
                "only full and sliding attention are supported."
            )
    return window
