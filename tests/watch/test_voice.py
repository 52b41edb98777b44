"""Seeing goes on while an answer is spoken: what enters when, who waits, what an interruption leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from penstock.core import Frame, Phase, RealClock
from penstock.io.video.world import Generated
from penstock.watch import Limits, speaking
from tests.watch.fake import sight, video
from tests.watch.test_watch import watcher


def phases(session: Any) -> list[tuple[str, list[int]]]:
    """Note, step by step, what enters: ("see" | "ask" | "say", tokens)."""
    out: list[tuple[str, list[int]]] = []
    step = session._step

    def stepping(tokens: list[int], phase: Phase, *rest: Any) -> None:
        step(tokens, phase, *rest)
        out.append(({Phase.INGEST: "see", Phase.ASK: "ask", Phase.ANSWER: "say"}[phase], tokens))

    session._step = stepping
    return out


def test_on_the_clock_of_the_video_an_answer_takes_its_time_and_no_frame_waits() -> None:
    """Two tokens of an answer per second, two frames per second: they take turns, in the same order every time."""
    orders = []
    for _ in range(2):
        seen = sight(budget=512)
        entered = phases(seen.reader)
        watch, events = watcher(video(12), ["What?@2"], sight=seen, limits=Limits(max_new=5, speech=2.0))
        for _ in watch.run():
            pass
        (answer,) = events
        orders.append([name for name, _ in entered])
    assert orders[0] == orders[1]
    begun = orders[0].index("ask")
    behind = [name for name in orders[0][begun:] if name != "ask"]
    assert behind[:8] == ["see", "say"] * 4  # frames of 2.5, 3.0, 3.5, 4.0, each before the token of its time
    assert (answer.t, answer.facts["asked"], answer.facts["frames_while_speaking"]) == (4.0, 2.0, 4)
    assert watch.counts.frames == 12
    turns, _ = watcher(video(12), ["What?@2"], limits=Limits(max_new=5), sight=sight(budget=512))
    for _ in turns.run():
        pass
    assert turns.voice.live.perceived_while_speaking == 0


def test_on_a_real_clock_frames_that_come_during_an_answer_are_read_during_it() -> None:
    seen, speaks = sight(budget=512), threading.Event()

    class Camera(Generated):
        def frames(self) -> Iterator[Frame]:
            for frame in video(24, 1e6):
                if frame.index == 4:
                    speaks.wait(20)
                yield frame

    watch, events = watcher(
        Camera(video(0), "camera", is_live=True), sight=seen, clock=RealClock(), policy="drop-oldest",
        limits=Limits(max_new=200), note=lambda _: None if watch.voice.is_speaking else asked(),
    )  # fmt: skip

    def asked() -> None:
        if watch.counts.frames == 2:
            watch.ask("What is there?")

    for _ in watch.run():
        if watch.voice.is_speaking:
            speaks.set()
    (answer,) = (event for event in events if event.kind == "answer")
    assert answer.facts["frames_while_speaking"] + watch.pipeline.frames_dropped >= 12
    assert answer.facts["frames_while_speaking"] > 0
    assert "cut" not in answer.facts


def test_an_interruption_keeps_what_was_delivered_and_the_next_question_is_answered() -> None:
    seen = sight(budget=512)
    entered = phases(seen.reader)
    watch, events = watcher(video(12), ["What?@1"], sight=seen, limits=Limits(max_new=60, speech=4.0))
    for _ in watch.run():
        spoken = watch.voice.now
        if watch.t == 2.0 and spoken is not None and spoken.question.text == "What?":
            later, now = watch.ask("And later?"), watch.ask("Now what?", interrupts=True)
            delivered = spoken.text
            later.cancel()
    first = next(event for event in events if event.kind == "answer")
    assert (first.text, first.facts["cut"]) == (delivered.strip(), "interrupted")
    asks = [i for i, (name, _) in enumerate(entered) if name == "ask"]
    second = next(i for i, at in enumerate(asks) if any(name == "say" for name, _ in entered[:at]))
    said = [token for name, tokens in entered[: asks[second]] if name == "say" for token in tokens]
    decode = seen.reader.model.tokenizer.decode
    assert len(decode(said)) >= len(delivered) > len(decode(said[:-1]))  # every token of which text was delivered
    order = [event.question for event in events]
    assert order == ["What?", "Now what?", "And later?"]
    assert now.event is events[1]
    assert later.event is not None
    assert later.event.text == "not asked: taken back."
    assert "".join(now.pieces).strip() == events[1].text


def test_apart_an_answer_is_that_of_its_moment_and_seeing_goes_on_as_if_nothing_were_asked() -> None:
    """Dispider's reaction: on a snapshot, while perception keeps its pace."""
    alone, _ = watcher(video(12), sight=sight(budget=64))
    for _ in alone.run():
        pass
    answers = set()
    for speech in (None, 1.0, 3.0, 40.0):  # however many frames come while it speaks
        seen = sight(budget=64)
        watch, events = watcher(video(12), ["What?@2"], sight=seen, limits=Limits(max_new=9, speech=speech, apart=True))
        for _ in watch.run():
            pass
        answers.add(events[0].text)
        assert seen.eyes.read_at == alone.eyes.read_at  # type: ignore[attr-defined]
        assert seen.reader.log.digest == alone.reader.log.digest  # type: ignore[attr-defined]
        assert ("frames_while_speaking" in events[0].facts) == (speech in (1.0, 3.0))
    assert len(answers) == 1


