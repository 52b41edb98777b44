"""The picture of a run: loss, latency and memory against the position in the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.cli.lanes import Lane
from penstock.errors import MissingExtra, OutputError

# Colour-blind safe (Okabe and Ito); the dashes keep lines apart that lie on each other.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-", "linewidth": 2.2, "zorder": 3},
    {"color": "#E69F00", "linestyle": (0, (4, 2)), "linewidth": 1.8, "zorder": 4},
    {"color": "#CC3311", "linestyle": "-", "linewidth": 1.8, "zorder": 5},
    {"color": "#009E73", "linestyle": (0, (1, 1)), "linewidth": 1.8, "zorder": 6},
)


def draw(path: Path, lanes: Sequence[Lane], source: str) -> None:
    """Write the picture; raises MissingExtra without matplotlib, OutputError when the file cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError:
        raise MissingExtra("a plot", "plot") from None
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True)
    context = lanes[0].session.model.context
    end = max(lane.session.tokens for lane in lanes)
    for lane, style in zip(lanes, _STYLES * (1 + len(lanes) // len(_STYLES))):
        points = lane.trace.points()
        curves = (
            [(p.position, p.nll) for p in points if p.nll is not None],
            [(p.position, p.step_ms) for p in points],
            [(p.position, p.memory_bytes / 2**20) for p in points],
        )
        for panel, curve in zip(panels, curves):
            x, y = [at for at, _ in curve], [value for _, value in curve]
            panel.plot(x, y, label=lane.name, marker="o" if len(x) == 1 else None, **style)
            if lane.stopped and x:
                panel.plot(x[-1], y[-1], marker="x", markersize=8, markeredgewidth=2, **{**style, "linestyle": ""})
    for panel, label in zip(panels, ("loss [nats per token]", "step [ms]", "stored [MiB]")):
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if context is not None and context < end:
            panel.axvline(context, color="0.5", linewidth=1, linestyle=":")
    for panel in panels[1:]:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        low, high = panel.get_ylim()
        panel.set_ylim((low / 3, high * 3) if high < 10 * low else (low / 1.5, high))  # a flat line looks flat
    if context is not None and context < end:
        panels[2].annotate(
            "the model's context", (context, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
    panels[2].set_xscale("log")
    panels[2].set_xlabel(f"position in the stream [tokens, {lanes[0].session.chunk} per step]")
    budgets = [lane.session.budget for lane in lanes if lane.session.budget]
    name = lanes[0].session.model.name
    figure.suptitle(f"{name} reads {source}" + (f", {budgets[0]} entries per layer" if budgets else ""), fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    stopped = [
        f"{lane.name} (x) was stopped at {lane.session.tokens:,}: {lane.stopped}" for lane in lanes if lane.stopped
    ]
    if stopped:
        panels[0].set_title(". ".join(stopped), fontsize=8, color="0.35", loc="left")
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise OutputError(
            f"the plot {path} was not written ({error.strerror}): free space or choose another place."
        ) from None
