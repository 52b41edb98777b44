"""A server in this process, on a free port of the loopback, with a tiny random model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from transformers import AutoTokenizer

from penstock.engine import Engine
from penstock.models.load import TINY, Model, load
from penstock.serve.access import Access
from penstock.serve.app import create_app
from penstock.serve.http import Limits
from penstock.serve.run import HttpServer, listen
from penstock.testing import tiny_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(template: str | None = None) -> Model:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = template
    return load(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def model() -> Model:
    """Random weights, real tokenizer, no chat template."""
    return make_model()


@pytest.fixture(scope="session")
def chat_model() -> Model:
    """The same with a chat template."""
    return make_model(TEMPLATE)


class Running(NamedTuple):
    """A server that answers."""

    address: str
    http: httpx.Client
    app: Any
    stop: Callable[[], None]


@pytest.fixture
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Start servers; they end with the test."""
    stops: list[Callable[[], None]] = []

    def start(
        model: Model, state: Path | None = None, *, memory: str = "streaming-llm", budget: int = 32,
        access: Access | None = None, limits: Limits | None = None,
    ) -> Running:  # fmt: skip
        engine = Engine(model, memory, budget, rows=4, ram="1MiB", folder=tmp_path_factory.mktemp("attic")).run()
        app = create_app(engine, model, state=state, access=access, limits=limits or Limits(drain_seconds=5))
        listener = listen("127.0.0.1", 0)
        ready = threading.Event()
        server = HttpServer(app, listener, lambda address: ready.set())
        thread = threading.Thread(target=server.serve_here, daemon=True)
        thread.start()
        assert ready.wait(30)
        client = httpx.Client(base_url=server.address, timeout=60)

        def stop() -> None:
            client.close()
            server.should_exit = True
            thread.join(60)
            engine.check()
            engine.close()
            listener.close()
            assert not thread.is_alive()

        stops.append(stop)
        return Running(server.address, client, app, lambda: (stops.remove(stop), stop())[1])

    yield start
    for stop in list(stops):
        stop()


@pytest.fixture
def server(serving: Callable[..., Running], model: Model) -> Running:
    """One that keeps nothing."""
    return serving(model)
