"""Answers over HTTP: any number of choices into one shape, whole or as server-sent events."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from penstock.serve.asked import Asked, Deliver, Finished
from penstock.serve.chunks import DONE, Shape, event
from penstock.serve.http import events, log, server_of, unless_gone
from penstock.serve.refusal import refusal_of
from penstock.serve.wire import DEFAULT_NEW, Sampled

Start = Callable[[Deliver], Asked]


def sampling_of(body: Sampled, temperature: float, seed: int, most: int | None = None) -> dict[str, Any]:
    """What the engine is told of how to choose; `temperature` and `seed` are used where the body has none."""
    return {
        "max_new": most or body.max_tokens or DEFAULT_NEW,
        "temperature": temperature if body.temperature is None else body.temperature,
        "top_k": body.top_k or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "stop": tuple(body.stop),
        "seed": seed if body.seed is None else body.seed,
    }


def once(engine: Any, prompt: Sequence[int], sampling: dict[str, Any]) -> Start:
    """An answer to a prompt, on a stream of its own that ends with it."""

    def start(deliver: Deliver) -> Asked:
        asked = Asked(deliver)

        def run() -> None:
            stream = None
            try:
                stream = engine.open()
                stream.append(list(prompt))
                asked.take(stream.ask(None, raw=True, **sampling))
                finished = asked.read()
                asked.tell(Finished(finished.reason, len(prompt), finished.tokens))
            except BaseException as error:
                asked.tell(error)
            finally:
                if stream is not None:
                    stream.close()

        threading.Thread(target=run, name="penstock-once", daemon=True).start()
        return asked

    return start


async def _documents(
    request: Request, shape: Shape, starts: Sequence[Start], shared: int
) -> AsyncGenerator[dict[str, Any], None]:
    """Everything that is said of all choices, in order; `shared` choices come from one prompt."""
    for index, start in enumerate(starts):
        async with contextlib.aclosing(events(server_of(request), start)) as happening:
            is_begun = False
            async for what in happening:
                if not is_begun:
                    is_begun = True
                    for document in shape.begin(index):
                        yield document
                if isinstance(what, Finished):
                    if index % shared == 0:
                        shape.usage.prompt += what.question_tokens
                    shape.usage.completion += what.tokens
                    yield shape.finish(index, "length" if what.reason in ("length", "deadline") else "stop")
                else:
                    yield shape.piece(index, what)
    for document in shape.end():
        yield document


class _Events(StreamingResponse):
    """Server-sent events; when it is over, also because nobody reads, it lets go of the answer and of its seat."""

    def __init__(self, content: AsyncIterator[bytes], release: Callable[[], Awaitable[None]]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._release()


async def respond(
    request: Request, shape: Shape, starts: Sequence[Start], is_stream: bool, shared: int = 1
) -> Response:
    """The answer, in one document or as events.  What fails before the first event has a status of its own."""
    server = server_of(request)
    server.take_seat()
    documents = _documents(request, shape, starts, shared)

    async def release() -> None:
        server.answering -= 1
        await documents.aclose()

    async def collect() -> None:
        async for _ in documents:
            pass

    async def stream(first: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            yield event(first)
            async for document in documents:
                yield event(document)
            yield DONE
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == 500:
                log.error("an answer failed", exc_info=error)
            yield event(refusal.document())

    try:
        if is_stream:
            return _Events(stream(await unless_gone(request, anext(documents))), release)
        await unless_gone(request, collect())
    except BaseException:
        await release()
        raise
    await release()
    return JSONResponse(shape.whole())
