"""penstock serve: many sessions on one model, over HTTP, until a signal ends it."""

# ruff: noqa: RUF009
from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.cli.derive import Common, argument, option
from penstock.cli.options import DEFAULT_MEMORY
from penstock.cli.output import ClosedOutput, Output, say
from penstock.core import Budget
from penstock.errors import InputError, MissingExtra, UnknownName, UsageError
from penstock.methods import parse
from penstock.models.load import load, parse_device, parse_dtype
from penstock.models.paths import PATHS

_EXTRA = ("starlette", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class ServeOptions(Common):
    """Checked when made; raises UsageError with the fix."""

    model: str | None = argument(
        None, "A model: a hub name or a folder; without one, the tiny model shipped.", "[MODEL]"
    )
    host: str = option("127.0.0.1", "Where to listen; other machines reach only other addresses than this.", "H")
    port: int = option(8321, "The port; 0 is any free one.", "P")
    state: Path | None = option(None, "Keep sessions in this folder, so that they survive the server.", "DIR")
    tokens_file: Path | None = option(
        None, "Serve only who has a token of this file: TOKEN [name=NAME] [requests=N] [sessions=N] per line.",
        "F",
    )  # fmt: skip
    memory: str = option(
        DEFAULT_MEMORY, "A memory and its options; penstock methods lists them.", "NAME[:key=value,...]"
    )
    budget: str | None = option(
        None, "Entries per layer and key-value head (4096), or bytes (64MiB).  [default: half the model's context, "
        "at most 4096]", "N",
    )  # fmt: skip
    requests: int | None = option(None, "Requests a minute of one caller at most.  [default: any number]", "N")
    measure: bool = option(False, "Measure the loss of all that is read, at the price of its logits.")
    device: str = option("cpu", "Where to run: cpu, cuda, mps, ...", "D")
    dtype: str | None = option(None, "float32, bfloat16 or float16.  [default: as the model is stored]", "T")
    path: str = option("auto", f"How steps run: {', '.join(PATHS)}.", "P")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port cannot be {self.port}: give a number from 0 to 65535.")
        if self.requests is not None and self.requests < 1:
            raise UsageError(f"--requests cannot be {self.requests}: give a whole number from 1 on.")
        if self.state is not None and self.state.exists() and not self.state.is_dir():
            raise UsageError(f"--state {self.state} is not a folder: give one.")
        if self.path not in PATHS:
            raise UnknownName("path", self.path, PATHS)
        parse_device(self.device)
        parse_dtype(self.dtype)
        method = parse(self.memory)
        if self.budget is not None and Budget.parse(self.budget).entries is not None and method.needs_budget:
            method.cascade(Budget.parse(self.budget).entries)  # raises BudgetError when it is too small
        if not all(importlib.util.find_spec(name) for name in _EXTRA):
            raise MissingExtra("penstock serve", "serve")


def serve(options: ServeOptions) -> int | None:
    """Serve many endless sessions on one model, over HTTP."""
    from penstock.engine import Engine
    from penstock.engine.allocator import set_apart, share_arenas
    from penstock.serve.access import Access, read_tokens
    from penstock.serve.app import create_app
    from penstock.serve.http import Limits
    from penstock.serve.run import HttpServer, listen

    share_arenas()
    out = Output(options.json)
    tokens = None if options.tokens_file is None else read_tokens(options.tokens_file)
    listener = listen(options.host, options.port)
    is_local = listener.getsockname()[0] in ("127.0.0.1", "::1")
    if tokens is None and not is_local:
        say(f"note: everybody who reaches {options.host} can use this server: give --tokens-file to choose who may.")
    model = load(options.model, dtype=options.dtype, device=options.device)
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer: text cannot be served with it.")
    attic = None if options.state is None else options.state / "attic"
    engine = Engine(
        model, options.memory, options.budget, folder=attic, measure=options.measure, path=options.path
    ).run()  # fmt: skip
    try:
        limits = Limits(requests=options.requests)
        access = Access(tokens, options.requests, is_local)
        app = create_app(engine, model, state=options.state, access=access, limits=limits)
        house = app.state.server.house
        for reason in house.lost.values():
            say(f"note: {reason}")
        closed: list[ClosedOutput] = []

        def ready(address: str) -> None:
            facts: dict[str, Any] = {
                "address": address, "model": model.name, "memory": options.memory, "sessions": len(house.sessions),
                "durable": options.state is not None,
            }  # fmt: skip
            try:
                if options.json:
                    out.document({"ready": facts})
                else:
                    out.write(f"{model.name} at {address}/v1, {len(house.sessions)} sessions, Ctrl-C ends it\n")
            except ClosedOutput as error:  # who started it does not read it: it serves all the same
                closed.append(error)

        set_apart()
        HttpServer(app, listener, ready).serve_here()
        if options.json and not closed:
            out.document({"ended": True, "sessions": len(house.sessions)})
    finally:
        engine.close()
        listener.close()
    return None
