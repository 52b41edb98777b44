"""How many frames are missed while a 100-token answer is spoken: perceiving while speaking against turns?

    python -m bench.video_live

The shipped video-language model watches the shapes world through a camera that keeps only its newest frame.  The clock
is simulated: a token of the answer takes `--token` seconds and a frame `--frame` seconds, as on a model of billions of
parameters, so the result is the same on every machine.  A frame is seen if it is in the memory when the answer ends.
The memory is `group-positions`, so what is read is not disturbed by what is said.  The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

import penstock
from bench import machine, report
from penstock import reply
from penstock.core import Phase, SimulatedClock
from penstock.live import Live
from penstock.models.sampling import Sampler
from penstock.models.vision.tower import VLM
from penstock.worlds.shapes import Shapes

SCHEMES = ("while", "turns")


def spoken(scheme: Any, args: argparse.Namespace) -> dict[str, Any]:
    """One answer of `--tokens` tokens under a scheme."""
    clock, world = SimulatedClock(), Shapes(seed=3, rate=args.rate)
    session = penstock.open(VLM, "group-positions", args.budget, path="eager")
    live = Live(session, scheme=scheme, waiting=1, clock=clock)
    step = session._step

    def costs(tokens: list[int], phase: Phase, *rest: Any, **more: Any) -> None:
        step(tokens, phase, *rest, **more)
        clock.sleep(args.token * len(tokens) if phase is Phase.ANSWER else args.frame)

    session._step = costs  # type: ignore[method-assign]
    frames = iter(world)
    for _ in range(args.before):
        live.put(next(frames))
        list(live.run())
    ends = sorted(reply.end_tokens(session))

    class Talkative(Sampler):
        """Never ends by itself: the answer has all its tokens, whatever they say."""

        def choose(self, logits: Tensor) -> int:
            return super().choose(logits.index_fill(0, torch.tensor(ends), float("-inf")))

    reply.Sampler = Talkative  # type: ignore[misc]
    begun, due, late = clock.now(), clock.now(), []
    arrived: dict[int, float] = {}
    live.ask(None, max_new=args.tokens)
    offered = seen = dropped = 0
    speaking = True
    while speaking:
        while clock.now() >= due:
            frame = next(frames)
            arrived[frame.index] = due
            offered += 1
            dropped += not live.put(frame)
            due += 1 / args.rate
        for event in live.step():
            if event.kind == "perceived":
                seen += 1
                late.append(clock.now() - max(arrived.values()))
            speaking = speaking and event.kind not in ("end", "cut")
    answer = clock.now() - begun
    missed = offered - seen
    return {
        "scheme": scheme, "seconds": round(answer, 2), "frames_offered": offered, "frames_seen": seen,
        "frames_missed": missed, "frames_dropped": dropped, "lag_s": round(max(late, default=0.0), 3),
        "tokens_in_stream": session.tokens,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.video_live", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--before", type=int, default=8, help="frames seen before the question")
    parser.add_argument("--rate", type=float, default=2.0, help="frames per second")
    parser.add_argument("--token", type=float, default=0.05, help="seconds per token of the answer")
    parser.add_argument("--frame", type=float, default=0.05, help="seconds per frame")
    parser.add_argument("--budget", type=int, default=512)
    args = parser.parse_args()
    rows = [spoken(scheme, args) for scheme in SCHEMES]
    names = ("scheme", "seconds", "frames_offered", "frames_seen", "frames_missed", "lag_s")
    report.say(report.table([name.replace("_", " ") for name in names], [[str(r[n]) for n in names] for r in rows]))
    report.finish({"rows": rows, "machine": machine.record()}, None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
