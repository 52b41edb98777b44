"""The loop of a watcher: order of events, exact question times, honest refusals, bounded queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from penstock.core import Frame, RealClock, SimulatedClock
from penstock.errors import UsageError
from penstock.io.captions import Caption
from penstock.io.frames import Notice
from penstock.io.video.world import Generated
from penstock.reducers import Chain
from penstock.reducers import parse as reducer
from penstock.triggers import parse as trigger
from penstock.watch import Agenda, Event, Limits, Pipeline, Requests, Watch, parse_question, request_of, speaking
from penstock.watch.opening import Sight, open_sight
from penstock.watch.questions import about
from penstock.watch.spans import MOST, Seconds
from tests.watch.fake import sight, video


def watcher(frames: Any, asks: Sequence[str] = (), **given: Any) -> tuple[Watch, list[Event]]:
    """A watcher over frames (an iterable, or a source) on the fake model."""
    seen: Sight = given.pop("sight", None) or sight()
    source = frames if hasattr(frames, "frames") else Generated(frames, "frames", is_endless=False)
    chain = Chain([reducer(text) for text in given.pop("reduce", ())])
    clock = given.pop("clock", None) or SimulatedClock()
    pipeline = Pipeline(
        source, seen.eyes, chain, clock, policy=given.pop("policy", "wait"), native=given.pop("native", False)
    )
    requests = Requests(
        given.pop("requests", ()), trigger(given.pop("trigger", "change")), seen.reader, given.get("monitor")
    )
    events: list[Event] = []
    agenda = Agenda([parse_question(text, i) for i, text in enumerate(asks)])
    return Watch(pipeline, seen.eyes, seen.reader, requests, agenda, emit=events.append, **given), events


def test_questions_have_every_frame_up_to_their_second_and_none_behind() -> None:
    seen = sight(budget=512)
    asked: list[tuple[str, float]] = []

    watch, events = watcher(
        video(9), ["late@3", "at two@2.0", "between@1.7", "first@0", "again@2", "end", "beyond@99"], sight=seen,
        limits=Limits(max_new=2),
    )  # fmt: skip
    ask = watch.voice.live.ask

    def asking(question: str | None = None, **given: Any) -> None:
        asked.append((str(question).strip(), seen.eyes.read_at[-1]))  # type: ignore[attr-defined]
        ask(question, **given)

    watch.voice.live.ask = asking  # type: ignore[method-assign]
    for _ in watch.run():
        pass
    assert asked == [("first", 0.0), ("between", 1.5), ("at two", 2.0), ("again", 2.0), ("late", 3.0), ("end", 4.0)]
    assert [e.t for e in events] == [0.0, 1.7, 2.0, 2.0, 3.0, 4.0, 4.0]
    assert events[-2].text == "not seen: the stream ended at 4.0 s, before 99.0 s."
    assert (watch.counts.frames, watch.counts.tokens_kept, watch.counts.answers, watch.ended) == (9, 36, 7, "source")


def test_what_is_not_there_is_said_honestly_and_the_session_lives_on() -> None:
    asks = ["What was there at 1 s?@20", "What was there at 0:19?@20", "What is there at 30 seconds?@20", "Now?@20"]
    watch, events = watcher(video(60), asks, limits=Limits(max_new=2))
    for _ in watch.run():
        pass
    texts = [e.text for e in events]
    assert texts[0].startswith("no longer in memory")
    assert texts[2].startswith("not seen yet: the stream is at 20.0 s")
    assert [e.facts.get("refused", False) for e in events] == [True, False, True, False]
    assert watch.counts.frames == 60

    nothing, said = watcher([], ["What is there?"])
    for _ in nothing.run():
        pass
    assert said[0].text == "not seen: nothing has been seen yet."


def test_the_memory_keeps_what_the_order_of_time_says() -> None:
    """The tokens of a watch are those of the same things fed one by one."""
    watch, _ = watcher(video(6), ["What?@1.2"], captions=[Caption(1.0, 2.0, "a bell")], limits=Limits(max_new=1))
    for _ in watch.run():
        pass
    plain = sight()
    for frame in video(6):
        if frame.t == 1.5:
            plain.reader.feed("\na bell\n")
            "".join(plain.reader.reply("\nWhat?", max_new=1))
        plain.reader.flush()
        visual = plain.eyes.encode([frame])
        plain.eyes.read(visual, Chain().visual(Chain().start(), visual)[1])
    assert watch.reader.log.digest == plain.reader.log.digest  # type: ignore[attr-defined]


def test_reducers_leave_out_frames_and_tokens_and_time_goes_on() -> None:
    still = [Frame(f.image * 0 + 90, f.t, f.index) for f in video(20)]
    reduce = ["timechat:by=pixel,threshold=0.01", "scene-change:longest=2"]
    watch, events = watcher(still, ["What?@7"], reduce=reduce, limits=Limits(as_left=True))
    for _ in watch.run():
        pass
    assert (watch.counts.frames, watch.counts.tokens_kept, watch.counts.tokens_dropped) == (5, 4, 16)
    assert (watch.pipeline.frames_in, watch.pipeline.frames_skipped, events[0].t) == (20, 15, 7.0)
    assert watch.counts.peak_bytes <= watch.reader.memory.budget_bytes


def asked_of(asks: Sequence[str], reduce: Sequence[str], **limits: Any) -> tuple[Watch, list[list[float]]]:
    """A still picture for ten seconds; for each question, the moments whose pictures were read before it."""
    seen, before = sight(budget=512), []
    watch, _ = watcher(
        [Frame(f.image * 0 + 90, f.t, f.index) for f in video(20)], asks, sight=seen, reduce=reduce,
        limits=Limits(max_new=1, **limits),
    )  # fmt: skip
    begin, read, at = watch.voice.begin, seen.eyes.read, list[float]()

    def reads(visual: Any, reduced: Any, into: Any = None) -> int:
        if len(reduced.index) == len(visual.tokens):
            at.append(visual.t)
        return read(visual, reduced, into)

    def begins(*args: Any) -> Any:
        said = begin(*args)
        before.append(list(at))
        return said

    seen.eyes.read, watch.voice.begin = reads, begins  # type: ignore[method-assign]
    for _ in watch.run():
        pass
    return watch, before


@pytest.mark.parametrize("reduce", ["timechat:by=pixel,threshold=0.01,unit=frame", "timechat:by=pixel,threshold=0.01"])
def test_a_question_brings_back_whole_what_reducers_left_out_of_the_newest_frame(reduce: str) -> None:
    """A question used to stand behind an earlier answer, with the frame that it was about far back."""
    watch, before = asked_of(["What?@3", "And then?@3", "What?@7"], [reduce])
    assert before == [[0.0, 3.0], [0.0, 3.0], [0.0, 3.0, 7.0]]  # the second finds it there
    assert (watch.counts.tokens_kept, watch.counts.tokens_dropped) == (12, 68)
    assert watch.answers.seconds.refusal(3.0, watch.reader.memory.view()) is None
    as_left, before = asked_of(["What?@3", "What?@7"], [reduce], as_left=True)
    assert before == [[0.0], [0.0]]
    assert (as_left.counts.tokens_kept, as_left.counts.tokens_dropped) == (4, 76)


def test_a_frame_left_out_before_it_was_encoded_is_stood_for_by_the_one_before() -> None:
    _, before = asked_of(["What?@3", "What?@7"], ["scene-change:longest=2"])
    assert before == [[0.0, 2.0, 2.0], [0.0, 2.0, 2.0, 4.0, 6.0, 6.0]]


def test_what_is_read_again_and_again_is_counted_once() -> None:
    """Frames that are not encoded, behind one of which tokens were left out: each question brings that one back."""
    reduce = ["timechat:by=pixel,threshold=0.01", "scene-change:longest=3"]
    watch, before = asked_of(["What?@4", "What?@5", "What?@5.5"], reduce)
    assert before == [[0.0, 3.0], [0.0, 3.0, 3.0], [0.0, 3.0, 3.0, 3.0]]
    assert (watch.counts.tokens_kept, watch.counts.tokens_dropped) == (8, 8)


def test_nothing_is_read_twice_where_nothing_was_left_out_or_another_second_is_asked_for() -> None:
    watch, before = asked_of(["What?@3", "And?@3"], [])
    assert before == [[i / 2 for i in range(7)]] * 2
    assert watch.counts.tokens_kept == 80
    _, before = asked_of(["What was at 1 s?@3"], ["timechat:by=pixel,threshold=0.01"])
    assert before == [[0.0]]


def test_apart_what_is_in_view_enters_the_snapshot_and_not_the_stream() -> None:
    reduce = ["timechat:by=pixel,threshold=0.01,unit=frame"]
    watch, before = asked_of(["What?@3", "And?@3"], reduce, apart=True)
    assert before == [[0.0, 3.0], [0.0, 3.0, 3.0]]  # each snapshot lacks it
    alone, _ = asked_of([], reduce)
    assert watch.reader.log.digest == alone.reader.log.digest  # type: ignore[attr-defined]
    assert watch.counts.tokens_kept == alone.counts.tokens_kept == 4


def test_a_still_picture_leaves_nothing_behind_when_frames_are_kept_whole() -> None:
    """The shipped model counts what is there by the number of tokens behind it: a frame without them misled it."""
    still = [Frame(f.image * 0 + 90, f.t, f.index) for f in video(20)]
    entered = {}
    for unit in ("token", "frame"):
        seen = open_sight(None, "streaming-llm", "200")
        watch, events = watcher(
            still, ["At 7 s?@9"], sight=seen, reduce=[f"timechat:threshold=0.9,unit={unit}"], limits=Limits(max_new=1)
        )
        ask = watch.voice.live.ask
        watch.voice.live.ask = lambda *a, ask=ask, u=unit, s=seen, **k: (  # type: ignore[method-assign]
            entered.__setitem__(u, s.reader.tokens), ask(*a, **k),  # type: ignore[attr-defined]
        )[1]  # fmt: skip
        for _ in watch.run():
            pass
        assert not events[0].facts.get("refused")  # the frame before it stands for second 7
        assert (watch.counts.frames, watch.counts.tokens_kept, watch.counts.tokens_dropped) == (20, 4, 76)
    assert entered == {"frame": 6, "token": 6 + 18}  # its own token at the beginning, 4 of the picture, 1 per frame


def test_a_slow_model_on_a_real_clock_drops_frames_and_neither_lags_nor_grows() -> None:
    seen = sight()
    plain, gate = seen.eyes.encode, threading.Event()

    def slow(frames: Sequence[Frame]) -> Any:
        gate.wait(5)  # the first picture takes until all others have come
        return plain(frames)

    seen.eyes.encode = slow  # type: ignore[method-assign]

    class Burst(Generated):
        def frames(self) -> Iterator[Frame | Notice]:
            yield from super().frames()
            gate.set()

    watch, events = watcher(
        Burst(video(100, 1e9), "burst", is_live=True), sight=seen, clock=RealClock(), policy="drop-oldest"
    )
    for _ in watch.run():
        pass
    queue = watch.pipeline._raw
    queue.check()
    assert queue.longest <= queue.size == 8
    assert watch.counts.frames + watch.pipeline.frames_dropped == 100
    assert watch.pipeline.frames_dropped >= 90
    dropped = [e for e in events if e.kind == "dropped"]
    assert sum(e.facts["frames"] for e in dropped) == watch.pipeline.frames_dropped


def test_trouble_is_an_event_and_an_interruption_ends_with_honest_answers() -> None:
    class Troubled(Generated):
        def frames(self) -> Iterator[Frame | Notice]:
            yield Notice(0.0, "corrupt", "it is damaged here.")
            yield from super().frames()

    count = 0

    def stopped() -> bool:
        nonlocal count
        count += 1
        return count > 5

    watch, events = watcher(Troubled(video(50), "v"), ["What?@20"], stopped=stopped)
    for _ in watch.run():
        pass
    assert [(e.kind, e.text) for e in events[:1]] == [("error", "it is damaged here.")]
    assert events[-1].text.startswith("not asked: interrupted")
    assert (watch.ended, watch.counts.frames) == ("interrupted", 4)
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in watch.pipeline._threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in watch.pipeline._threads)


def test_units_of_several_frames_are_complete_or_the_end() -> None:
    seen = sight()
    seen.eyes.unit = 3  # type: ignore[misc]
    watch, _ = watcher(video(8), ["What?@2.2"], sight=seen, limits=Limits(max_new=1))
    for _ in watch.run():
        pass
    assert seen.eyes.read_at == [1.0, 2.5, 3.5]  # type: ignore[attr-defined]
    assert (watch.counts.frames, watch.counts.tokens_kept, watch.t) == (8, 12, 3.5)


def test_an_error_of_a_source_ends_the_watch_with_that_error() -> None:
    def broken() -> Iterator[Frame]:
        yield from video(3)
        raise UsageError("the lens cap is on: take it off.")

    watch, _ = watcher(broken())
    with pytest.raises(UsageError, match="lens cap"):
        for _ in watch.run():
            pass
    assert watch.counts.frames == 3


def test_requests_are_told_when_their_answer_turns_positive() -> None:
    seen = sight()
    speaking_only = iter(["no", "not yet", "yes, it came", "yes, it came", "nothing", "yes"])
    seen.reader.reply = lambda *_, **__: iter([next(speaking_only, "no")])  # type: ignore[method-assign]
    watch, events = watcher(video(8, 1.0), sight=seen, requests=[request_of("it comes")], trigger="every:seconds=1")
    for _ in watch.run():
        pass
    said = [(e.t, e.text) for e in events if e.kind == "announcement"]
    assert said == [(3.0, "yes, it came"), (6.0, "yes")]
    assert next(e.question for e in events if e.kind == "announcement") == "Tell me when it comes."
    assert [e.t for e in events if e.kind == "silence"] == [3.0, 6.0, 7.0]


def test_asking_in_an_aside_leaves_the_session_as_it_was() -> None:
    """Requests are asked of a real session at every frame: what enters the memory is the frames alone."""
    watch, _ = watcher(
        video(12, 1.0), requests=[request_of("it comes")], trigger="every:seconds=1", sight=sight(budget=24)
    )
    for _ in watch.run():
        pass
    plain, _ = watcher(video(12, 1.0), sight=sight(budget=24))
    for _ in plain.run():
        pass
    asked, alone = watch.reader, plain.reader
    assert watch.requests.checks == 11
    assert asked.log.digest == alone.log.digest  # type: ignore[attr-defined]
    assert asked.logits is not None
    assert alone.logits is not None
    assert (asked.logits - alone.logits).abs().max() < 1e-4


def test_a_model_that_can_be_silent_is_asked_in_the_stream_and_again_when_it_forgot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = sight(budget=24)
    fed: list[str] = []
    plain = seen.reader.feed
    seen.reader.feed = lambda data: (fed.append(data), plain(data))[1]  # type: ignore[method-assign,func-returns-value]
    monkeypatch.setattr(speaking, "MAX_NEW", 2)
    watch, events = watcher(video(20), sight=seen, requests=["Tell me when it rains."], trigger="silence:threshold=0")
    for _ in watch.run():
        pass
    assert fed.count("\nTell me when it rains.") >= 2  # 20 frames of 4 tokens push it out of 24 entries
    assert watch.counts.announcements + sum(e.kind == "silence" for e in events) > 0


def test_perplexity_leaves_the_session_as_it_was() -> None:
    from penstock.watch.speaking import perplexity

    seen = sight(budget=24)
    for _ in watcher(video(10), sight=seen)[0].run():
        pass
    session: Any = seen.reader
    before, digest = session.logits.clone(), session.log.digest
    assert perplexity(session, [5, 6, 7]) > 1
    assert (session.log.digest, bool((session.logits == before).all())) == (digest, True)


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [("a@1", 1.0, "a"), ("a@b@1:02", 62.0, "a@b"), ("a", float("inf"), "a"), ("a?@ 1:00:00.5", 3600.5, "a?")],
)
def test_questions_split_at_the_last_at(text: str, at: float, words: str) -> None:
    question = parse_question(text)
    assert (question.at, question.text) == (at, words)


@pytest.mark.parametrize("text", ["a@", "a@b", "@5", " @5", "a@-1", "a@1:2:3:4", "a@nan"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="TEXT@SECONDS"):
        parse_question(text)


def test_the_second_that_a_question_is_about() -> None:
    cases = {"at 12 s": 12.0, "What was there around 1:30?": 90.0, "after 2 minutes": 120.0, "at 3 places": None}
    assert {text: about(text) for text in cases} == cases


def test_the_seconds_that_are_noted_are_bounded_and_stay_true() -> None:
    noted, held = Seconds(), range(9_000 * 5, 10_000 * 5)
    for i in range(10_000):
        noted.note(i / 2, 5 * i)
    assert len(noted._at) <= MOST
    views = [type("View", (), {"seen": held})()]
    assert noted.refusal(4_990.0, views) is None
    assert str(noted.refusal(100.0, views)).startswith("no longer in memory")
    assert str(noted.refusal(6_000.0, views)).startswith("not seen yet")
