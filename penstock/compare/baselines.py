"""What stands beside the memories: the same questions to the same model with the right text in a short prompt.

    oracle       first tokens | the block that holds the statement | the newest tokens | the question
    text-search  first tokens | the passage that a text search finds | the newest tokens | the question

Both prompts go into a fresh dense session and fit the model's context and the budget.  The oracle measures what the
model itself can do; the text search is what a memory has to beat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from penstock.compare.questions import Plan, Question
from penstock.compare.run import Pass, ask
from penstock.compare.search import TextSearch
from penstock.compare.stream import Stream
from penstock.models.load import Model
from penstock.session import Session

ORACLE, TEXT_SEARCH = "oracle", "text-search"
BASELINES = (ORACLE, TEXT_SEARCH)

_SINKS = 4  # first tokens of every prompt
_BLOCK = 48  # tokens around a statement
_SHORT = 128  # tokens of a prompt that every budget allows
_LONG = 1024  # tokens of a prompt, however large the budget is

Span = tuple[int, int]


def prompt_spans(block: Span | None, at: int, room: int) -> list[Span]:
    """Which tokens of the stream stand in a prompt of `room` tokens asked at `at`: sorted, joined where they meet."""
    spans = [(0, min(_SINKS, at))]
    recent = room - _SINKS
    if block is not None:
        spans.append(block)
        recent -= block[1] - block[0]
    if recent > 0:
        spans.append((max(0, at - recent), at))
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def block_around(start: int, end: int, at: int, size: int = _BLOCK) -> Span:
    """A block of `size` tokens that holds [start, end) in its middle and ends before `at`; longer if it must be."""
    size = max(size, end - start)
    low = max(0, min(start - (size - (end - start)) // 2, at - size))
    return low, min(at, low + size)


def beside(
    name: str, model: Model, stream: Stream, plans: Sequence[Plan], tick: Callable[[Pass], None] = lambda _: None
) -> Pass:  # fmt: skip
    """One baseline over all questions of the plans; its bytes are those of its prompts, and of the log it searches."""
    found = Pass(tokens=len(stream.ids))
    search = TextSearch(model.tokenizer, stream.ids) if name == TEXT_SEARCH else None
    found.ram = 4 * len(stream.ids) if search else 0
    for plan in plans:
        room = min(model.context or _LONG, _LONG, max(_SHORT, plan.budget))
        for question in plan.questions:
            began = time.perf_counter()
            block = _block(question, search, model)
            seconds = time.perf_counter() - began
            right, asked = _ask(model, stream, question, block, room, found)
            found.hits[question] = right
            found.ask_seconds.append(seconds + asked)
            tick(found)
    return found


def _block(question: Question, search: TextSearch | None, model: Model) -> Span | None:
    if search is None:
        return block_around(question.fact.start, question.fact.end, question.at)
    return search.best(model.tokenizer.decode(list(question.fact.question)), question.at)


def _ask(
    model: Model, stream: Stream, question: Question, block: Span | None, room: int, found: Pass
) -> tuple[bool, float]:
    fact = question.fact
    room -= len(fact.question) + len(fact.answer)
    prompt = [token for start, end in prompt_spans(block, question.at, room) for token in stream.ids[start:end]]
    session = Session(model, "dense", None, chunk=max(1, len(prompt), len(fact.question)), path="eager")
    began = time.perf_counter()
    session.ingest(prompt)
    seconds = time.perf_counter() - began
    right, asked = ask(session, fact.question, fact.answer)
    found.look(session._memory)
    session.runner.close()
    return right, seconds + asked
