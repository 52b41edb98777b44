"""Does loss, memory or latency change on a text that does not end?

A real trained model reads at least one million tokens of real text, once with each memory: `dense` (the plain
transformers cache, up to a cap, since it breaks far earlier), `window` (the newest tokens only) and `streaming-llm`
(4 sinks and a window). Each row is a process of its own. The text is read in chunks of 64 tokens; at each sample 16
tokens of the same stream are read one by one, their median is the step latency.

    python -m bench.endless                      one million tokens; minutes
    python -m bench.endless --tokens 50000       a smoke test

`--text` chooses what is read. `books`: tinystories-656k with the four books beside it, where a folder
`../shared/data` exists. `stories`: the same model with stories that it sampled itself, the text it knows best, which
shows the break past the context most clearly. `library`: the model that the package ships, with the part of Python's
own library that was held out of its training. Texts are joined in the order of their names and repeated when they are
too short; what was done is printed. The books are far from what that model learnt, so there the level of the loss says
little; its course does. Default: books where they exist, else library. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench import machine, report

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "penstock" / "models" / "tiny"
DATA = ROOT.parent / "shared" / "data"
ROWS = ("dense", "window", "streaming-llm")
Text = str | list[int]
GROWTH_GOAL = 2_000_000  # bytes


def find_source(text: str) -> tuple[Path, list[tuple[str, Text]]]:
    """The model's folder and its texts by name; sampled stories are token identifiers already."""
    stories = DATA / "weights" / "tinystories-656k"
    if text == "auto":
        text = "books" if stories.is_dir() and (DATA / "text").is_dir() else "library"
    if text == "books":
        return stories, [
            (path.name, path.read_text(encoding="utf-8")) for path in sorted((DATA / "text").glob("*.txt"))
        ]
    if text == "stories":
        from bench.stories import sampled_stories

        return stories, [("stories sampled from the model", sampled_stories(stories, Path("runs/bench")))]
    from penstock.worlds.library import documents

    return SHIPPED, [("the held-out library", "".join(part.text for part in documents(heldout=True)))]


