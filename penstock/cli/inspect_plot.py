"""The picture of an inspection: a map of layers and heads for each thing that was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import MissingExtra, OutputError
from penstock.models.inspect import Inspection, LayerHeads


def panels(found: Inspection) -> dict[str, list[list[float]]]:
    """[layer][head] by title; key-value heads repeat for each of their query heads."""
    settings = found.settings

    def of(name: str) -> list[list[float]]:
        return [[float(getattr(head, name)) for head in layer.heads] for layer in found.layers]

    def shared(layer: LayerHeads) -> list[float]:
        return [layer.old_mass[head.kv_head] for head in layer.heads]

    return {
        "importance of the first token": of("importance"),
        f"mass on the first {settings.sinks}": of("first"),
        f"mass on the newest {settings.window}": of("local"),
        "mass on the token to copy": of("copy"),
        "old mass of mean states": [shared(layer) for layer in found.layers],
        "mean distance [tokens]": of("distance"),
    }


def draw(path: Path, found: Inspection, model: str) -> None:
    """Write the picture; raises MissingExtra without matplotlib, OutputError when the file cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingExtra("a plot", "plot") from None
    layers, heads = len(found.layers), max(len(layer.heads) for layer in found.layers)
    height = min(14.0, 3.2 + 0.32 * layers)
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, rows) in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, panels(found).items()):
        grid = np.full((layers, heads), np.nan)  # layers may differ in their number of heads
        for line, row in zip(grid, rows):
            line[: len(row)] = row
        top = None if "distance" in title else 1.0
        image = panel.imshow(grid, aspect="auto", cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest")
        figure.colorbar(image, ax=panel, fraction=0.05)
        panel.set_title(title, fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("query head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    figure.suptitle(f"heads of {model}", fontsize=11)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise OutputError(
            f"the plot {path} was not written ({error.strerror}): free space or choose another place."
        ) from None
