"""StreamGaze (arXiv 2512.01707): where somebody looks; questions about past and present, and alerts.

Files: one per task; the task is named by the file (`past_scene_recall.json`), its first word is the group.
`gaze` puts a sentence in front that explains the marks, for the videos in which gaze is drawn.
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

GAZE = "The green dot is where the person looks; the red circle is what the person can see.\n"


@dataclass(frozen=True)
class Alert:
    """One point of a proactive task: has it been seen by now?"""

    task: str
    group: str
    at: float
    question: str
    wanted: bool
    gaze: bool = False

    def script(self) -> Script:
        yield Ask(
            self.at,
            f"{GAZE if self.gaze else ''}You watch a video as it goes on.\nRequest: {self.question}\n"
            "Has what is requested been seen by now? Answer with Yes or No only.",
            f"{self.question} Has it been seen by now?",
        )

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        reply = exchanges[0].reply if exchanges else ""
        said = rules.yes_no(reply) == ("yes" if self.wanted else "no")
        return Score(float(said), float(rules.compat_contains(reply, self.wanted)))


def read(data: Any, task: str, gaze: bool = False) -> list[Video]:
    """Videos of one task's file.

    Raises:
        FormatError: the file has another shape.
    """
    group = task.split("_")[0]
    tests: dict[str, list[Test]] = {}
    for entry in listed(data, "the annotation file"):
        path, questions = need(entry, "video_path", "questions")
        for question in listed(questions, "'questions'"):
            tests.setdefault(str(path), []).extend(_tests(question, task, group, gaze))
    return [Video(path, tuple(found)) for path, found in tests.items()]


def _tests(entry: Any, task: str, group: str, gaze: bool) -> list[Test]:
    text, at = need(entry, "question", "time_stamp")
    if "test_info" in entry:
        return [
            Alert(task, group, seconds(point["realtime"]), str(text), bool(point["type"]), gaze)
            for point in listed(entry["test_info"], "'test_info'")
            if need(point, "realtime", "type")
        ]
    options, key = options_of(entry)
    prompt = (
        f"{GAZE if gaze else ''}Question: {text}\n{lettered(options)}\nAnswer with the letter of the right option only."
    )
    return [Choice(task, group, seconds(at), str(text), options, key, prompt, rules.compat_first_standing_letter)]