def test_memories_that_keep_both_sides_apart_are_known() -> None:
    assert not sight("streaming-llm").keeps_sides_apart
    assert sight("group-positions").keeps_sides_apart


def test_each_request_is_looked_at_by_itself_and_told_when_its_evidence_comes(monkeypatch: Any) -> None:
    looked: list[str] = []

    def oracle(reader: Any, request: str) -> float:
        looked.append(request)
        return float(2.0 <= watch.t <= 4.0) if "rain" in request else 0.0

    monkeypatch.setattr(speaking, "evidence", oracle)
    requests = ["Tell me when it rains.", "Tell me when it snows."]
    watch, events = watcher(video(16), requests=requests, trigger="evidence:every=0.0,longest=0.0")
    for _ in watch.run():
        pass
    said = [(event.t, event.question) for event in events if event.kind == "announcement"]
    assert said == [(2.0, requests[0])]
    assert len(looked) == watch.requests.checks == 32


def test_evidence_is_a_share_and_leaves_the_session_as_it_was() -> None:
    watch, _ = watcher(video(4), sight=sight(budget=64))
    for _ in watch.run():
        pass
    session: Any = watch.reader
    before, digest = session.logits.clone(), session.log.digest
    assert 0 < speaking.evidence(session, "Tell me when it rains.") < 1
    assert (session.log.digest, bool((session.logits == before).all())) == (digest, True)


def test_a_monitor_that_objects_ends_an_answer_with_an_event() -> None:
    class Long:
        def start(self) -> None: ...

        def score(self, text: str, token: int) -> float:
            return float(len(text) > 8)

    watch, events = watcher(video(4), ["What?@1"], limits=Limits(max_new=60), monitor=Long())
    for _ in watch.run():
        pass
    assert (events[0].kind, events[0].facts["cut"]) == ("answer", "monitor")
    assert watch.counts.frames == 4


def test_behind_the_end_questions_are_answered_until_somebody_ends_it() -> None:
    over = False
    watch, events = watcher(video(3), limits=Limits(max_new=3), lingers=True, stopped=lambda: over)
    asked = None
    for _ in watch.run():
        if watch.ended == "source":
            asked = asked or watch.ask("What was there?")
            over = asked.event is not None
    assert [event.question for event in events] == ["What was there?"]
    assert (watch.ended, watch.counts.answers) == ("source", 1)
