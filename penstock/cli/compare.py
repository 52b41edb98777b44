"""penstock compare: several memories on one stream, asked the same questions."""

# ruff: noqa: RUF009
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.cli.compare_views import compare_tables, view_for
from penstock.cli.derive import Common, argument, option
from penstock.cli.interrupts import Interrupts
from penstock.cli.options import PLOT_KINDS, can_plot, check_writable
from penstock.cli.output import ClosedOutput, Output, say
from penstock.compare import Cache, Comparison, Plan, Stream, facts_stream, make_plan, text_stream
from penstock.compare.comparison import check
from penstock.compare.parallel import Spec
from penstock.compare.plot import draw
from penstock.compare.questions import LEAST, USUAL
from penstock.core import Budget
from penstock.errors import MissingExtra, PenstockError, UnknownName, UsageError
from penstock.io import WORLDS, open_text
from penstock.methods import Method, parse, registry
from penstock.models.load import Model, load, parse_device, parse_dtype
from penstock.reducers import Chain
from penstock.reducers import parse as parse_reducer
from penstock.session import CHUNK, default_budget

ALL = "all"
USUAL_MEMORIES = ("dense", "window", "streaming-llm", "duo-attention", "infllm", "rekv", "lserve", "double-sparsity")
INTERRUPTED = 130
WATCHING_MEMORIES = ("window", "streaming-llm", "infllm", "rekv")
SHAPES = "shapes"
_TOKENS = 20_000
_USUAL = {"tokens": _TOKENS, "questions": USUAL, "jobs": None}
_ASKED = "facts"  # the world that knows what to ask


@dataclass(frozen=True)
class CompareOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    model: str | None = argument(
        None, "A model: a hub name or a folder; without one, the tiny model shipped.", "[MODEL]"
    )
    memory: list[str] | None = option(
        None, "A memory and its options; repeat it for each, or give all.  [default: the best known ones]",
        "NAME[:key=value,...]",
    )  # fmt: skip
    world: str | None = option(
        None, f"The world that is read: {', '.join(WORLDS)}; or shapes, which is watched, by a model that sees.  Facts "
        "and shapes have questions.  [default: facts]", "NAME",
    )  # fmt: skip
    reduce: list[str] | None = option(
        None, "With --world shapes: behind these reducers, joined by +; repeat it for each, none leaves nothing out.  "
        "[default: none]", "NAME[:key=value,...]",
    )  # fmt: skip
    streams: int = option(4, "With --world shapes: videos that each pair watches; 10 questions per distance and 15 "
                          "others in each.", "N")  # fmt: skip
    input: str | None = option(None, "Read this instead of a world; nothing is asked then.", "FILE|-|DIR")
    tokens: int = option(_TOKENS, "Read so many tokens.", "N")
    chunk: int = option(CHUNK, "Tokens per step; results do not depend on it.", "C")
    seed: int = option(0, "Of the world and of the choice of questions.", "S")
    budget: list[str] | None = option(
        None, "Entries per layer and key-value head (4096), or bytes (64MiB); may be repeated.  [default: half the "
        "model's context, at most 4096]", "N",
    )  # fmt: skip
    distance: list[int] | None = option(
        None, "Ask about facts so many tokens back; may be repeated.  [default: up to 50 budgets]", "D"
    )
    questions: int = option(USUAL, f"Questions per distance at most; at least {LEAST}.", "N")
    plot: Path | None = option(None, "Draw recall by distance, bytes and latency.", "F")
    cache: Path | None = option(
        None, "Where results are kept, so that an interrupted comparison goes on.  [default: the user's cache folder]",
        "DIR",
    )  # fmt: skip
    fresh: bool = option(False, "Measure again what the cache already holds.")
    jobs: int | None = option(None, "Passes that run side by side, one core each.  [default: the number of cores, at "
                              "most 4, for a small model that reads much; else 1]", "N")  # fmt: skip
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("chunk", 1), ("seed", 0), ("questions", LEAST), ("streams", 1)):
            if not least <= getattr(self, name) < 1 << 63:
                raise UsageError(f"--{name} cannot be {getattr(self, name)}: give a whole number from {least} on.")
        if self.jobs is not None and not 1 <= self.jobs <= 64:
            raise UsageError(f"--jobs cannot be {self.jobs}: give a whole number from 1 to 64.")
        if self.world is not None and self.input is not None:
            raise UsageError("--world and --input name two streams: give one of them.")
        if self.world is not None and self.world not in (*WORLDS, SHAPES):
            raise UnknownName("world", self.world, (*WORLDS, SHAPES))
        if self.watches:
            given = [name for name in ("tokens", "questions", "jobs") if getattr(self, name) != _USUAL[name]]
            if given:
                raise UsageError(f"--world shapes has no --{given[0]}: say how much with --streams and --distance.")
        elif self.reduce or self.streams != 4:
            raise UsageError("--reduce and --streams are for what is watched: add --world shapes.")
        _ = self.chains
        if self.distance and not self.asks:
            raise UsageError("--distance needs questions, which only facts and shapes have: leave out one of them.")
        for distance in self.distance or ():
            if distance < 1:
                raise UsageError(f"--distance cannot be {distance}: give a whole number from 1 on.")
            if distance >= self.tokens and not self.watches:
                raise UsageError(
                    f"--distance {distance} is longer than the stream: give --tokens {2 * distance} or a shorter one."
                )
        self.methods()
        for budget in self.budget or ():
            if Budget.parse(budget).seconds is not None:
                raise UsageError(f"a text has no seconds, so --budget cannot be {budget}: give entries or bytes.")
        parse_device(self.device)
        parse_dtype(self.dtype)
        if self.cache is not None and self.cache.exists() and not self.cache.is_dir():
            raise UsageError(f"--cache {self.cache} is a file: give a folder.")
        if self.plot is not None:
            check_writable("--plot", self.plot)
            if self.plot.suffix.lower() not in PLOT_KINDS:
                raise UsageError(f"cannot draw {self.plot}: give a name that ends in {', '.join(PLOT_KINDS)}.")
            if not can_plot():
                raise MissingExtra("--plot", "plot")

    @property
    def asks(self) -> bool:
        """Whether the stream has questions."""
        return self.input is None and (self.world or _ASKED) in (_ASKED, SHAPES)

    @property
    def watches(self) -> bool:
        """Whether the stream is a video."""
        return self.world == SHAPES

    @property
    def chains(self) -> list[Chain]:
        """The reducers to compare, each once; none if nothing is said."""
        texts = [[part.strip() for part in text.split("+")] for text in self.reduce or ["none"]]
        chains = [Chain([parse_reducer(part) for part in parts if part != "none"]) for parts in texts]
        return list({str(chain): chain for chain in chains}.values())

    @property
    def takes_all(self) -> bool:
        return ALL in (self.memory or ())

    def methods(self) -> list[Method]:
        """The memories, each once, in the order given."""
        usual = WATCHING_MEMORIES if self.watches else USUAL_MEMORIES
        names: Sequence[str] = self.memory or [name for name in usual if name in registry()]
        if self.takes_all:
            names = [name for name in names if name != ALL] + list(registry())
        return list({str(method): method for method in map(parse, names)}.values())


