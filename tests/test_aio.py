"""Sessions for asyncio: the same tokens, and cancelling that ends what it cancels."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock import aio
from penstock.engine import Finish
from penstock.models.load import Model, load
from penstock.session import Session

TEXT = "a line of the stream\n" * 20


@pytest.fixture(scope="module")
def model() -> Model:
    return load(None, dtype="float32")  # in bfloat16 ties are decided by how steps were cut


def test_two_sessions_are_what_each_is_alone(model: Model, tmp_path: Path) -> None:
    alone = Session(model, "streaming-llm", 64, path="eager")
    alone.feed(TEXT)
    said = "".join(alone.reply("What?", max_new=10))

    async def live() -> None:
        async with aio.Host(model, "streaming-llm", 64, rows=2) as host:
            first, second = await host.open("first"), await host.open()
            lines = TEXT.splitlines(keepends=True)
            one, two = await asyncio.gather(first.append(TEXT), second.append(line for line in lines))
            assert (one.bytes, one.tokens) == (two.bytes, two.tokens) == (len(TEXT), one.tokens)
            answers = await asyncio.gather(*(each.ask("What?", max_new=10).text() for each in (first, second)))
            assert answers == [said, said]
            assert await first.drained(5)
            await first.save(tmp_path / "first.penstock")
            again = await host.resume(tmp_path / "first.penstock")
            assert again.status().tokens == first.status().tokens
            fork = await second.fork()
            assert await fork.ask("More?", max_new=4).text() == await second.ask("More?", max_new=4).text()
            await fork.close()
            host.engine.check()

    asyncio.run(live())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_cancelled_reader_ends_the_answer(model: Model, at_once: bool) -> None:
    async def live() -> None:
        async with aio.open(model, budget=64) as session:
            await session.append(TEXT)
            reply = session.ask("What?", max_new=100_000)
            reading = asyncio.create_task(reply.text())
            await asyncio.sleep(0 if at_once else 0.1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            if at_once:  # the task never ran: nobody reads, and it is the block that ends it
                await reply.cancel()
            assert await session.drained(30)
            assert reply.finish is Finish.CANCELLED
            async with session.ask("And?", max_new=100_000) as second:
                await anext(second)
            assert await session.drained(30)
            assert second.finish is Finish.CANCELLED
            assert await session.ask("Then?", max_new=3).text()
            session.session.engine.check()

    asyncio.run(live())
