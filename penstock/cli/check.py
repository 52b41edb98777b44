"""penstock check: why a model is supported, or refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from penstock.cli.derive import Common, argument, option
from penstock.cli.output import Output
from penstock.core import Budget
from penstock.errors import InputError, MissingExtra, UsageError
from penstock.memory import Alibi, Geometry, Layer, Memory, Rotary
from penstock.methods import Method, registry
from penstock.methods.base import entries_for
from penstock.models.load import Model, load, parse_device, parse_dtype
from penstock.models.probe import compare_with_native
from penstock.models.support import check_supported
from penstock.session import default_budget


@dataclass(frozen=True)
class CheckOptions(Common):
    """What is checked, and on what."""

    model: str | None = argument(None, "A hub name or a folder; without one, the tiny model shipped.", "MODEL")
    budget: str | None = option(None, "The budget that the memories would have.  [default: as penstock run]", "N")
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")

    def __post_init__(self) -> None:
        parse_device(self.device)
        parse_dtype(self.dtype)


def check(options: CheckOptions) -> int:
    """Tell why a model is supported or refused."""
    out = Output(options.json)
    try:
        model = load(options.model, dtype=options.dtype, device=options.device)
        facts = describe(model, None if options.budget is None else Budget.parse(options.budget))
    except (InputError, MissingExtra):
        raise  # there is no model to speak about
    except UsageError as error:
        if options.debug:
            raise
        facts = {"model": options.model or "tiny", "supported": False, "error": str(error)}
    if out.as_json:
        out.document(facts)
    else:
        out.show(_table(facts))
    return 0 if facts["supported"] else 2


def describe(model: Model, budget: Budget | None) -> dict[str, Any]:
    """A supported model as a document."""
    attached, geometry = model.attached, model.attached.geometry
    hf: Any = attached.hf
    difference, tolerance = compare_with_native(attached)
    entry = sum(layer.entry_bytes(geometry.dtype) for layer in geometry.layers)
    return {
        "model": model.name,
        "supported": True,
        "family": hf.config.model_type,
        "attached": "through an adapter" if attached.adapter is not None else "through the attention interface",
        "parameters": sum(p.numel() for p in hf.parameters()),
        "dtype": str(geometry.dtype).removeprefix("torch."),
        "device": str(attached.device),
        "context": model.context,
        "vocabulary": attached.vocabulary,
        "chat_template": model.has_chat_template,
        "bytes_per_entry": entry,
        "layers": [layer_facts(layer, geometry) for layer in geometry.layers],
        "self_check": {"difference": difference, "tolerance": tolerance},
        "methods": {name: verdict(kind(), model, budget) for name, kind in registry().items()},
    }


def layer_facts(layer: Layer, geometry: Geometry) -> dict[str, Any]:
    """A layer as a document."""
    return {
        "index": layer.index,
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "width": layer.key_width,
        "window": layer.window,
        "positions": positions_of(layer, geometry),
    }


def positions_of(layer: Layer, geometry: Geometry) -> str:
    """How positions enter a layer, in a phrase."""
    if isinstance(layer.encoding, Rotary):
        width = layer.encoding.width
        part = "" if width == layer.key_width else f" on {width} of {layer.key_width} channels"
        return "rotary" + part + (", interleaved" if layer.encoding.interleaved else "")
    if isinstance(layer.encoding, Alibi):
        return "ALiBi"
    return f"learned, {geometry.max_positions} of them" if geometry.is_absolute else "none"


def verdict(method: Method, model: Model, budget: Budget | None) -> dict[str, Any]:
    """Whether a method works on this model, and why not."""
    geometry = model.attached.geometry
    try:
        entries = entries_for(method, geometry, budget or default_budget(model))
        check_supported(geometry, method, entries)
        Memory(geometry, method.cascades(geometry, entries), rows=0)  # checks the composition, stores nothing
    except UsageError as error:
        return {"works": False, "why": str(error)}
    return {"works": True, "budget": entries}


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("model", Text(str(facts["model"])))
    if not facts["supported"]:
        table.add_row("refused", Text(facts["error"]))
        return table
    gap = facts["self_check"]
    rows = {
        "supported": f"{facts['family']}, {facts['attached']}",
        "size": f"{facts['parameters']:,} parameters in {facts['dtype']} on {facts['device']}",
        "context": str(facts["context"]),
        "layers": "; ".join(_grouped(facts["layers"])),
        "entry": f"{facts['bytes_per_entry']:,} bytes over all layers",
        "check": f"logits differ from the model's own attention by {gap['difference']:.2g} "
        f"(allowed: {gap['tolerance']:.2g})",
    }
    for name, text in rows.items():
        table.add_row(name, Text(text))
    for name, found in facts["methods"].items():
        works = f"works ({found['budget']} entries)" if found.get("budget") else "works"
        table.add_row(Text(name), Text(works if found["works"] else found["why"]))
    return table


def _grouped(layers: list[dict[str, Any]]) -> list[str]:
    """Equal layers in one phrase."""
    kinds = Counter(tuple(value for key, value in layer.items() if key != "index") for layer in layers)
    return [
        f"{count} of {heads} query and {kv} key-value heads, {width} wide, positions {positions}"
        + (f", window {window}" if window else "")
        for (heads, kv, width, window, positions), count in kinds.items()
    ]
