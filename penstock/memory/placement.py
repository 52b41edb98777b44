"""Which heads, or which layers, get which cascade: a written list, a file of gates, or what is known of a model.

    0.1+0.3+2.0     layer.head, key-value heads           0+3     layers (where a method places by layer)
    all, none
    heads.json      gates: what `penstock inspect MODEL --json` or `python -m penstock.worlds.gates` wrote
    (nothing)       the gates that come with the shipped model; for a model without any, heads are spread evenly

Gates are one number per key-value head (or per layer) and layer; the highest ones are chosen.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from penstock.errors import CompositionError, InputError
from penstock.memory.layout import Geometry

SHIPPED = Path(__file__).parents[1] / "models" / "tiny" / "gates.json"
Gates = tuple[tuple[float, ...], ...]  # [layers][key-value heads]
Chosen = frozenset[tuple[int, int]]  # (place of a layer in the geometry, key-value head)


def choose(
    spec: str, geometry: Geometry, tables: Sequence[str], *, share: float | None = None, above: float | None = None,
    whole: bool = False,
) -> Chosen:  # fmt: skip
    """The chosen heads, among layers without a window of their own.

    `tables` names what is read from a file of gates, the first that is there.  Of gates, those at or `above` a value
    are chosen, else the highest `share` of all.  `whole`: all heads of a layer or none.  Raises CompositionError for
    heads that the model lacks, InputError for a file that cannot be used.
    """
    free = [i for i, layer in enumerate(geometry.layers) if layer.window is None]
    everything = [(i, head) for i in free for head in range(geometry.layers[i].kv_heads)]
    if spec in ("all", "none"):
        return frozenset(everything if spec == "all" else ())
    if re.fullmatch(r"\d+(\.\d+)?(\+\d+(\.\d+)?)*", spec):
        return _named(spec, geometry, whole)
    gates = _gates(spec, geometry, tables, whole)
    if gates is None:
        part = 0.5 if share is None else share
        if 0 < part < 1:
            warnings.warn(
                f"no gates are known of this model, so {'layers' if whole else 'heads'} are chosen evenly: make them "
                "with penstock inspect MODEL --json > gates.json and name that file in the method.",
                stacklevel=2,
            )
        return _highest(dict.fromkeys(everything, 0.0), free, part, whole)
    values = {(i, head): gates[i][0 if whole else head] for i, head in everything}
    if above is not None:
        return frozenset(at for at, gate in values.items() if gate >= above)
    assert share is not None
    return _highest(values, free, share, whole)


def split(chosen: Chosen, layer: int, heads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(chosen, other) key-value heads of a layer."""
    mine = tuple(head for head in range(heads) if (layer, head) in chosen)
    return mine, tuple(head for head in range(heads) if head not in mine)


def _highest(values: dict[tuple[int, int], float], layers: Iterable[int], share: float, whole: bool) -> Chosen:
    """The highest share; of equal ones the first heads of every layer, so that they are spread evenly."""
    if not whole:
        order = sorted(values, key=lambda at: (-values[at], at[1], at[0]))
        return frozenset(order[: round(share * len(order))])
    # Equal layers alternate, the first ones first: 0, 2, 4, ..., then 1, 3, 5, ...
    ranked = sorted(layers, key=lambda i: (-values[i, 0], i % 2, i))
    full = set(ranked[: round(share * len(ranked))])
    return frozenset(at for at in values if at[0] in full)


def _named(spec: str, geometry: Geometry, whole: bool) -> Chosen:
    """Heads, or layers, by number."""
    at = {layer.index: i for i, layer in enumerate(geometry.layers)}
    out: set[tuple[int, int]] = set()
    for word in spec.split("+"):
        number, _, head = word.partition(".")
        place = at.get(int(number))
        if place is None or geometry.layers[place].window is not None:
            raise CompositionError(
                f"the placement names layer {number} and this model has no such layer that reads everything: "
                f"choose among {', '.join(str(i) for i, p in at.items() if geometry.layers[p].window is None)}."
            )
        heads = geometry.layers[place].kv_heads
        if whole != (not head):
            raise CompositionError(f"{word!r} names a {'head' if whole else 'layer'}: write {_FORMS[whole]}.")
        if head and int(head) >= heads:
            raise CompositionError(
                f"the placement names key-value head {head} of layer {number} and that layer has {heads}: "
                f"choose 0 to {heads - 1}."
            )
        out.update((place, h) for h in ([int(head)] if head else range(heads)))
    return frozenset(out)


_FORMS = {False: "layer.head, as in 0.1+2.3", True: "layers, as in 0+2"}


def _gates(spec: str, geometry: Geometry, tables: Sequence[str], whole: bool) -> Gates | None:
    """The gates that a file has for this model; None if no file is given and the model is not the shipped one."""
    if not spec:
        return _table(_document(SHIPPED), tables, whole) if _is_shipped(geometry) else None
    path = Path(spec)
    if not path.is_file():
        raise InputError(f"there is no file of gates {spec}: make it with penstock inspect MODEL --json > {spec}.")
    found = _table(_document(path), tables, whole)
    wanted = [1 if whole else layer.kv_heads for layer in geometry.layers]
    if found is None or [len(row) for row in found] != wanted:
        what = f"{len(wanted)} layers" if whole else f"{len(wanted)} layers of {wanted[0]} key-value heads"
        raise InputError(
            f"{spec} has no gates of this model ({what}): make it with penstock inspect MODEL --json > {spec}."
        )
    return found


@lru_cache(maxsize=8)
def _read(path: Path, stamp: float) -> dict[str, Any]:
    try:
        lines = path.read_text(encoding="utf-8").strip()
        document = json.loads(lines if lines.startswith("{\n") else lines.splitlines()[-1])
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        raise InputError(f"{path} is not a JSON document of gates: make it with penstock inspect --json.") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a JSON document of gates: make it with penstock inspect --json.")
    return document


def _document(path: Path) -> dict[str, Any]:
    return _read(path, path.stat().st_mtime) if path.exists() else {}


def _table(document: dict[str, Any], tables: Sequence[str], whole: bool) -> Gates | None:
    """The first of the named tables; where layers are wanted and heads are there, the best head stands for them."""
    inner = document.get("gates")
    found = inner if isinstance(inner, dict) else document
    table = next((found[name] for name in tables if name in found), None)
    try:
        rows = [[float(x) for x in (row if isinstance(row, list) else [row])] for row in table or []]
    except (TypeError, ValueError):
        return None
    return tuple(tuple([max(row)] if whole else row) for row in rows) or None


def _is_shipped(geometry: Geometry) -> bool:
    """Whether a model has the shape that the shipped gates were made for."""
    shape = _document(SHIPPED).get("shape")
    if shape is None or len(geometry.layers) != shape["layers"]:
        return False
    keys = (shape["query_heads"], shape["kv_heads"], shape["width"])
    return all((layer.query_heads, layer.kv_heads, layer.key_width) == keys for layer in geometry.layers)
