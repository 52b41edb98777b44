"""Perceiving while speaking: one order of events, nothing lost or doubled, nothing kept that was not delivered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock
from penstock.core import Frame, Phase, SimulatedClock
from penstock.errors import Overloaded, UsageError
from penstock.live import Inbox, Live, Notes, Share, TextNotes
from penstock.session import Session

TEXT = "the walnut gate of Marsh is painted green and the old mill stands behind it. "


@pytest.fixture(scope="module")
def model() -> Any:
    from penstock.models.load import load

    return load(None, dtype="float32")


def opened(model: Any, memory: str = "group-positions", budget: int = 256) -> Session:
    session = penstock.open(model, memory, budget, path="eager")
    session.feed(TEXT * 2)
    session.flush()
    return session


class Recorded:
    """What entered a session, in order: (tokens, phase) per step, less what was taken back."""

    def __init__(self, session: Session, monkeypatch: Any) -> None:
        self.session, self.steps, self.start = session, [], session.tokens
        step, back = session._step, session.take_back

        def stepping(tokens: list[int], phase: Phase, *rest: Any) -> None:
            step(tokens, phase, *rest)
            self.steps.append((list(tokens), phase))

        def taking_back(length: int) -> None:
            back(length)
            while self.start + sum(len(tokens) for tokens, _ in self.steps) > length:
                tokens, phase = self.steps.pop()
                assert phase is Phase.ANSWER, "only the answer's own tokens are taken back"
                assert len(tokens) == 1

        monkeypatch.setattr(session, "_step", stepping)
        monkeypatch.setattr(session, "take_back", taking_back)

    def replayed(self, fresh: Session) -> Session:
        for tokens, phase in self.steps:
            fresh._step(tokens, phase)
        return fresh


def test_what_is_read_while_speaking_is_read_as_if_nothing_were_said(model: Any) -> None:
    speaking, silent = opened(model), opened(model)
    live = Live(speaking, clock=SimulatedClock())
    live.ask("Where is the mill?", max_new=12, raw=True)
    live.step()
    assert live.is_speaking
    assert len(list(silent.reply("Where is the mill?", max_new=1, raw=True))) == 1
    for number in range(6):
        live.put(f"number {number} came by. ")
    seen = [event for event in live.run() if event.kind == "perceived"]
    assert [event.facts["speaking"] for event in seen] == [True] * 6
    for number in range(6):
        silent.feed(f"number {number} came by. ")
    for one in (speaking, silent):
        one.feed("And then? ")
        one.flush()
    assert speaking.tokens > silent.tokens
    assert speaking.logits is not None
    assert silent.logits is not None
    assert float((speaking.logits - silent.logits).abs().max()) < 1e-4 * float(silent.logits.abs().max())


def test_turns_wait_until_the_answer_has_ended(model: Any) -> None:
    live = Live(opened(model), scheme="turns", clock=SimulatedClock())
    live.ask("Where is the mill?", max_new=8, raw=True)
    live.put("first. ")  # a question waits for what was put before an answer began, and not for what comes later
    live.step()
    live.step()
    live.put("second. ")
    kinds = [event.kind for event in live.run()]
    assert kinds[-2:] == ["end", "perceived"]
    assert live.perceived_while_speaking == 0


@pytest.mark.parametrize("memory", ["group-positions", "streaming-llm"])
@settings(max_examples=8)
@given(data=st.data())
def test_any_schedule_is_one_order_of_events(memory: str, data: Any, model: Any) -> None:
    """However inputs, questions and interruptions fall: the memory is that of the same tokens read in that order."""
    with pytest.MonkeyPatch.context() as patch:
        session = opened(model, memory)
        recorded, live = Recorded(session, patch), Live(session, clock=SimulatedClock())
        put, spoken = "", ""
        for i in range(data.draw(st.integers(3, 14))):
            action = data.draw(st.sampled_from(["put", "put", "ask", "interrupt", "step", "step", "step"]))
            if action == "put":
                piece = f"event {i} é\U0001f40c happened. "
                live.put(piece)
                put += piece
            elif action == "ask":
                stop = data.draw(st.sampled_from([(), (" the",), ("\n",)]))
                live.ask("What now?", max_new=data.draw(st.integers(1, 9)), raw=True, stop=stop)
            elif action == "interrupt":
                live.interrupt()
            else:
                for event in live.step():
                    spoken += event.text if event.kind == "piece" else ""
        spoken += "".join(event.text for event in live.close() if event.kind == "piece")
        session.flush()
        assert not live.is_speaking
        assert not live.inbox
        assert session.tokens == recorded.start + sum(len(tokens) for tokens, _ in recorded.steps)
        answered = [tokens[0] for tokens, phase in recorded.steps if phase is Phase.ANSWER]
        said = model.tokenizer.decode(answered)
        assert len(said) >= len(spoken)  # a token stays if part of its text was delivered
        other = recorded.replayed(opened(model, memory))
        assert torch.allclose(session.logits, other.logits, atol=1e-4)  # type: ignore[arg-type]
        assert list(session.log.slice(0, session.tokens)) == list(other.log.slice(0, other.tokens))
        session.feed("and on it goes. ")
        other.feed("and on it goes. ")
        session.flush()
        other.flush()
        assert torch.allclose(session.logits, other.logits, atol=1e-4)  # type: ignore[arg-type]


def test_an_interruption_keeps_what_was_delivered_and_what_came_in(model: Any, monkeypatch: Any) -> None:
    session = opened(model)
    recorded, live = Recorded(session, monkeypatch), Live(session, clock=SimulatedClock())
    live.ask("Where is the mill?", max_new=40, raw=True)
    pieces = ""
    for _ in range(6):
        pieces += "".join(event.text for event in live.step() if event.kind == "piece")
    live.put("a bird flew over. ")
    live.step()
    live.ask("And now?", max_new=3, raw=True, interrupt=True)
    (cut,) = live.step()
    assert (cut.kind, cut.text, cut.facts["why"]) == ("cut", pieces, "interrupted")
    assert cut.facts["perceived_tokens"] > 0
    kinds = [event.kind for event in live.run()]
    assert kinds[0] == "question"
    assert kinds[-1] == "end"
    assert [phase for _, phase in recorded.steps].count(Phase.INGEST) >= 1
    assert session.tokens == recorded.start + sum(len(tokens) for tokens, _ in recorded.steps)


class Words:
    """Objects to two words, one of them twice."""

    def start(self) -> None: ...

    def score(self, text: str, token: int) -> float:
        return 1.0 if len(text) > 12 else 0.0


def test_a_monitor_stops_an_answer_after_two_bad_tokens(model: Any) -> None:
    live = Live(opened(model), monitor=Words(), clock=SimulatedClock())
    live.ask(None, max_new=40)
    events = list(live.run())
    assert (events[-1].kind, events[-1].facts["why"]) == ("cut", "monitor")
    texts, total = [event.text for event in events if event.kind == "piece"], ""
    over = []
    for text in texts:
        total += text
        over.append(len(total) > 12)
    assert over[-2:] == [True, True]
    assert sum(over) == 2


def test_shares_of_time() -> None:
    share = Share(perceive=0.25)
    assert share.perceives((0.0, 0.0), 0.0)
    assert not share.perceives((1.0, 2.0), 0.1)
    assert share.perceives((1.0, 3.0), 0.1)
    assert share.perceives((9.0, 0.0), 0.5)  # so much waits that it goes first
    assert not Share(perceive=0.0).perceives((0.0, 9.0), 1.0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        Share(perceive=1.5)


def test_pictures_leave_a_full_inbox_and_text_does_not() -> None:
    inbox = Inbox(3)
    frames = [Frame(np.zeros((2, 2, 3), np.uint8), float(i), i) for i in range(4)]
    assert [inbox.put(item) for item in (frames[0], "a", frames[1])] == [None] * 3
    assert inbox.put(frames[2]) is frames[0]
    assert inbox.put("b") is frames[1]
    assert inbox.put("c") is frames[2]
    with pytest.raises(Overloaded, match="3 pieces of text wait"):
        inbox.put(frames[3])
    assert [inbox.take() for _ in range(4)] == ["a", "b", "c", None]
    assert inbox.dropped == 3


def test_notes_are_spoken_while_the_next_segment_comes_in(model: Any) -> None:
    live = Live(opened(model), clock=SimulatedClock())
    notes = Notes(live, every=3, max_new=5)
    events, put, last = [], 0, []
    for _ in range(200):
        if put < 9 and (put < 3 or any(event.kind == "question" for event in last)):
            for _ in range(3):  # the next segment comes while a note is written
                live.put(f"number {put} came by. ")
                put += 1
        last = notes.step()
        events += last
    assert notes.is_idle
    assert put == 9
    assert len(notes.written) == 3
    kinds = [event.kind for event in events]
    assert kinds[:4] == ["perceived"] * 3 + ["question"]
    assert live.perceived_while_speaking == 6  # the second and the third segment


def test_text_notes_carry_nothing_but_text(model: Any) -> None:
    session = opened(model, "streaming-llm")
    monkey: list[str] = []
    session.see = lambda frame: session.feed(f"frame {frame.index}. ")  # type: ignore[method-assign, misc]
    session.reply = lambda *a, **k: iter([monkey.append("asked") or "a note"])  # type: ignore[method-assign, misc, func-returns-value]
    clips = TextNotes(session, every=2, keep=2, header="Notes:")
    lengths = []
    for index in range(8):
        noted = clips.see(Frame(np.zeros((2, 2, 3), np.uint8), float(index), index))
        assert (noted is None) == (index % 2 == 0)
        lengths.append(session.tokens)
    assert clips.notes == ["4.0s-5.0s: a note", "6.0s-7.0s: a note"]
    assert lengths[7] == lengths[5] < 60  # notes and one clip, however many clips came before
    assert len(monkey) == 4
