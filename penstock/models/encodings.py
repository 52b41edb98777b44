"""How positions enter a layer: the rotary embeddings a model owns, and which of them explains what was recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penstock.memory import Rotary
from penstock.memory.positions import Encoding

PROBE_POSITIONS = (0, 1, 3, 7, 18, 37, 64, 101)
UNEXPLAINED = "unexplained"


def frequencies(hf: nn.Module) -> dict[str, Tensor]:
    """The inverse frequencies in use now [R/2], by buffer name; some models replace them when a text grows long."""
    out = {}
    for name, buffer in hf.named_buffers():
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("inv_freq") and not leaf.endswith("original_inv_freq") and buffer.dim() == 1:
            out[name] = buffer.detach().clone()
    return out


class Encodings:
    """The rotary embeddings that a model owns, as candidates."""

    def __init__(self, hf: nn.Module) -> None:
        known: list[Tensor] = []
        for buffer in frequencies(hf).values():
            wide = buffer.double().cpu()
            if all(not torch.equal(wide, other) for other in known):
                known.append(wide)
        # Both layouts; a few models turn the other way round.
        self.found = [Rotary(sign * f, pairs) for sign in (1.0, -1.0) for f in known for pairs in (False, True)]

    def explain(self, still: dict[str, Any], moved: dict[str, Any]) -> Rotary | str | None:
        """The rotary embedding that turns the still keys and queries into the moved ones; None if nothing moved."""
        pairs = [(still[n].cpu(), moved[n].cpu()) for n in ("key", "query")]
        if all(close(a, b) for a, b in pairs):
            return None
        for rotary in self.found:
            if rotary.width > pairs[0][0].shape[-1]:
                continue
            angles = rotary.angles(torch.tensor(PROBE_POSITIONS))
            if all(close(rotary.rotate(a.float(), angles), b, a.dtype) for a, b in pairs):
                return rotary
        return UNEXPLAINED


def only_turned(encoding: Encoding, still: dict[str, Any], far: dict[str, Any]) -> bool:
    """Whether keys and queries at far positions have the size of those at 0, pair by pair: turned and nothing else."""
    for name in ("key", "query"):
        a, b = still[name].cpu().float(), far[name].cpu().float()
        if isinstance(encoding, Rotary):
            a, b = _sizes(encoding, a), _sizes(encoding, b)
        if not close(a, b, still[name].dtype):
            return False
    return True


def _sizes(rotary: Rotary, x: Tensor) -> Tensor:
    """Lengths of the rotated pairs, and the channels that are not rotated."""
    half = rotary.width // 2
    turned = x[..., : rotary.width]
    pairs = turned.unflatten(-1, (half, 2)) if rotary.interleaved else turned.unflatten(-1, (2, half)).transpose(-1, -2)
    return torch.cat((pairs.norm(dim=-1), x[..., rotary.width :]), dim=-1)


def close(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Equal within the rounding of the model's dtype."""
    tolerance = 2e-3 if (dtype or a.dtype) in (torch.float32, torch.float64) else 5e-2
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= tolerance * max(1e-6, float(b.abs().max())))


def reach(hf: nn.Module, text: Any, at: Any) -> int | None:
    """How many positions keep today's frequencies, where the model changes them in longer texts (None: not found).

    `at(position)` runs the model there; after it, the buffers hold what the model would use.
    """
    at(0)
    short = frequencies(hf)

    def same(position: int) -> bool:
        at(position)
        now = frequencies(hf)
        at(0)
        return all(torch.equal(now[name], short[name]) for name in short)

    return next((length for length in _lengths(text) if same(length - 1) and not same(length)), None)


def _lengths(text: Any) -> list[int]:
    """Lengths that a configuration speaks of."""
    settings = [getattr(text, "rope_parameters", None) or {}]
    settings += [inner for inner in settings[0].values() if isinstance(inner, dict)]
    values = [part.get("original_max_position_embeddings") for part in settings]
    values += [getattr(text, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return sorted({int(v) for v in values if isinstance(v, int | float) and v > 1})
