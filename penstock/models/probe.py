"""Find out what a model's attention layers are, by running them: nothing is assumed from names.

Three questions, asked at `attach` and then frozen:

1. *Which layers, heads, windows?*  A forward pass with a recording step shows every call.
2. *How do positions enter?*  The same tokens are run at position 0 and at scattered positions with attention silenced.
   Keys that do not move carry no positions.  Keys that move are compared with every rotary embedding the model owns, in
   both layouts; a layer is rotary if one of them explains its keys.  If keys move and none explains them, positions were
   added to the inputs (learned absolute positions) or the model is refused.
3. *Is it right?*  The model's own attention and ours, with a memory that keeps everything, must give the same logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penstock.core import Span
from penstock.errors import UnsupportedModel
from penstock.memory import Cascade, Everything, Geometry, Layer, Memory, Rotary, Window
from penstock.memory.positions import Encoding
from penstock.models.adapters import adapter_for
from penstock.models.attach import IMPLEMENTATION, Attached, Recorder, forward, native

_PROBE_POSITIONS = (0, 1, 3, 7, 18, 37, 64, 101)


@torch.no_grad()
def attach(hf: nn.Module, verify: bool = True) -> Attached:
    """Attach a transformers model; raises UnsupportedModel with the reason when it would not be right."""
    name = type(hf).__name__
    config: Any = hf.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    hf.eval()
    adapter, previous = adapter_for(hf), None
    if adapter is None:
        previous = config._attn_implementation
        if previous == IMPLEMENTATION:
            previous = "sdpa"
        try:
            hf.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
        except Exception as error:
            raise UnsupportedModel(
                f"{name} does not let its attention be replaced ({error}): it is not supported."
            ) from None
    try:
        geometry = _geometry(hf, adapter, text, name)
        attached = Attached(hf, geometry, int(text.vocab_size), previous, adapter)
        if verify:
            difference, tolerance = compare_with_native(attached)
            if not difference <= tolerance:
                raise UnsupportedModel(
                    f"{name} gives other logits through penstock than by itself (they differ by {difference:.2g}): "
                    "its attention does something that the probe did not find, so it is refused."
                )
    except BaseException:
        if adapter is not None:
            adapter.remove()
        elif previous is not None:
            hf.set_attn_implementation(previous)  # type: ignore[operator]
        raise
    return attached


def _geometry(hf: nn.Module, adapter: Any, text: Any, name: str) -> Geometry:
    device = next(hf.parameters()).device
    positions = torch.tensor(_PROBE_POSITIONS, device=device)
    tokens = (torch.arange(len(positions), device=device) * 7 + 3) % int(text.vocab_size)
    still, moved = Recorder(), Recorder()
    forward(hf, adapter, tokens, still, torch.zeros_like(positions), "none")
    if not still.seen:
        raise UnsupportedModel(f"{name} never called the attention interface: its family needs an adapter file.")
    forward(hf, adapter, tokens, moved, positions, "none")
    encodings = _Encodings(hf)
    absolute = False
    layers = []
    for index in sorted(still.seen):
        a, b = still.seen[index], moved.seen[index]
        if a["key"].shape[-1] != a["value_width"]:
            raise UnsupportedModel(f"{name} has keys and values of different widths: that is not supported yet.")
        if adapter is not None and adapter.encoding(index) is not None:
            encoding: Encoding = adapter.encoding(index)
        else:
            found = encodings.explain(a, b)
            absolute |= found == "unexplained"
            encoding = None if isinstance(found, str) else found
        layers.append(
            Layer(
                index,
                a["query"].shape[1],
                a["key"].shape[1],
                a["key"].shape[-1],
                a["value_width"],
                encoding,
                a["window"],
            )
        )
    limit = None
    if absolute:
        if any(layer.encoding is not None for layer in layers) or _table(hf) is None:
            raise UnsupportedModel(f"{name} encodes positions in a way that the probe cannot explain: it is refused.")
        limit = int(text.max_position_embeddings)
    return Geometry(tuple(layers), still.seen[layers[0].index]["key"].dtype, device, limit)


def _table(hf: nn.Module) -> nn.Module | None:
    """The learned position table of a model, if it has one."""
    for name, module in hf.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and leaf in ("wpe", "embed_positions", "position_embeddings"):
            return module
    return None


class _Encodings:
    """The rotary embeddings that a model owns, as candidates."""

    def __init__(self, hf: nn.Module) -> None:
        self.found: list[Rotary] = []
        for name, buffer in hf.named_buffers():
            leaf = name.rsplit(".", 1)[-1]
            if leaf.endswith("inv_freq") and not leaf.endswith("original_inv_freq") and buffer.dim() == 1:
                frequencies = buffer.detach().double().cpu()
                if all(not torch.equal(frequencies, c.inv_freq) for c in self.found):
                    self.found += [Rotary(frequencies, interleaved) for interleaved in (False, True)]

    def explain(self, still: dict[str, Any], moved: dict[str, Any]) -> Rotary | str | None:
        """The rotary embedding that turns the still keys and queries into the moved ones; None if nothing moved."""
        pairs = [(still[n].cpu(), moved[n].cpu()) for n in ("key", "query")]
        tolerance = 2e-3 if pairs[0][0].dtype == torch.float32 else 5e-2
        if all(_close(a, b, tolerance) for a, b in pairs):
            return None
        for rotary in self.found:
            if rotary.width > pairs[0][0].shape[-1]:
                continue
            angles = rotary.angles(torch.tensor(_PROBE_POSITIONS))
            if all(_close(rotary.rotate(a.float(), angles), b, tolerance) for a, b in pairs):
                return rotary
        return "unexplained"


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= tolerance * max(1e-6, float(b.abs().max())))


@torch.no_grad()
def compare_with_native(attached: Attached, length: int = 24) -> tuple[float, float]:
    """(largest difference of logits, tolerance): the model's own attention against ours with everything kept."""
    hf, geometry = attached.hf, attached.geometry
    tokens = (torch.arange(length, device=geometry.device) * 13 + 5) % attached.vocabulary
    cascades = [
        Cascade((Everything(),)) if ly.window is None else Cascade((Window(ly.window),)) for ly in geometry.layers
    ]
    memory = Memory(geometry, cascades)
    positions = torch.arange(length, device=geometry.device) if geometry.is_absolute else None
    first = length // 3
    ours = []
    for cut in (slice(0, first), slice(first, length)):  # in two steps, so that reading from the memory is tried too
        with memory.step([Span(0, len(tokens[cut]))]) as step:
            part = None if positions is None else positions[cut]
            logits = attached.run(tokens[cut], step, part, "all")
        assert logits is not None
        ours.append(logits)
    if attached.adapter is not None:
        with attached.adapter.suspended():
            theirs = hf(input_ids=tokens[None], use_cache=False)
    else:
        with native(hf, attached.previous):
            theirs = hf(input_ids=tokens[None], use_cache=False)
    expected = (theirs.logits if hasattr(theirs, "logits") else theirs.last_hidden_state)[0].float()
    difference = float((torch.cat(ours).float() - expected).abs().max())
    loose = 1e-3 if geometry.dtype == torch.float32 else 0.15
    return difference, loose * float(expected.abs().max())
