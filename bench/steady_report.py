"""What do the figures of `bench.steady` say? Tables for people, the figures to reach beside those reached, the plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers.registry import ENTRANTS
from bench.report import count, figure, megabytes, save_figure, say, table

MAIN = ("M", "bfloat16")  # the shape and precision of the figures to reach
DECODE_GOALS = (  # peer's group, positions, at least
    ("concat", ("4096", "65536"), 3.5),
    ("kvpress", ("4096", "65536"), 2.2),
    ("dense", ("65536",), 20.0),
    ("reencode", ("65536",), 20.0),
    ("llama.cpp shift by one", ("4096", "65536"), 1.4),
    ("llama.cpp shift by half", ("4096", "65536"), 1.0),
)
INGEST_GOALS = (
    ("concat", ("4096", "65536"), 1.6),
    ("kvpress", ("4096", "65536"), 1.4),
    ("llama.cpp shift by one", ("4096", "65536"), 4.0),
)
LIMIT_GOAL, ACCURACY_GOAL = 0.45, 1e-4


def fastest(cell: dict[str, Any], group: str) -> tuple[str, dict[str, float]] | None:
    """The setting of a program that comes closest to ours (the smallest ratio), by name."""
    found = [(name, own) for name, own in cell["ratios"]["slower_by"].items() if ENTRANTS[name].group == group]
    return min(found, key=lambda pair: pair[1]["ratio"], default=None)


def ratio_figures(kind: str, cells: dict[str, Any], goals: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """One entry per goal and position that was measured with ours present."""
    for group, positions, least in goals:
        for position in positions:
            cell = cells.get(position)
            if cell is None or cell["ratios"]["against"] != "ours":
                continue
            best = fastest(cell, group)
            if best is None:
                continue
            name, own = best
            yield {
                "what": f"{kind} at {count(int(position))}, times faster than {group} ({name})",
                "goal": f">= {least:g}x",
                "reached": round(own["ratio"], 2),
                "p10": round(own["p10"], 2),
                "p90": round(own["p90"], 2),
                "met": own["ratio"] >= least,
            }


def figures(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures to reach (M bfloat16, and the accuracy of T float32) beside what this run gave."""
    rows: list[dict[str, Any]] = []
    for model in document["models"]:
        if (model["shape"], model["dtype"]) != MAIN:
            continue
        rows += ratio_figures("decode", model["decode"], DECODE_GOALS)
        rows += ratio_figures("ingest", model["ingest"], INGEST_GOALS)
        ours = {position: cell["contestants"].get("ours") for position, cell in model["decode"].items()}
        near, far = ours.get("4096"), ours.get("65536")
        if far:
            reached = far["fraction_of_limit"]
            what = "decode at 64k, fraction of the physical limit"
            rows.append({"what": what, "goal": f">= {LIMIT_GOAL}", "reached": round(reached, 3)})
            rows[-1]["met"] = reached >= LIMIT_GOAL
        if near and far:
            noise = max((own["p90_ms"] - own["p10_ms"]) / own["median_ms"] for own in (near, far))
            reached = far["median_ms"] / near["median_ms"]
            goal = f"1.0 within the run's noise ({noise:.2f})"
            rows.append({"what": "decode latency at 64k over 4k", "goal": goal, "reached": round(reached, 3)})
            rows[-1]["met"] = reached - 1.0 <= noise
    exact = document["accuracy"] or {}
    for way, own in exact.get("ways", {}).items():
        what = f"largest difference of logits to the float64-angle reference, {exact['tokens']} tokens, {way}"
        value = own["largest_difference"]
        rows.append({"what": what, "goal": f"<= {ACCURACY_GOAL:g}", "reached": value, "met": value <= ACCURACY_GOAL})
    return rows


def ratio_text(cell: dict[str, Any], name: str) -> str:
    own = cell["ratios"]["slower_by"].get(name)
    return "1" if own is None else f"{own['ratio']:.2f} ({own['p10']:.2f}-{own['p90']:.2f})"