def encode(model: Path, texts: list[tuple[str, Text]], tokens: int, path: Path) -> dict[str, Any]:
    """Write the identifiers of the joined (and, if short, repeated) texts; returns what was done."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    ids: list[int] = []
    for _, text in texts:
        ids += tokenizer.encode(text, add_special_tokens=False).ids if isinstance(text, str) else text
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    first = config.get("bos_token_id")
    stream = np.resize(np.array(ids, dtype=np.int32), tokens)  # repeats when short
    if first is not None:
        stream[0] = first
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, stream)
    return {
        "texts": [name for name, _ in texts],
        "distinct_tokens": min(len(ids), tokens),
        "read_times_over": max(1.0, round(tokens / len(ids), 2)),
        "context": config.get("max_position_embeddings"),
    }


def run_row(name: str, model: Path, ids: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One memory over the stream, in a process of its own; an entry `skipped` when it fails."""
    tokens = min(arguments.tokens, arguments.dense_tokens) if name == "dense" else arguments.tokens
    command = [sys.executable, "-m", "bench.endless_row", "--model", str(model), "--memory", name]
    command += ["--budget", str(arguments.budget), "--ids", str(ids), "--tokens", str(tokens)]
    command += ["--path", arguments.path, "--threads", str(arguments.threads)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        print(f"skipped {name}: exit status {result.returncode}", file=sys.stderr)
        return {"memory": name, "skipped": f"exit status {result.returncode}"}
    row: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return row | {"growth": growth(row["samples"], arguments.tokens // 10)}


def growth(samples: list[dict[str, float]], start: int) -> dict[str, float] | None:
    """How the resident set changed from the first sample at `start` tokens to the last one."""
    later = [own for own in samples if own["position"] >= start]
    if len(later) < 2:
        return None
    first, last = later[0], later[-1]
    return {"from": first["position"], "to": last["position"], "rss_bytes": last["rss_bytes"] - first["rss_bytes"]}


def show(document: dict[str, Any]) -> None:
    """Tables for people."""
    report.say(document["question"])
    source = document["source"]
    report.say(
        f"{document['model']}, context {source['context']}, budget {document['budget']} entries; {document['tokens']} "
        f"tokens from {', '.join(source['texts'])} ({source['distinct_tokens']} distinct, "
        f"read {source['read_times_over']} times over)"
    )
    rows = [row for row in document["rows"] if "skipped" not in row]
    for row in rows:
        report.say(f"\n{row['memory']}: {row['tokens']} tokens, mean loss {row['nll_mean']:.3f}")
        lines = [
            [f"{report.count(int(start))} to {report.count(int(end))}", f"{mean:.3f}", *at(row["samples"], end)]
            for start, end, mean in row["nll_by_position"]
        ]
        report.say(report.table(["tokens", "loss", "ms/step", "ms/chunk", "memory", "resident"], lines))
        if row["growth"]:
            change = row["growth"]
            report.say(
                f"resident set from {change['from']:.0f} to {change['to']:.0f} tokens: "
                f"{change['rss_bytes'] / 1e6:+.2f} MB (goal: under {GROWTH_GOAL / 1e6:.0f} MB)"
            )
    report.say()


def at(samples: list[dict[str, float]], end: float) -> list[str]:
    """The last sample up to a position, as text."""
    own = [sample for sample in samples if sample["position"] <= end + 128]
    if not own:
        return ["-"] * 4
    last = own[-1]
    return [
        f"{last['step_ms']:.2f}",
        f"{last['chunk_ms']:.1f}",
        report.megabytes(last["memory_bytes"]),
        report.megabytes(last["rss_bytes"]),
    ]


def plot(document: dict[str, Any], path: Path) -> None:
    """Loss, memory and latency against position."""
    drawing, axes = report.figure(3)
    for index, row in enumerate(row for row in document["rows"] if "skipped" not in row):
        label, color = row["memory"], f"C{index}"
        losses = [((start + end) / 2, mean) for start, end, mean in row["nll_by_position"]]
        axes[0].plot(*zip(*losses), label=label, color=color, marker="o", markersize=3)
        positions = [own["position"] for own in row["samples"]]
        axes[1].plot(
            positions, [own["rss_bytes"] / 1e6 for own in row["samples"]], label=f"{label}, resident", color=color
        )
        memory = [own["memory_bytes"] / 1e6 for own in row["samples"]]
        axes[1].plot(positions, memory, label=f"{label}, keys and values", color=color, linestyle="--")
        axes[2].plot(positions, [own["step_ms"] for own in row["samples"]], label=label, color=color)
    for axis, name in zip(axes, ("loss (nats per token)", "MB", "ms per decode step")):
        axis.set_xscale("log")
        axis.set_xlabel("stream position")
        axis.set_ylabel(name)
        axis.legend(fontsize=8)
    axes[1].set_yscale("log")
    axes[2].set_yscale("log")
    if document["source"]["context"]:
        axes[0].axvline(document["source"]["context"], color="grey", linestyle=":", label="context")
    report.save_figure(drawing, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.endless", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", choices=("auto", "books", "stories", "library"), default="auto")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--dense-tokens", type=int, default=65_536, help="cap of the dense row")
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--memories", default=",".join(ROWS))
    parser.add_argument("--path", default="compiled", help="of the decode step of bounded memories")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/endless.png"))
    arguments = parser.parse_args(argv)
    model, texts = find_source(arguments.text)
    ids = Path("runs/bench/endless.npy").resolve()
    source = encode(model, texts, arguments.tokens, ids)
    with machine.quiet():
        busy = machine.busy_percent()
        rows = [run_row(name, model, ids, arguments) for name in arguments.memories.split(",")]
    document = {
        "benchmark": "endless",
        "question": __doc__.splitlines()[0],
        "model": model.name,
        "tokens": arguments.tokens,
        "budget": arguments.budget,
        "source": source,
        "machine": machine.record() | {"busy_percent_before": busy},
        "rows": rows,
    }
    show(document)
    if arguments.plot:
        plot(document, arguments.plot)
    report.finish(document, arguments.json)


if __name__ == "__main__":
    main()
