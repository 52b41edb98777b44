"""StreamingBench (arXiv 2411.03628): multiple choice at given seconds, sequential questions, proactive output.

Files: `questions_*.json` as the authors' repository has them, flat or grouped by video.  Differs from the authors'
scripts: one pass per video instead of a clip per question (`--context` cuts the video as they do), and questions
without an answer count as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.video_tasks import rules
from bench.video_tasks.exam import (
    Ask,
    Choice,
    Exchange,
    Score,
    Script,
    Test,
    Video,
    lettered,
    listed,
    need,
    options_of,
    seconds,
)

TOLERANCE = 2.0  # seconds around the right moment
OVERRUN = 4  # seconds of polling behind the right moment


@dataclass(frozen=True)
class Proactive:
    """`When X happens, output Y`: polled every second until the model says that it is time.

    A model that speaks up by itself (`watching.Listener`) gets `request` when the test begins, and what it says in a
    second is its reply to the poll at the end of it.
    """

    task: str
    group: str
    at: float
    question: str
    moment: float
    output: str

    @property
    def request(self) -> str:
        """What is put to a model that speaks up by itself, at `at`."""
        return self.question

    def script(self) -> Script:
        now = self.at
        while now < self.moment + OVERRUN:
            now += 1
            reply = yield Ask(
                now,
                f"{self.question}\nIs it the right time to output {self.output!r} now? Answer with yes or no only.",
                f"{self.question} Now?",
                polls=True,
            )
            if rules.yes_no(reply) == "yes":
                yield Ask(now, self.question, self.question)
                return

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        spoke = len(exchanges) > 1 and rules.yes_no(exchanges[-2].reply) == "yes"
        timely = spoke and abs(exchanges[-1].at - self.moment) <= TOLERANCE
        right = timely and self.output.lower() in exchanges[-1].reply.lower()
        last = bool(exchanges) and abs(exchanges[-1].at - self.moment) <= TOLERANCE
        named = last and self.output in exchanges[-1].reply
        return Score(float(right), float(named), {"time_correct": float(timely), "time_correct_published": float(last)})


def read(data: Any, group: str = "streamingbench") -> list[Video]:
    """Videos of one annotation file; entries of the same video are put together.

    Raises:
        FormatError: the file has another shape.
    """
    tests: dict[str, list[Test]] = {}
    for part in listed(data, "the annotation file"):
        before = ""
        for entry in part if isinstance(part, list) else [part]:
            path, questions = need(entry, "video_path", "questions")
            for question in listed(questions, "'questions'"):
                test = _test(question, group, before)
                tests.setdefault(str(path), []).append(test)
                if isinstance(test, Choice) and test.task.startswith("Sequential"):
                    before += (
                        f"At {question['time_stamp']} it was asked: {test.question}\n{lettered(test.options)}\n"
                        f"The right answer was {test.key}.\n"
                    )
    return [Video(path, tuple(found)) for path, found in tests.items()]


def _test(entry: Any, group: str, before: str) -> Test:
    task, question, at = need(entry, "task_type", "question", "time_stamp")
    if "ground_truth_time_stamp" in entry:
        moment, output = need(entry, "ground_truth_time_stamp", "ground_truth_output")
        return Proactive(str(task), group, seconds(at), str(question), seconds(moment), str(output))
    options, key = options_of(entry)
    context = before if "Sequential" in str(task) else ""
    prompt = (
        "You watch a video as it goes on and answer questions about it.\n"
        f"{context}Question: {question}\n{lettered(options)}\n"
        "Answer with the letter of the best option only.\nThe best option is:"
    )
    published = rules.compat_first_character
    return Choice(str(task), group, seconds(at), str(question), options, key, prompt, published)