def show_model(model: dict[str, Any]) -> None:
    """The tables of one shape and precision."""
    say(f"\n== {model['shape']} {model['dtype']}: {model['parameters'] / 1e6:.1f} million parameters ==")
    for position, cell in model["decode"].items():
        rows = [
            [
                name,
                f"{own['median_ms']:.2f}",
                f"{own['p10_ms']:.2f}-{own['p90_ms']:.2f}",
                ratio_text(cell, name),
                megabytes(own["memory_bytes"]),
                megabytes(own["rss_bytes"]),
                f"{100 * own['fraction_of_limit']:.0f}%" if name != "reencode" else "-",
                str(own["rounds"]),
            ]
            for name, own in cell["contestants"].items()
        ]
        against = f"slower than {cell['ratios']['against']}"
        headings = ["decode", "ms", "p10-p90", against, "memory", "resident", "of limit", "rounds"]
        say(f"\nposition {count(int(position))}")
        say(table(headings, rows))
    for position, cell in model["ingest"].items():
        rows = [
            [name, f"{own['tokens_per_second']:.0f}", f"{own['median_ms']:.0f}", ratio_text(cell, name)]
            for name, own in cell["contestants"].items()
        ]
        say(f"\nposition {count(int(position))}, chunks of 256")
        say(table(["ingest", "tokens/s", "ms per chunk", f"slower than {cell['ratios']['against']}"], rows))
    agreement = model["agreement"]
    say(
        f"\nlargest difference of logits to {agreement['compared_with']} after {agreement['tokens']} tokens one by one:"
    )
    say(", ".join(f"{name} {value:.1e}" for name, value in agreement["largest_difference"].items()))
    for name, message in model["skipped"].items():
        say(f"skipped {name}: {message}")


def show(document: dict[str, Any]) -> None:
    """Everything for people."""
    hardware = document["machine"]
    say(document["question"])
    say(f"{hardware['processor']}, {hardware['cores']} cores, {document['settings']['threads']} threads for everybody")
    bandwidth = document["bandwidth"]["bytes_per_second"]
    say(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s (reading 1 GiB, best of several passes)")
    if document["quick"]:
        say("a smoke test: too short to be quoted")
    for model in document["models"]:
        show_model(model)
    exact = document["accuracy"]
    if exact is not None:
        say(f"\n== accuracy: {exact.get('shape', '')} {exact.get('dtype', '')}, {exact.get('tokens', 0)} tokens ==")
        for way, own in exact["ways"].items():
            say(f"{way}: largest difference {own['largest_difference']:.2e} at token {own['at']}")
        for name, message in exact["skipped"].items():
            say(f"skipped {name}: {message}")
    if document["figures"]:
        say("\n== figures to reach ==")
        rows = [
            [
                own["what"],
                own["goal"],
                f"{own['reached']:.3g}" + (f" ({own['p10']:g}-{own['p90']:g})" if "p10" in own else ""),
                "yes" if own["met"] else "NO",
            ]
            for own in document["figures"]
        ]
        say(table(["what", "at least", "reached (p10-p90)", "met"], rows))
    say()


def plot(document: dict[str, Any], path: Path) -> None:
    """Latency against stream position, one panel per shape and precision."""
    models = document["models"]
    if not models:
        return
    drawing, axes = figure(len(models))
    for axis, model in zip(axes, models):
        names = dict.fromkeys(name for cell in model["decode"].values() for name in cell["contestants"])
        for index, name in enumerate(names):
            points = [(int(at), cell["contestants"].get(name)) for at, cell in model["decode"].items()]
            points = [(at, own) for at, own in points if own]
            middle = [own["median_ms"] for _, own in points]
            errors = [
                [own["median_ms"] - own["p10_ms"] for _, own in points],
                [own["p90_ms"] - own["median_ms"] for _, own in points],
            ]
            style = {"linewidth": 2.6, "color": "black"} if name == "ours" else {"color": f"C{index % 10}"}
            marker = "os^vDPX*"[index % 8]
            axis.errorbar([at for at, _ in points], middle, errors, label=name, marker=marker, markersize=4, **style)
        limit = 1e3 * model["step_bytes"] / document["bandwidth"]["bytes_per_second"]
        axis.axhline(limit, linestyle="--", color="grey", label="physical limit, 4 + 1020")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(positions := [int(at) for at in model["decode"]], [count(at) for at in positions])
        axis.set_title(f"{model['shape']} {model['dtype']}")
        axis.set_xlabel("stream position")
        axis.set_ylabel("ms per token")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save_figure(drawing, path)
