"""A session that nobody holds any more is gone at once, tensors and archives with it: no collector is waited for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoTokenizer

import penstock
from penstock import Session
from penstock.models.load import TINY
from penstock.testing import tiny_model
from tests.watch.fake import video
from tests.watch.test_watch import watcher

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
MODEL = penstock.load(tiny_model("llama", vocab_size=len(TOKENIZER)), tokenizer=TOKENIZER)
OF_THE_MODEL = {id(getattr(layer.encoding, "inv_freq", None)) for layer in MODEL.attached.geometry.layers}
TEXT = "One stream after the other, and none of them stays behind: 0123456789.\n" * 12


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parts(session: Session) -> dict[int, weakref.ref[Any]]:
    """The session, what it is made of, and every tensor that its memory holds."""
    memory = session._memory
    found: list[Any] = [session, session.runner, memory, *memory.groups]
    todo: list[Any] = [getattr(group, name, ()) for group in memory.groups for name in ("rings", "raw_sinks", "lanes")]
    known: dict[int, Any] = {}
    while todo:
        thing = todo.pop()
        if id(thing) in known:
            continue
        known[id(thing)] = thing
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            todo.extend(thing)
        elif isinstance(thing, dict):
            todo.extend(thing.values())
        elif type(thing).__module__.startswith("penstock.memory") and hasattr(thing, "__dict__"):
            todo.extend(vars(thing).values())
    assert sum(isinstance(thing, Tensor) for thing in found) >= 2
    return {id(thing): weakref.ref(thing) for thing in found if id(thing) not in OF_THE_MODEL}


def left(of: dict[int, weakref.ref[Any]]) -> list[Any]:
    return [thing for ref in of.values() if (thing := ref()) is not None]


@pytest.mark.parametrize("memory", ["streaming-llm", "dense", "heavy-hitters", "infllm", "kv4", "disk"])
def test_it_is_gone_with_its_last_owner(memory: str, tmp_path: Path) -> None:
    on_disk = f"infllm:representatives=1,ram=2MiB,disk=8MiB,folder={tmp_path / 'blocks'}"
    session = penstock.open(MODEL, on_disk if memory == "disk" else memory, None if memory == "dense" else 128)
    session.feed(TEXT)
    mark = session.mark(2000)
    "".join(session.reply("What was there?", max_new=4))
    session.rollback(mark)
    fork = session.fork()
    session.feed(TEXT)
    assert session.memory.nbytes > 0
    session.end()
    first, second = parts(session), parts(fork)
    del session
    assert len(left(first)) == len(first.keys() & second.keys()), "of the first only what its fork reads too"
    assert len(left(second)) == len(second)
    del fork
    assert not left(first)
    assert not left(second)


def test_what_is_asked_of_its_memory_holds_a_session() -> None:
    session = penstock.open(MODEL, "streaming-llm", 64)
    session.feed(TEXT)
    memory, views, gone = session.memory, session.memory.view(), parts(session)
    del session
    assert memory.view() == views
    assert len(left(gone)) == len(gone)
    del memory
    assert not left(gone)


def test_a_watcher_that_is_through_leaves_nothing() -> None:
    watch, events = watcher(video(6), ["What is there?@2"], reduce=["timechat"])
    for _ in watch.run():
        pass
    assert [event.kind for event in events] == ["answer"]
    session: Any = watch.reader
    gone = {0: weakref.ref(watch), **parts(session)}
    del watch, session
    assert not left(gone)