def compare(options: CompareOptions) -> int | None:
    """Compare memories on one stream: recall against distance, loss, bytes, latency; on a video, reducers too."""
    out = Output(options.json)
    if options.watches:
        from penstock.cli.compare_shapes import compare_shapes

        return compare_shapes(options, out)
    model = load(options.model, dtype=options.dtype, device=options.device)
    stream = open_stream(options, model)
    budgets = list(dict.fromkeys(map(Budget.parse, options.budget or []))) or [default_budget(model)]
    plans = [make_plan(stream, entries_of(model, budget), options.distance or (), options.questions, options.seed)
             for budget in budgets]  # fmt: skip
    methods, notes = options.methods(), [note for plan in plans for note in plan.notes]
    if options.takes_all:
        methods, left_out = that_work(model, methods, budgets)
        notes += left_out
    if len(stream.ids) < options.tokens:
        notes.append(f"{stream.name} has {len(stream.ids):,} tokens.")
    cache = Cache(options.cache, options.fresh)
    comparison = Comparison(model, methods, budgets, stream, plans, options.chunk, cache)
    closed = False
    with Interrupts() as interrupts:
        try:
            with view_for(out) as view:
                spec = Spec(options.model, options.dtype, options.device)
                comparison.run(view.show, lambda: interrupts.flagged, spec, options.jobs)
        except ClosedOutput:
            closed = True
        interrupts.next_phase()
        if options.plot is not None and comparison.rows:
            draw(options.plot, comparison.rows, comparison.baselines, f"{model.name} reads {stream.name}")
    if cache.trouble:
        notes.append(cache.trouble)
    if closed:
        raise ClosedOutput
    return _tell(out, options, comparison, plans, notes)


def open_stream(options: CompareOptions, model: Model) -> Stream:
    """The tokens that every memory reads."""
    if options.asks:
        return facts_stream(model, options.tokens, options.seed)
    return text_stream(model, open_text(options.input or f"world:{options.world}", options.seed), options.tokens)


def entries_of(model: Model, budget: Budget) -> int:
    """A budget in entries, for the distances: those of a plain window where it is given in bytes."""
    entries = check(model, parse("window"), budget)
    assert entries is not None
    return entries


def that_work(model: Model, methods: list[Method], budgets: list[Budget]) -> tuple[list[Method], list[str]]:
    """Of all methods those that this model and these budgets allow, and why the others are left out."""
    kept, notes = [], []
    for method in methods:
        try:
            for budget in budgets:
                check(model, method, budget if method.needs_budget else None)
        except PenstockError as error:
            notes.append(f"{method} is left out: {error}")
        else:
            kept.append(method)
    return kept, notes


def document(
    options: CompareOptions, comparison: Comparison, plans: Sequence[Plan], notes: list[str]
) -> dict[str, Any]:
    """The last document of `penstock compare --json`."""
    model, stream = comparison.model, comparison.stream
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "stream": stream.name,
        "tokens": len(stream.ids),
        "chunk": options.chunk,
        "seed": options.seed,
        "device": str(model.attached.device),
        "dtype": str(model.attached.geometry.dtype).removeprefix("torch."),
        "questions": [len(plan.questions) for plan in plans],
        "rows": comparison.rows,
        "baselines": comparison.baselines,
        "ended": comparison.ended,
        "plot": str(options.plot) if options.plot and comparison.rows else None,
        "notes": notes,
    }


def _tell(out: Output, options: CompareOptions, comparison: Comparison, plans: list[Plan], notes: list[str]) -> int:
    broken = [row for row in comparison.rows + comparison.baselines if row.get("error")]
    for note in notes:
        say(f"note: {note}")
    for row in broken:
        say(f"penstock: {row['memory']} with a budget of {row['budget']} failed: {row['error']}")
    if out.as_json:
        out.document(document(options, comparison, plans, notes))
    else:
        missing = len(comparison.jobs) - len({(row["memory"], row["budget"]) for row in comparison.rows})
        if comparison.ended == "interrupted":
            out.write("interrupted: the same command goes on from here\n" if missing else "interrupted\n")
        out.show(*compare_tables(comparison))
        if options.plot is not None and comparison.rows:
            out.write(f"plot: {options.plot}\n")
    return 1 if broken else INTERRUPTED if comparison.ended == "interrupted" else 0
