"""Find out what a model's attention layers are, by running them: nothing is assumed from names.

Four questions, asked at `attach` and then frozen:

1. *Which layers and heads?*  A forward pass with a recording step shows every call.
2. *Which keys does a layer read?*  All earlier ones, or a window: masks.py asks the model's own rule.
3. *How do positions enter?*  The same tokens are run at position 0 and at scattered positions with attention silenced.
   Keys that do not move carry no positions.  Keys that move are compared with every rotary embedding the model owns,
   in both layouts; a layer is rotary if one of them explains its keys.  If keys move and none explains them, positions
   were added to the inputs (learned absolute positions) or the model is refused.  A pass at far positions shows
   whether anything but the angle depends on them, and whether the frequencies change in long texts.
4. *Is it right?*  The model's own attention and ours, with a memory that keeps everything, must give the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from penstock.core import Span
from penstock.errors import UnsupportedModel
from penstock.memory import Cascade, Everything, Geometry, Layer, Memory, Window
from penstock.memory.positions import Encoding
from penstock.models.adapters import adapter_for
from penstock.models.attach import COMPILING, Attached, CalledWithoutMemory, Own, Recorder, forward
from penstock.models.encodings import PROBE_POSITIONS, UNEXPLAINED, Encodings, frequencies, only_turned, reach
from penstock.models.masks import PROBE, window_of

_FAR = 1 << 20


@torch.no_grad()
def attach(hf: nn.Module, verify: bool = True) -> Attached:
    """Attach a transformers model; raises UnsupportedModel with the reason when it would not be right.

    One model may be attached several times; it gets its own attention back when the last one is detached.
    """
    name = type(hf).__name__
    text = _text_config(hf, name)
    hf.eval()
    adapter, own = adapter_for(hf), None
    if adapter is None:
        if not hf._can_set_attn_implementation():  # type: ignore[operator]
            raise UnsupportedModel(
                f"{name} has attention code of its own or keeps a recurrent state: it does not use transformers' "
                "attention interface, and there is no adapter for it in penstock/models/adapters."
            )
        try:
            own = Own.take(hf)
        except (ValueError, ImportError) as error:
            raise UnsupportedModel(f"{name} does not let its attention be replaced ({_line(error)}).") from None
    shared: Any = own if adapter is None else adapter.seat
    known = shared.geometry
    weights = next(hf.parameters())
    if known is not None and known.dtype == weights.dtype and known.device == weights.device:
        return Attached(hf, known, int(text.vocab_size), own, adapter)
    attached = Attached(hf, Geometry((), weights.dtype, weights.device), int(text.vocab_size), own, adapter)
    try:
        with COMPILING:
            attached.geometry = _Probe(attached, text, name).geometry()
        if verify:
            with COMPILING:
                difference, tolerance = compare_with_native(attached)
            if not difference <= tolerance:
                raise UnsupportedModel(
                    f"{name} gives other logits through penstock than by itself (they differ by {difference:.2g}): "
                    f"{_suspect(text)}, so it is refused."
                )
            shared.geometry = attached.geometry
    except UnsupportedModel:
        attached.detach()
        raise
    except Exception as error:  # whatever a model that is no causal language model does with our call
        attached.detach()
        raise UnsupportedModel(
            f"{name} could not be probed as a causal language model ({type(error).__name__}: {_line(error)}): "
            "it is not supported."
        ) from error
    except BaseException:
        attached.detach()
        raise
    return attached


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")


def _suspect(text: Any) -> str:
    """The likely reason of a failed comparison."""
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if kinds:
        return f"it has layers of the kind {' and '.join(kinds)}, which keep something else than keys and values"
    return "its layers do something that the probe did not find"


def _text_config(hf: nn.Module, name: str) -> Any:
    """The configuration of the language part."""
    config: Any = getattr(hf, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModel(f"{name} is not a transformers model: load it with transformers, or give its name.")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder: penstock serves decoder-only language models.")
    text = config.get_text_config()
    if not getattr(text, "vocab_size", None):
        raise UnsupportedModel(f"{name} has no vocabulary: penstock serves causal language models.")
    return text


class _Probe:
    """The passes of one probing."""

    def __init__(self, attached: Attached, text: Any, name: str) -> None:
        self.attached, self.text, self.name = attached, text, name
        self.device = next(attached.hf.parameters()).device

    def _record(self, positions: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What each layer does with the first len(positions) probe tokens at these positions."""
        where = torch.tensor(positions, device=self.device)
        tokens = (torch.arange(len(where), device=self.device) * 7 + 3) % self.attached.vocabulary
        recorder = Recorder()
        try:
            forward(self.attached.hf, self.attached.adapter, tokens, recorder, where, "none")
        except CalledWithoutMemory:
            raise UnsupportedModel(
                f"{self.name} does not hand keyword arguments on to its attention layers, so they cannot be given a "
                "memory: its family needs an adapter in penstock/models/adapters."
            ) from None
        return recorder.seen

    def geometry(self) -> Geometry:
        hf = self.attached.hf
        still = self._record([0] * len(PROBE_POSITIONS))
        if not still:
            raise UnsupportedModel(
                f"{self.name} never called the attention interface: it keeps a recurrent state, not keys and values."
            )
        moved = self._record(PROBE_POSITIONS)
        encodings, windows = Encodings(hf), self._windows()
        found: dict[int, Any] = {index: self._encoding(index, encodings, still, moved) for index in sorted(still)}
        limit = None
        if UNEXPLAINED in found.values():
            if any(f != UNEXPLAINED for f in found.values()) or not _has_table(hf):
                raise UnsupportedModel(
                    f"{self.name} encodes positions in a way that the probe cannot explain: it is refused."
                )
            limit = int(self.text.max_position_embeddings)
            found = dict.fromkeys(found)
        layers = [self._layer(index, still[index], found[index], windows.get(index)) for index in sorted(still)]
        length = None if limit is not None else self._reach(still, found)
        return Geometry(tuple(layers), still[layers[0].index]["key"].dtype, self.device, limit, length)

    def _layer(self, index: int, seen: dict[str, Any], encoding: Encoding, window: int | None) -> Layer:
        query, key, width = seen["query"], seen["key"], seen["value_width"]
        if key.shape[-1] != width:
            raise UnsupportedModel(f"{self.name} has keys and values of different widths: that is not supported yet.")
        return Layer(index, query.shape[1], key.shape[1], key.shape[-1], width, encoding, window)

    def _encoding(
        self, index: int, encodings: Encodings, still: dict[int, dict[str, Any]], moved: dict[int, dict[str, Any]]
    ) -> Any:
        adapter = self.attached.adapter
        known = None if adapter is None else adapter.encoding(index)
        return encodings.explain(still[index], moved[index]) if known is None else known

    def _windows(self) -> dict[int, int | None]:
        """The sliding window of each layer; families with an adapter have none."""
        own = self.attached.own
        if own is None:
            return {}
        with own.replaced(PROBE):
            seen = self._record(range(len(PROBE_POSITIONS)))
        return {index: window_of(s["mask"], s["causal"], self.name) for index, s in seen.items()}

    def _reach(self, still: dict[int, dict[str, Any]], found: dict[int, Any]) -> int | None:
        """Positions for which the found frequencies hold; None for ever."""
        hf = self.attached.hf
        near = frequencies(hf)
        far = self._record([_FAR] * len(PROBE_POSITIONS))
        changed = any(not torch.equal(now, near[name]) for name, now in frequencies(hf).items())
        if not all(only_turned(found[index], still[index], far[index]) for index in still):
            raise UnsupportedModel(
                f"{self.name} changes more than the angle of its keys or queries with their position, "
                "which a stream cannot follow: it is refused."
            )
        if not changed:
            return None
        length = reach(hf, self.text, lambda position: self._record([position]))
        if length is None:
            raise UnsupportedModel(
                f"{self.name} changes its rotary frequencies somewhere in long texts, and its configuration does not "
                "say where: it is refused."
            )
        return length


