"""penstock watch: a model looks at a stream of frames that may never end, answers questions, speaks up by itself."""

# ruff: noqa: RUF009
from __future__ import annotations

import importlib.util
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.cli.derive import Common, argument, option
from penstock.cli.interrupts import Interrupts
from penstock.cli.options import DEFAULT_MEMORY
from penstock.cli.output import ClosedOutput, Output
from penstock.cli.summary import ResidentSet
from penstock.cli.threads import Threads
from penstock.cli.watch_page import Page, served
from penstock.cli.watch_views import Reporter, reporter_for, summary, summary_table
from penstock.core import Budget, Clock, RealClock, SimulatedClock
from penstock.errors import MissingExtra, UsageError
from penstock.io.bounded import Policy
from penstock.io.captions import Caption, read_captions
from penstock.io.frames import FrameSource
from penstock.io.video import open_frames
from penstock.methods import parse
from penstock.models.load import parse_device, parse_dtype
from penstock.reducers import Chain
from penstock.reducers import parse as parse_reducer
from penstock.triggers import Trigger
from penstock.triggers import parse as parse_trigger
from penstock.triggers.monitor import Guarding, parse_monitor
from penstock.watch import Agenda, Limits, Pipeline, Question, Requests, Watch, parse_question, request_of
from penstock.watch.opening import Sight, open_sight

WORLD = "world:shapes"
WORLD_SECONDS = 120.0  # of a generated video, without --frames or --seconds
OVERSIZE = 2  # pictures are scaled down while they are decoded to so many times what the model reads
TOUR_ASKS = (
    "How many things are there?@30",
    "What is northwest?@60",
    "What is southeast?@90",
    "How many things are there?",
)
TOUR_TELL = "Tell me what comes."
RATE = 2.0  # frames per second that are looked at, without --rate


