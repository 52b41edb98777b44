"""The picture of a comparison: recall by distance, bytes by tier, latency; one line of panels per budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import MissingExtra, OutputError

# Colour-blind safe (Okabe and Ito); dashes keep lines apart that lie on each other.
_COLORS = ("#0072B2", "#E69F00", "#CC3311", "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_TIERS = (("device", "#0072B2", "o"), ("ram", "#E69F00", "s"), ("disk", "#777777", "D"))
_MIB = 2**20

Row = Mapping[str, Any]


def draw(path: Path, rows: Sequence[Row], baselines: Sequence[Row], title: str) -> None:
    """Write the picture; raises MissingExtra without matplotlib, OutputError when the file cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("a plot", "plot") from None
    good = [row for row in rows if not row.get("error")]
    budgets = list(dict.fromkeys(row.get("budget_given", row["budget"]) for row in good)) or [None]
    most = max((sum(_given(row) == budget for row in good) for budget in budgets), default=0)
    height = max(3.6, 0.32 * most + 1.6)
    figure = Figure(figsize=(15, height * len(budgets) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(budgets), 3, squeeze=False, width_ratios=(2.2, 1, 1))
    for line, budget in zip(panels, budgets):
        mine = [row for row in good if _given(row) == budget]
        beside = [row for row in baselines if _given(row) == budget and not row.get("error")]
        _recall(line[0], mine, beside)
        _bytes(line[1], mine)
        _latency(line[2], mine)
        line[0].set_title(f"budget {budget}", loc="left", fontsize=9)
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(
            f"the plot {path} was not written ({error.strerror}): free space or choose another place."
        ) from None


def _given(row: Row) -> Any:
    return row.get("budget_given", row["budget"])


def _middle(each: Row) -> float:
    """The geometric middle of a bin; the first one begins at 0 and counts from its half."""
    return float((max(each["from"], each["to"] / 2) * each["to"]) ** 0.5)


def _recall(panel: Any, rows: Sequence[Row], beside: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    budget = next((row["budget"] for row in rows if not row.get("grows")), rows[0]["budget"] if rows else 1)
    for index, row in enumerate([*beside, *rows]):
        points = [(_middle(each) / budget, each["recall"]) for each in row["recall"]]
        if not points:
            continue
        number = index - len(beside)
        style: dict[str, Any] = {"color": "0.55", "linestyle": ("-", ":")[index % 2], "linewidth": 1.2, "marker": "."}
        if number >= 0:
            style = {
                "color": _COLORS[number % len(_COLORS)], "linestyle": _DASHES[number // len(_COLORS) % len(_DASHES)],
                "linewidth": 1.8, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5,
            }  # fmt: skip
        panel.plot([x for x, _ in points], [y for _, y in points], label=row["memory"], **style)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axvline(1, color="0.5", linewidth=1, linestyle=":")
    panel.set_ylim(-0.03, 1.03)
    panel.set_ylabel("recall")
    panel.set_xlabel("distance of the evidence [budgets]")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bytes(panel: Any, rows: Sequence[Row]) -> None:
    places = list(range(len(rows)))[::-1]
    for tier, color, marker in _TIERS:
        held = [(row["bytes"][tier] / _MIB, place) for row, place in zip(rows, places) if row["bytes"][tier]]
        if held:
            panel.plot([x for x, _ in held], [y for _, y in held], color=color, marker=marker, linestyle="", label=tier)
    _by_memory(panel, rows, places)
    panel.set_xlabel("peak [MiB]")
    if rows:
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3, frameon=False)


def _by_memory(panel: Any, rows: Sequence[Row], places: Sequence[int]) -> None:
    """A line per memory, a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yticks(places, [row["memory"] for row in rows], fontsize=7)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    if rows:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(axis="x", labelsize=7)
    panel.grid(alpha=0.25, axis="x")
    panel.spines[["top", "right"]].set_visible(False)


def _latency(panel: Any, rows: Sequence[Row]) -> None:
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows):
        times = row["step_ms"]
        if times["p50"] is not None:
            panel.plot([times["p50"], times["p99"]], [place, place], color="#0072B2", linewidth=2)
            panel.plot([times["p50"]], [place], color="#0072B2", marker="o", markersize=5)
    _by_memory(panel, rows, places)
    panel.set_xlabel("step, p50 (dot) to p99 [ms]")