def _has_table(hf: nn.Module) -> bool:
    """Whether the model has a learned table of positions."""
    names = ("wpe", "embed_positions", "position_embeddings")
    return any(isinstance(m, nn.Embedding) and n.rsplit(".", 1)[-1] in names for n, m in hf.named_modules())


@torch.no_grad()
def compare_with_native(attached: Attached, length: int = 24) -> tuple[float, float]:
    """(largest difference of logits, tolerance): the model's own attention against ours with everything kept."""
    hf, geometry = attached.hf, attached.geometry
    tokens = (torch.arange(length, device=geometry.device) * 13 + 5) % attached.vocabulary
    cascades = [
        Cascade((Everything() if ly.window is None else Window(min(ly.window, length)),)) for ly in geometry.layers
    ]
    memory = Memory(geometry, cascades)
    positions = torch.arange(length, device=geometry.device) if geometry.is_absolute else None
    first = length // 3
    ours: list[Tensor] = []
    for cut in (slice(0, first), slice(first, length)):  # in two steps, so that reading from the memory is tried too
        with memory.step([Span(0, len(tokens[cut]))]) as step:
            part = None if positions is None else positions[cut]
            logits = attached.run(tokens[cut], step, part, "all")
        assert logits is not None
        ours.append(logits)
    with attached.native(reference=True):
        theirs = hf(input_ids=tokens[None], use_cache=False)
    expected = (theirs.logits if hasattr(theirs, "logits") else theirs.last_hidden_state)[0].float()
    difference = float((torch.cat(ours).float() - expected).abs().max())
    exact = 1e-3 if attached.adapter is None else attached.adapter.tolerance
    loose = exact if geometry.dtype == torch.float32 else 0.15
    return difference, loose * float(expected.abs().max())
