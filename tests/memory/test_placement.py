"""Which heads are chosen: by a list, by gates of a file, by what is known of the shipped model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from penstock.errors import CompositionError, InputError
from penstock.memory import Geometry, Layer, placement
from penstock.memory.placement import choose, split


def geometry(layers: int = 3, kv_heads: int = 2, windowed: tuple[int, ...] = ()) -> Geometry:
    made = [Layer(i, 2 * kv_heads, kv_heads, 8, 8, None, 16 if i in windowed else None) for i in range(layers)]
    return Geometry(tuple(made), torch.float32, torch.device("cpu"))


def test_a_list_names_layers_and_heads() -> None:
    assert choose("0.1+2.0", geometry(), ()) == {(0, 1), (2, 0)}
    assert choose("1", geometry(), (), whole=True) == {(1, 0), (1, 1)}
    assert choose("none", geometry(), ()) == frozenset()
    assert len(choose("all", geometry(), ())) == 6
    assert len(choose("all", geometry(windowed=(1,)), ())) == 4
    assert split(choose("0.1+2.0", geometry(), ()), 0, 2) == ((1,), (0,))
    assert split(choose("0.1+2.0", geometry(), ()), 1, 2) == ((), (0, 1))


@pytest.mark.parametrize(
    ("spec", "whole", "words"),
    [("0.2", False, "choose 0 to 1"), ("3.0", False, "choose among 0, 2"), ("1.0", False, "choose among 0, 2"),
     ("0", False, "write layer.head"), ("0.1", True, "write layers")],
)  # fmt: skip
def test_heads_that_the_model_lacks_are_refused(spec: str, whole: bool, words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        choose(spec, geometry(windowed=(1,)), (), whole=whole)


def test_the_highest_share_of_the_gates_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text(json.dumps({"heads": [[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]], "other": [[1, 0]] * 3}))
    assert choose(str(path), geometry(), ("heads",), share=1 / 3) == {(0, 1), (1, 0)}
    assert choose(str(path), geometry(), ("heads",), share=0.5) == {(0, 1), (1, 0), (2, 0)}  # the first of equal ones
    assert choose(str(path), geometry(), ("heads",), above=0.5) == {(0, 1), (1, 0), (2, 0), (2, 1)}
    assert choose(str(path), geometry(), ("missing", "other"), share=0.5) == {(0, 0), (1, 0), (2, 0)}
    assert choose(str(path), geometry(), ("heads",), share=1 / 3, whole=True) == {(0, 0), (0, 1)}  # by its best head
    # Layers with a window of their own have nothing to choose; the share is one of the others.
    assert choose(str(path), geometry(windowed=(0,)), ("heads",), share=0.5) == {(1, 0), (2, 0)}


def test_the_last_line_of_an_inspection_is_read(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text('{"progress": 1}\n' + json.dumps({"gates": {"copy": [[0, 1], [0, 1], [0, 1]]}}) + "\n")
    assert choose(str(path), geometry(), ("heads", "copy"), share=0.5) == {(0, 1), (1, 1), (2, 1)}


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it with penstock inspect"):
        choose(str(tmp_path / "missing.json"), geometry(), ("heads",), share=0.5)
    path = tmp_path / "gates.json"
    path.write_text(json.dumps({"heads": [[0.1, 0.9]] * 2}))
    with pytest.raises(InputError, match=r"no gates of this model \(3 layers of 2 key-value heads\)"):
        choose(str(path), geometry(), ("heads",), share=0.5)
    path.write_text("not json")
    with pytest.raises(InputError, match="not a JSON document"):
        choose(str(path), geometry(), ("heads",), share=0.5)


def test_a_model_without_gates_has_its_heads_spread_evenly() -> None:
    """And says so, unless there is nothing to choose."""
    with pytest.warns(UserWarning, match="heads are chosen evenly: make them with penstock inspect"):
        assert choose("", geometry(), ("heads",), share=0.5) == {(0, 0), (1, 0), (2, 0)}
    with pytest.warns(UserWarning, match="layers are chosen evenly"):
        assert choose("", geometry(), ("layers",), share=0.5, whole=True) == {(0, 0), (0, 1), (2, 0), (2, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(choose("", geometry(), ("heads",), share=1.0)) == 6


def test_the_shipped_gates_are_for_the_shipped_shape_alone() -> None:
    shape = json.loads(placement.SHIPPED.read_text())["shape"]
    layers = [
        Layer(i, shape["query_heads"], shape["kv_heads"], shape["width"], shape["width"], None)
        for i in range(shape["layers"])
    ]
    shipped = Geometry(tuple(layers), torch.float32, torch.device("cpu"))
    chosen = choose("", shipped, ("heads",), share=0.25)
    gates = json.loads(placement.SHIPPED.read_text())["heads"]
    highest = sorted(((gate, layer, head) for layer, row in enumerate(gates) for head, gate in enumerate(row)))[-4:]
    assert chosen == {(layer, head) for _, layer, head in highest}
    assert chosen == {(0, 3), (1, 0), (1, 1), (1, 2)}  # the layer that was given the copying circuit, and one more
    smaller = Geometry(tuple(layers[:2]), torch.float32, torch.device("cpu"))
    assert choose("", smaller, ("heads",), share=0.5) == {(0, 0), (0, 1), (1, 0), (1, 1)}