@dataclass(frozen=True)
class WatchOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    source: str | None = argument(
        None, "What to watch: a video, a picture, a folder of either, an address (http, https, rtsp, ...), a video on "
        "standard input (-), /dev/videoN, screen, or world:shapes, which is the default.", "[SOURCE]",
    )  # fmt: skip
    model: str | None = option(None, "A model that sees: a hub name or a folder.  [default: the tiny one shipped]", "M")
    ask: list[str] | None = option(
        None, "Ask this at a second of the stream (12.5 or 1:02); without a time, at the end.  May be repeated.",
        "TEXT[@SECONDS]",
    )  # fmt: skip
    tell_me_when: list[str] | None = option(None, "Speak up when this happens.  May be repeated.", "TEXT")
    trigger: str | None = option(
        None, "When to look whether there is something to say; penstock reducers lists how.  [default: silence where "
        "the model was trained to be silent, else change]", "NAME[:key=value,...]",
    )  # fmt: skip
    monitor: str | None = option(
        None, "Let a monitor read along: it ends an answer or an announcement behind the word that it objects to.  The "
        "shipped one, guard, takes whatever is not about the world of facts for a digression.",
        "guard[:threshold=T,need=N,of=M]",
    )  # fmt: skip
    memory: str = option(
        DEFAULT_MEMORY, "A memory and its options; penstock methods lists them.", "NAME[:key=value,...]"
    )
    budget: str | None = option(
        None, "Entries per layer and key-value head (4096), or bytes (64MiB).  [default: half the model's context, "
        "at most 4096]", "N",
    )  # fmt: skip
    reduce: list[str] | None = option(
        None, "Leave out frames or tokens that say little; penstock reducers lists how.  May be repeated.",
        "NAME[:key=value,...]",
    )  # fmt: skip
    rate: str | None = option(
        None, "Frames per second to look at (0.5, 30); native plays a file at its own speed, native:N looks at N of "
        "them.  [default: 2, as fast as possible on the clock of the video]", "N|native[:N]",
    )  # fmt: skip
    frames: int | None = option(None, "Stop after so many frames.", "N")
    seconds: float | None = option(None, "Stop at this second of the stream (of world:shapes: 120).", "S")
    captions: Path | None = option(None, "Read these captions along: WebVTT, SRT, or lines with times.", "F")
    max_new: int = option(64, "Tokens of an answer at most.", "N")
    speech: float | None = option(
        None, "Tokens of an answer per second of the video: what is shown meanwhile is seen while it speaks.  "
        "[default: on the clock of a video an answer takes no time; on a real clock, the time it takes]", "N",
    )  # fmt: skip
    apart: bool = option(
        False, "Answer from a snapshot of what had been seen when it was asked; what is seen meanwhile does not change "
        "the answer, and the answer is no part of the stream.  Always so on a real clock, unless the memory keeps what "
        "is read and what is written apart (group-positions).",
    )  # fmt: skip
    as_left: bool = option(
        False, "Ask of the newest frame as the reducers left it.  [default: a question first brings back, whole, the "
        "newest frame, if they left some of it out]",
    )  # fmt: skip
    decoders: int = option(1, "Decode so many groups of pictures at once.", "N")
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")
    seed: int = option(0, "Of the world.", "S")
    serve: bool = option(
        False,
        "Show it in a browser too, with the picture, on this machine; questions can be typed there, also when the "
        "source has ended.  A video plays at its own speed, the world for ever.",
    )
    port: int = option(8321, "The port of --serve; 0 is any free one.", "P")

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("max_new", 1), ("decoders", 1), ("seed", 0), ("port", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < (1 << 16 if name == "port" else 1 << 31):
                most = " to 65535" if name == "port" else " on"
                raise UsageError(
                    f"--{name.replace('_', '-')} cannot be {value}: give a whole number from {least}{most}."
                )
        if self.seconds is not None and not 0 < self.seconds < 1e12:
            raise UsageError(f"--seconds cannot be {self.seconds}: give a positive number.")
        if self.serve and not all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn")):
            raise MissingExtra("penstock watch --serve", "serve")
        if self.speech is not None and not 0 < self.speech <= 1e6:
            raise UsageError(f"--speech cannot be {self.speech}: give tokens per second, as in 20.")
        parse_device(self.device)
        parse_dtype(self.dtype)
        parse(self.memory)
        if self.budget is not None:
            Budget.parse(self.budget)
        for request in self.tell_me_when or ():
            if not request.strip():
                raise UsageError("--tell-me-when cannot be empty: say what to wait for.")
        _ = self.questions, self.reducers, self.chosen_trigger, self.guarding, self.rate_wanted

    @property
    def where(self) -> str:
        return WORLD if self.source is None else self.source

    @property
    def questions(self) -> list[Question]:
        return [parse_question(text, i) for i, text in enumerate(TOUR_ASKS if self.is_tour else self.ask or ())]

    @property
    def requests(self) -> list[str]:
        return [request_of(text) for text in ([TOUR_TELL] if self.is_tour else self.tell_me_when or ())]

    @property
    def is_tour(self) -> bool:
        """The watch without arguments: the tiny model is asked what it was trained to answer."""
        return all(value is None for value in (self.source, self.model, self.ask, self.tell_me_when))

    @property
    def reducers(self) -> Chain:
        return Chain([parse_reducer(text) for text in self.reduce or ()])

    @property
    def chosen_trigger(self) -> Trigger | None:
        return None if self.trigger is None else parse_trigger(self.trigger)

    @property
    def guarding(self) -> Guarding | None:
        return None if self.monitor is None else parse_monitor(self.monitor)

    @property
    def rate_wanted(self) -> tuple[bool, float | None]:
        """Whether to play at native speed, and frames per second to look at (None: all)."""
        if self.rate is None:
            return self.serve, RATE
        match = re.fullmatch(r"(native)?:?(\d+(?:\.\d+)?)?", self.rate.strip())
        if match is None or not any(match.groups()) or (match[2] and not 0 < float(match[2]) <= 1000):
            raise UsageError(f"--rate cannot be {self.rate!r}: give frames per second (2), native or native:2.")
        return match[1] is not None, None if match[2] is None else float(match[2])

    @property
    def limits(self) -> Limits:
        seconds = self.seconds
        if seconds is None and self.frames is None and self.where.startswith("world:") and not self.serve:
            seconds = WORLD_SECONDS
        return Limits(self.frames, seconds, self.max_new, self.speech, self.apart, self.as_left)


def watch(options: WatchOptions) -> None:
    """Watch a video that may never end."""
    out = Output(options.json)
    captions = read_captions(options.captions) if options.captions is not None else []
    native, rate = options.rate_wanted
    source = open_frames(options.where, rate=rate, workers=options.decoders, seed=options.seed)
    try:
        sight = open_sight(
            options.model, options.memory, options.budget, device=options.device, dtype=options.dtype,
            rate=rate or source.rate,
        )  # fmt: skip
        if sight.side is not None and getattr(source, "longest", None):
            source.longest = min(source.longest, OVERSIZE * sight.side)  # type: ignore[attr-defined]
        _run(options, out, source, sight, captions, native)
    finally:
        source.close()


def _run(
    options: WatchOptions, out: Output, source: FrameSource, sight: Sight, captions: list[Caption], native: bool
) -> None:
    clock: Clock = RealClock() if native or source.is_live else SimulatedClock()
    policy: Policy = "drop-oldest" if native or source.is_live else "wait"
    sight.use(options.reducers)
    pipeline = Pipeline(source, sight.eyes, options.reducers, clock, policy=policy, native=native)
    trigger = options.chosen_trigger or sight.default_trigger
    guarding, monitor = options.guarding, None
    if guarding is not None:
        from penstock.models.guard import Guard

        monitor = Guard()
    requests = Requests(options.requests, trigger, sight.reader, monitor, guarding)
    limits = options.limits
    if pipeline.is_timed and not sight.keeps_sides_apart:  # frames between its words would confuse the model
        limits = replace(limits, apart=True)
    resident, threads = ResidentSet(), Threads()
    with Interrupts() as interrupts, reporter_for(out) as reporter:
        watcher = Watch(
            pipeline, sight.eyes, sight.reader, requests, Agenda(options.questions), captions, limits,
            emit=reporter.event, stopped=lambda: interrupts.flagged, note=threads.note, monitor=monitor,
            debounce=guarding, lingers=options.serve,
        )  # fmt: skip
        with served(watcher, sight, options.port) if options.serve else nullcontext() as page:
            closed = _through(watcher, reporter, resident, page)
    threads.restore()
    facts = summary(watcher, sight, options, resident)
    if closed:
        raise ClosedOutput
    if out.as_json:
        out.document(facts)
    else:
        out.show(summary_table(facts))


def _through(watcher: Watch, reporter: Reporter, resident: ResidentSet, page: Page | None) -> bool:
    """To the end; returns whether nobody reads the output any more."""
    try:
        for _ in watcher.run():
            reporter.tick(watcher, resident)
            if page is not None:
                page.tick(resident)
        reporter.last(watcher, resident)
    except ClosedOutput:
        return True
    return False
