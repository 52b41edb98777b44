"""OVO-Bench (arXiv 2501.05510): questions about the past, the present, and what is still to come.

File: `ovo_bench_new.json`.  One pass per video; each test sees the video up to the next whole second of its `realtime`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.video_tasks import rules
from bench.video_tasks.exam import (
    Ask,
    Choice,
    Exchange,
    FormatError,
    Score,
    Script,
    Test,
    Video,
    bare,
    lettered,
    listed,
    need,
    seconds,
)

GROUPS = {
    **dict.fromkeys(("EPM", "HLD", "ASI"), "backward"),
    **dict.fromkeys(("OJR", "STU", "OCR", "ATR", "ACR", "FPD"), "realtime"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "forward"),
}


@dataclass(frozen=True)
class Point:
    """One test point of a forward task: a number, or yes or no."""

    task: str
    group: str
    at: float
    prompt: str
    plain: str
    kind: Literal["count", "yes_no"]
    wanted: int

    def script(self) -> Script:
        yield Ask(self.at, self.prompt, self.plain)

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        reply = exchanges[0].reply if exchanges else ""
        if self.kind == "count":
            return Score(float(rules.number(reply) == self.wanted), float(rules.compat_digits(reply, self.wanted)))
        said = rules.yes_no(reply) == ("yes" if self.wanted else "no")
        return Score(float(said), float(rules.compat_yes_no(reply, bool(self.wanted))))


def read(data: Any) -> list[Video]:
    """Videos of the annotation file, each with its tests.

    Raises:
        FormatError: the file has another shape, or a task that is not known.
    """
    tests: dict[str, list[Test]] = {}
    for entry in listed(data, "the annotation file"):
        task, path = need(entry, "task", "video")
        if task not in GROUPS:
            raise FormatError(f"unknown task {task!r}: expected one of {', '.join(GROUPS)}")
        found = _points(entry, task) if GROUPS[task] == "forward" else [_choice(entry, task)]
        tests.setdefault(str(path), []).extend(found)
    return [Video(path, tuple(found)) for path, found in tests.items()]


def _choice(entry: Any, task: str) -> Test:
    at, question, options, gold = need(entry, "realtime", "question", "options", "gt")
    found = tuple(bare(str(option)) for option in listed(options, "'options'"))
    if not isinstance(gold, int) or not 0 <= gold < len(found):
        raise FormatError(f"the answer {gold!r} of {question!r} is none of its {len(found)} options")
    prompt = f"Question: {question}\nOptions:\n{lettered(found)}\nAnswer with the letter only."
    when, published = math.ceil(seconds(at)), rules.compat_letter_occurs
    return Choice(task, GROUPS[task], when, str(question), found, chr(65 + gold), prompt, published)


def _points(entry: Any, task: str) -> list[Test]:
    found: list[Test] = []
    for point in listed(*need(entry, "test_info"), "'test_info'"):
        at = math.ceil(seconds(*need(point, "realtime")))
        if task == "REC":
            (activity,), (count,) = need(entry, "activity"), need(point, "count")
            plain = f"How many times has this been done so far: {activity}?"
            found.append(Point(task, "forward", at, f"{plain} Answer with a number only.", plain, "count", int(count)))
            continue
        if task == "SSR":
            (step,) = need(point, "step")
            plain = f"Is the person carrying out this step right now: {step}?"
        else:
            (question,) = need(entry, "question")
            plain = f"Has enough been shown by now to answer this question: {question}?"
        wanted = int(*need(point, "type"))
        found.append(Point(task, "forward", at, f"{plain} Answer with Yes or No only.", plain, "yes_no", wanted))
    return found
