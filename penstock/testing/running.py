"""A server in this process: engine, application and socket of `penstock serve`, without its command line."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.client import AsyncClient, Client
from penstock.engine import Engine
from penstock.errors import MissingExtra, PenstockError, UsageError
from penstock.models.load import Model, load

_READY = 60.0  # seconds in which a server must listen


class Running:
    """A server that answers at `address`.  `engine` and `app` are the real ones: look at them as you like."""

    def __init__(self, engine: Engine, app: Any, http: Any, listener: Any, attic: TemporaryDirectory[str]) -> None:
        self.engine, self.app = engine, app
        self.address: str = http.address
        self._http, self._listener, self._attic = http, listener, attic
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="penstock-testing", daemon=True)

    def client(self, **settings: Any) -> Client:
        """A client of it; `settings` as for `penstock.Client`."""
        return Client(self.address, **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """The same, asynchronous."""
        return AsyncClient(self.address, **settings)

    def _serve(self) -> None:
        try:
            self._http.serve_here()
        except BaseException as error:
            self._failure = error

    def begin(self, ready: threading.Event) -> None:
        """Serve on a thread; returns when requests are answered."""
        self._thread.start()
        if not ready.wait(_READY):
            self.stop()
            raise PenstockError(f"the server did not begin to listen ({self._failure}): look at its log.")

    def stop(self) -> None:
        """End it as a signal would: answers end, sessions are saved if there is a state folder; once is enough."""
        self._http.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self.engine.close()
        self._listener.close()
        self._attic.cleanup()


def start(
    model: Any, memory: str, budget: int | str | None, state: Path | str | None, tokens: dict[str, str] | None,
    port: int, rows: int, measure: bool, limits: dict[str, Any],
) -> Running:  # fmt: skip
    """A server that is ready; see `penstock.testing.server`."""
    if not all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn", "prometheus_client")):
        raise MissingExtra("penstock.testing.server", "serve")
    from penstock.serve.access import Access, callers_of
    from penstock.serve.app import create_app
    from penstock.serve.http import Limits
    from penstock.serve.run import HttpServer, listen

    loaded = model if isinstance(model, Model) else load(model)
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer: load it with one, text cannot be served without.")
    named = None if tokens is None else callers_of([f"{t} name={n}" for t, n in tokens.items()], "tokens")
    listener = listen("127.0.0.1", port)
    attic: TemporaryDirectory[str] = TemporaryDirectory(prefix="penstock-")
    engine = Engine(loaded, memory, budget, rows=rows, folder=attic.name, measure=measure).run()
    try:
        app = create_app(
            engine, loaded, state=None if state is None else Path(state), access=Access(named),
            limits=Limits(**{"drain_seconds": 5.0, **limits}),
        )  # fmt: skip
    except BaseException:
        engine.close()
        listener.close()
        attic.cleanup()
        raise
    ready = threading.Event()
    http = HttpServer(app, listener, lambda address: ready.set())
    running = Running(engine, app, http, listener, attic)
    running.begin(ready)
    return running
