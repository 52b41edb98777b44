"""Speaking up: what would be said is weighed before it is said, and a monitor may end it."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.reducers import Chain
from penstock.watch import Event, Limits, speaking
from penstock.watch.speaking import Written
from tests.watch.fake import sight, video
from tests.watch.test_watch import watcher

RAIN = "Tell me when it rains."


def announced(events: list[Event]) -> list[tuple[float, str]]:
    return [(event.t, event.text) for event in events if event.kind == "announcement"]


def watched(trigger: str, frames: int = 12, rate: float = 1.0, **given: Any) -> tuple[Any, list[Event]]:
    """A watcher with a standing request, at its end."""
    seen = given.pop("sight", None) or sight(budget=2048)
    watch, events = watcher(video(frames, rate), sight=seen, requests=[RAIN], trigger=trigger, **given)
    for _ in watch.run():
        pass
    return watch, events


def test_words_that_the_model_is_not_sure_of_are_not_said_and_leave_the_stream() -> None:
    watch, events = watched("silence:threshold=2,sure=1")
    assert (announced(events), watch.requests.checks) == ([], 12)
    plain = sight(budget=2048)
    plain.reader.feed(f"\n{RAIN}")
    plain.reader.flush()
    for frame in video(12, 1.0):
        visual = plain.eyes.encode([frame])
        plain.eyes.read(visual, Chain().visual(Chain().start(), visual)[1])
    assert watch.reader.log.digest == plain.reader.log.digest  # type: ignore[attr-defined]
    assert watch.reader.logits is not None
    assert plain.reader.logits is not None
    assert float((watch.reader.logits - plain.reader.logits).abs().max()) < 1e-4


def test_words_that_are_kept_stay_in_the_stream_as_they_would_unweighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaking, "MAX_NEW", 3)
    logs = []
    for options in ("", ",sure=0.000001", ",again=0.001"):
        watch, events = watched("silence:threshold=0" + options)
        assert announced(events)
        logs.append((watch.reader.log.digest, announced(events)))
    assert logs[0] == logs[1] == logs[2]


def test_what_was_announced_is_not_announced_again_when_something_else_was_said_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shapes model named a thing a second time when the next one came: half of its false alarms."""
    said: list[str] = []

    def writes(*_: Any) -> Written:
        said.append("a star" if len(said) % 2 == 0 else "a ring")
        return Written(said[-1], 0.9, False)

    monkeypatch.setattr(speaking, "written", writes)
    _, events = watched("silence:threshold=2,again=3", frames=10)
    expected = [(0.0, "a star"), (1.0, "a ring"), (4.0, "a star"), (5.0, "a ring"), (8.0, "a star"), (9.0, "a ring")]
    assert announced(events) == expected


def test_the_same_words_frame_after_frame_are_one_event_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaking, "written", lambda *_: Written("a star", 0.9, False))
    assert announced(watched("silence:threshold=2,again=3", frames=20)[1]) == [(0.0, "a star")]


def test_an_unsure_attempt_does_not_keep_the_sure_one_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sure = iter([0.2, 0.9, 0.2])
    monkeypatch.setattr(speaking, "written", lambda *_: Written("a star", next(sure, 0.0), False))
    assert announced(watched("silence:threshold=2,sure=0.5,again=3")[1]) == [(1.0, "a star")]


def test_the_least_likely_word_is_what_counts() -> None:
    """A draft is as sure as its weakest word, silence left out of the first one."""
    seen = sight(budget=512)
    seen.reader.feed("Tell me.")
    seen.reader.flush()
    words = speaking.written(seen.reader, 4, speaking.Objections(None))
    ids = seen.reader.model.tokenizer(words.text, add_special_tokens=False)["input_ids"]
    assert ids
    assert 0 < words.least < 1
    assert speaking.written(seen.reader, 1, speaking.Objections(None)).least >= 1 / len(seen.reader.model.tokenizer)


class Objector:
    """Objects to everything from the second word on."""

    def start(self) -> None:
        self.count = 0

    def score(self, text: str, token: int) -> float | None:
        self.count += 1
        return float(self.count > 1)


@pytest.mark.parametrize("trigger", ["silence:threshold=0", "silence:threshold=2,again=0.5", "every:seconds=1"])
def test_a_monitor_ends_what_is_announced_and_watching_goes_on(trigger: str) -> None:
    free, plain = watched(trigger)
    watch, events = watched(trigger, monitor=Objector())
    cut = [event for event in events if event.kind == "announcement"]
    assert cut
    assert {event.facts.get("cut") for event in cut} == {"monitor"}
    assert all("cut" not in event.facts for event in plain)
    first = announced(plain)[0][1]
    assert first.startswith(cut[0].text)
    assert len(cut[0].text) < len(first)
    assert (watch.counts.frames, watch.ended, watch.counts.errors) == (12, "source", 0)
    assert watch.reader.tokens <= free.reader.tokens


def test_a_monitor_ends_an_answer_and_the_next_one_is_heard() -> None:
    watch, events = watcher(
        video(8), ["What?@1", "And now?@2"], monitor=Objector(), limits=Limits(max_new=20), sight=sight(budget=512)
    )
    for _ in watch.run():
        pass
    answers = [event for event in events if event.kind == "answer"]
    assert [event.facts.get("cut") for event in answers] == ["monitor", "monitor"]
    assert all(event.text for event in answers)
    assert watch.counts.frames == 8
