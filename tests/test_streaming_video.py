"""The video benchmarks' runner: formats, timing without look-ahead, the published rules and the strict ones, resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import streaming_video
from bench.video_tasks import ovobench, rules, streamgaze, streamingbench, svbench
from bench.video_tasks.exam import Ask, Exchange, FormatError, Video, seconds
from bench.video_tasks.results import Record, scored, summary
from bench.video_tasks.watching import LookAhead, Pass
from penstock.core import Frame

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "bench" / "streamingbench"


def frames(count: int, rate: float = 1.0, start: float = 0.0) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(np.zeros((2, 2, 3), np.uint8), start + index / rate, index)


class Told:
    """A watcher that answers by a function of the question and what it has seen."""

    def __init__(self, reply: Callable[[Ask, list[float]], str]) -> None:
        self.times: list[float] = []
        self.asked: list[tuple[float, list[float]]] = []
        self._reply = reply

    def see(self, frame: Frame) -> None:
        self.times.append(frame.t)

    def answer(self, ask: Ask) -> str:
        self.asked.append((ask.at, list(self.times)))
        return self._reply(ask, self.times)


def watched(video: Video, watcher: Told, count: int = 60) -> dict[str, Any]:
    exchanges = Pass(watcher, video.tests).watch(frames(count))
    return summary(scored([video], {(video.path, i): e for i, e in enumerate(exchanges)}))


# -- formats ----------------------------------------------------------------------------------------------------------


def test_times() -> None:
    assert [seconds(t) for t in ("00:03:10", "02:22", "7", 12.5, "0:00:08")] == [190, 142, 7, 12.5, 8]
    for bad in ("", "a:b", "1:2:3:4", None, True, "-3"):
        with pytest.raises(FormatError, match="is not a time"):
            seconds(bad)


def choice(at: str, answer: str, **more: Any) -> dict[str, Any]:
    options = ["A. red", "B. green", "C. blue", "D. dark blue"]
    return {
        "task_type": "Colour",
        "question": "What colour?",
        "time_stamp": at,
        "answer": answer,
        "options": options,
    } | more


def test_questions_are_asked_in_their_second_and_see_nothing_later() -> None:
    entry = {
        "video_path": "a.mp4",
        "questions": [choice("00:00:30", "B"), choice("00:00:05", "A"), choice("2:00", "C")],
    }
    (video,) = streamingbench.read([entry])
    watcher = Told(lambda ask, seen: "B")
    found = watched(video, watcher)
    assert [(at, seen[-1]) for at, seen in watcher.asked] == [(5, 5), (30, 30), (120, 59)]  # the last: at the end
    assert found["tasks"] == [
        {"group": "streamingbench", "task": "Colour", "n": 3, "strict": 1 / 3, "published": 1 / 3, "answered": 1.0}
    ]


def test_a_watcher_is_never_asked_about_the_past() -> None:
    (video,) = streamingbench.read([{"video_path": "a.mp4", "questions": [choice("00:00:05", "A")]}])
    one = Pass(Told(lambda ask, seen: "A"), video.tests)
    one.seen = 7.0
    with pytest.raises(LookAhead, match="second 7"):
        one.watch(frames(3, start=7.0))
    with pytest.raises(LookAhead, match="came behind"):
        Pass(Told(lambda ask, seen: "A"), video.tests).watch(reversed(list(frames(4))))


def test_sequential_questions_bring_what_was_asked_before_with_the_right_answers() -> None:
    entries = [
        {
            "video_path": "a.mp4",
            "questions": [choice(f"00:00:0{i}", "ABC"[i], task_type="Sequential Question Answering")],
        }
        for i in range(3)
    ]
    (video,) = streamingbench.read([entries])
    prompts = [next(test.script()).prompt for test in video.tests]
    assert [prompt.count("The right answer was") for prompt in prompts] == [0, 1, 2]
    assert "right answer was B" in prompts[2]


def proactive(moment: str = "00:00:25") -> Video:
    question = {
        "task_type": "Proactive Output", "question": 'When it rains, output "Rain".', "time_stamp": "00:00:18",
        "ground_truth_time_stamp": moment, "ground_truth_output": "Rain",
    }  # fmt: skip
    return streamingbench.read([{"video_path": "a.mp4", "questions": [question]}])[0]


@pytest.mark.parametrize(
    ("says_at", "output", "strict", "published"),
    [(25, "Rain", 1, 1), (23, "It is Rain.", 1, 1), (22, "Rain", 0, 0), (25, "Sun", 0, 0), (999, "Rain", 0, 0)],
)
def test_proactive_output_is_polled_until_it_speaks(says_at: int, output: str, strict: int, published: int) -> None:
    def reply(ask: Ask, seen: list[float]) -> str:
        if "right time" not in ask.prompt:
            return output
        return "yes" if seen[-1] >= says_at else "no"

    watcher = Told(reply)
    (row,) = watched(proactive(), watcher)["tasks"]
    assert (row["strict"], row["published"]) == (strict, published)
    asked = [at for at, _ in watcher.asked]
    assert asked == ([*range(19, 30)] if says_at == 999 else [*range(19, says_at + 1), says_at])
    assert all(seen[-1] == at for at, seen in watcher.asked)


class Speaks(Told):
    """Speaks up by itself, once, at a second."""

    def __init__(self, at: float, text: str) -> None:
        super().__init__(lambda *_: pytest.fail("asked"))
        self.at, self.text = at, text
        self.heard: dict[int, tuple[str, float]] = {}
        self._said = ""

    def see(self, frame: Frame) -> None:
        super().see(frame)
        if self.heard and frame.t == self.at:
            self._said = self.text

    def stand(self, number: int, request: str) -> bool:
        self.heard[number] = (request, self.times[-1])
        return True

    def said(self, number: int) -> str:
        said, self._said = self._said, ""
        return said

    def end(self, number: int) -> None:
        del self.heard[number]


@pytest.mark.parametrize(
    ("at", "text", "right"), [(25, "Rain", 1), (24, "It is Rain.", 1), (19, "Rain", 0), (25, "Sun", 0), (17, "Rain", 0)]
)
def test_a_model_that_speaks_up_by_itself_is_not_polled(at: float, text: str, right: int) -> None:
    """Polled on forks it was always silent: it speaks behind frames, and on a fork none came."""
    watcher, video = Speaks(at, text), proactive()
    one = Pass(watcher, video.tests)
    assert not watcher.heard
    exchanges = one.watch(frames(60))
    (score,) = [test.score(found) for test, found in zip(video.tests, exchanges)]
    assert score.strict == right
    assert not watcher.heard
    assert watcher.times[-1] == (29 if at == 17 else at)  # no further than it takes


def test_a_request_stands_from_its_second_on() -> None:
    watcher = Speaks(99, "")
    heard: list[tuple[str, float]] = []
    watcher.stand = lambda number, request: bool(heard.append((request, watcher.times[-1]))) or True  # type: ignore[method-assign]
    watcher.end = lambda number: None  # type: ignore[method-assign]
    Pass(watcher, proactive().tests).watch(frames(60))
    assert heard == [('When it rains, output "Rain".', 18.0)]


def test_forward_questions_of_ovobench() -> None:
    data = [
        {"task": "EPM", "video": "v", "realtime": 4.2, "question": "q", "options": ["red", "green"], "gt": 1},
        {"task": "REC", "video": "v", "activity": "jump", "start_times": [], "end_times": [],
         "test_info": [{"realtime": 3, "count": 1}, {"realtime": 9, "count": 12}]},
        {"task": "SSR", "video": "v", "tutorial": "t", "test_info": [{"realtime": 2, "step": "s", "type": 0}]},
        {"task": "CRR", "video": "v", "question": "who", "ask_time": 1, "clue_time": 5,
         "test_info": [{"realtime": 6, "type": 1}]},
    ]  # fmt: skip
    (video,) = ovobench.read(data)
    answers = {4.2: "", 5: "The answer: B", 3: "once, 1", 9: "twelve", 2: "N", 6: "Yes, enough"}
    found = watched(video, Told(lambda ask, seen: answers[ask.at]))
    rows = {row["task"]: (row["strict"], row["published"]) for row in found["tasks"]}
    assert rows == {"EPM": (1, 1), "REC": (1, 0.5), "SSR": (1, 1), "CRR": (1, 1)}
    assert found["totals"]["published"]["of_groups"] == pytest.approx((1 + (0.5 + 1 + 1) / 3) / 2)
    with pytest.raises(FormatError, match="unknown task 'XYZ'"):
        ovobench.read([{"task": "XYZ", "video": "v"}])


def test_alerts_of_streamgaze() -> None:
    points = [{"realtime": "00:04", "type": 0}, {"realtime": "00:08", "type": 1}, {"realtime": "00:09", "type": 1}]
    data = [{"video_path": "v", "questions": [{"question": "plate", "time_stamp": "00:02", "test_info": points}]}]
    (video,) = streamgaze.read(data, "proactive_alert", gaze=True)
    assert "green dot" in next(video.tests[0].script()).prompt
    found = watched(video, Told(lambda ask, seen: "I do not know" if seen[-1] < 9 else "Yes"))
    (row,) = found["tasks"]
    assert (row["strict"], row["published"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))  # NOT and KNOW hold NO


def test_chains_of_svbench_stay_in_the_conversation_and_a_judge_may_say_minus_one() -> None:
    data = [
        {"chain": {"questions": ["q1", "q2"], "answers": ["a red ball", "two"]}, "qac_timestamps_start": "00:00:00",
         "qac_timestamps_end": "00:00:10", "images": []},
        {},
        {"chain": {"questions": ["q3"], "answers": ["it rolls"]}, "qac_timestamps_start": "00:00:10",
         "qac_timestamps_end": "00:00:20", "images": []},
    ]  # fmt: skip
    (video,) = svbench.read(data, "v")
    asks: list[Ask] = []
    watcher = Told(lambda ask, seen: asks.append(ask) or {"q1": "red ball", "q2": "three", "q3": "it rolls"}[ask.plain])
    (row,) = watched(video, watcher)["tasks"]
    assert [(ask.at, ask.plain, ask.history) for ask in asks] == [(10, "q1", True), (10, "q2", True), (20, "q3", True)]
    assert row["f1"] == pytest.approx((0.8 / 2 + 1) / 2)
    assert row["strict"] is None
    text = "".join(f"{i}. {name}:\nScore: {n}\nComments: 7 of 10\n" for i, (name, n) in enumerate(
        zip(svbench.ASPECTS, (8, 10, 9, -1, 0)), 1))  # fmt: skip
    assert list(svbench.judgement(text).values()) == [8, 10, 9, -1, 0, None]
    found = svbench.judged([text, text])
    assert (found["Temporal Understanding"], found["Logical Consistency"], found["missing"]) == (None, 90, 2)


@pytest.mark.skipif(not DATA.is_dir(), reason="the annotation files of StreamingBench are not here")
def test_the_published_annotation_files_are_read_whole() -> None:
    counts = {"real_stream": (498, 2495), "sqa_stream": (50, 250), "proactive_50": (50, 51)}
    for name, (videos, tests) in counts.items():
        found = streamingbench.read(json.loads((DATA / f"questions_{name}.json").read_text()))
        assert (len(found), sum(len(video.tests) for video in found)) == (videos, tests)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "should be a list, found dict"),
        ([{"questions": []}], "no 'video_path'"),
        ([{"video_path": "v", "questions": [choice("00:00:05", "F")]}], "'F' of 'What colour\\?' is none of its 4"),
        ([{"video_path": "v", "questions": [{"task_type": "x", "question": "q"}]}], "no 'time_stamp'"),
    ],
)
def test_files_of_another_shape_are_refused_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        streamingbench.read(data)


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "strict", "first", "occurs"),
    [
        ("B", True, True, True),
        ("B. green", True, True, True),
        ("The answer is (B)", True, False, True),
        ("Answer: C, not B", False, False, True),
        ("A green one", True, False, False),  # the article; the option's own words decide
        ("green", True, False, False),
        ("", False, False, False),
        ("Because", False, True, True),
    ],
)
def test_letters(reply: str, strict: bool, first: bool, occurs: bool) -> None:
    options = ("red", "green", "blue", "dark blue")
    assert (rules.letter(reply, options) == "B") == strict
    assert rules.compat_first_character(reply, "B") == first
    assert rules.compat_letter_occurs(reply, "B") == occurs


def test_words_that_hold_other_words() -> None:
    assert rules.letter("it was dark blue", ("red", "blue", "dark blue")) == "C"
    assert rules.letter("red and blue", ("red", "blue")) is None
    assert [rules.yes_no(t) for t in ("Yes.", "no, yes", "I do not know", "Y", "")] == ["yes", "no", None, "yes", None]
    assert [rules.number(t) for t in ("three times", "12 or 13", "none")] == [3, 12, None]


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (video,) = streamingbench.read(
        [{"video_path": "a.mp4", "questions": [choice("00:00:05", "B"), choice("00:00:09", "A")]}]
    )
    path = tmp_path / "run.jsonl"
    record = Record(path, {"model": "m"})
    assert record.missing(video) == [0, 1]
    record.add("a.mp4", 0, [Exchange(5.0, "B")])
    path.write_text(path.read_text() + '{"video": "a.mp4", "te')  # killed within a line
    again = Record(path, {"model": "m"})
    assert again.missing(video) == [1]
    again.add("a.mp4", 1, [Exchange(9.0, "C")])
    whole = Record(path, {"model": "m"})
    assert [score.strict for _, score in scored([video], whole.replies)] == [1.0, 0.0]
    with pytest.raises(FormatError, match=r"other settings \(model\)"):
        Record(path, {"model": "other"})


def test_answers_of_other_weights_are_not_taken_for_this_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped model had been trained on, in the same folder, and the table of the old weights was printed again."""
    (tmp_path / "a.mp4").touch()
    questions = [{"video_path": "a.mp4", "questions": [choice("00:00:05", "B")]}]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    paths = {"--annotations": "questions.json", "--videos": "", "--results": "run.jsonl"}
    given = [part for name, path in paths.items() for part in (name, str(tmp_path / path))]
    monkeypatch.setattr(streaming_video, "watch", lambda *_: None)
    for weights in ("first", "first"):
        monkeypatch.setattr(streaming_video, "load", lambda _, weights=weights: SimpleNamespace(fingerprint=weights))
        assert streaming_video.run(streaming_video.options().parse_args(given))["tests"] == 0
    monkeypatch.setattr(streaming_video, "load", lambda _: SimpleNamespace(fingerprint="second"))
    with pytest.raises(FormatError, match=r"other settings \(weights\)"):
        streaming_video.run(streaming_video.options().parse_args(given))
