"""SVBench (arXiv 2502.10810): chains of open questions over the segments of a video, scored by a judge.

Files: one per video, a list of segments `{chain: {questions, answers}, qac_timestamps_start, qac_timestamps_end}`.
Each chain is asked at the end of its segment; question and answer stay in the conversation.  The published score is a
judge's; here the answers are written in the shape the authors' scripts read, a judge's texts are parsed if they are
given, and word overlap with the ground truth (`f1`) stands in for what can be said without one: it is not comparable
with papers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.video_tasks import rules
from bench.video_tasks.exam import Ask, Exchange, FormatError, Score, Script, Test, Video, listed, need, seconds

ASPECTS = (
    "Semantic Accuracy", "Contextual Coherence", "Logical Consistency", "Temporal Understanding",
    "Informational Completeness", "Overall Evaluation",
)  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """The questions of one segment, in order."""

    at: float
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    number: int
    task: str = "chain"
    group: str = "svbench"

    def script(self) -> Script:
        for question in self.questions:
            yield Ask(self.at, question, question, history=True)

    def score(self, exchanges: Sequence[Exchange]) -> Score:
        replies = [exchange.reply for exchange in exchanges]
        replies += [""] * (len(self.answers) - len(replies))
        overlap = [f1(reply, answer) for reply, answer in zip(replies, self.answers)]
        return Score(None, None, {"f1": sum(overlap) / len(overlap)})

    def document(self, exchanges: Sequence[Exchange]) -> dict[str, Any]:
        """As the authors' evaluation scripts read it."""
        replies = [exchange.reply for exchange in exchanges]
        return {"questions": list(self.questions), "gt_answers": list(self.answers), "answers": replies}


def f1(reply: str, answer: str) -> float:
    """Overlap of words: harmonic mean of precision and recall."""
    said, wanted = Counter(rules.words(reply)), Counter(rules.words(answer))
    common = sum((said & wanted).values())
    return 2 * common / (sum(said.values()) + sum(wanted.values())) if common else 0.0


def read(data: Any, video: str) -> list[Video]:
    """The video of one file; segments without a chain are left out.

    Raises:
        FormatError: the file has another shape.
    """
    tests: list[Test] = []
    for number, entry in enumerate(listed(data, "the annotation file")):
        if not entry:
            continue
        chain, end = need(entry, "chain", "qac_timestamps_end")
        questions, answers = (listed(part, "a chain") for part in need(chain, "questions", "answers"))
        if len(questions) != len(answers) or not questions:
            raise FormatError(f"chain {number} of {video} has {len(questions)} questions and {len(answers)} answers")
        tests.append(Chain(seconds(end), tuple(map(str, questions)), tuple(map(str, answers)), number))
    return [Video(f"{video}.mp4", tuple(tests))]


def judgement(text: str) -> dict[str, int | None]:
    """A judge's six numbers, 0 to 10; -1 where an aspect does not apply, None where no number is given.

    The published expression has no sign and reads -1 as 1; this one keeps it.
    """
    found: dict[str, int | None] = {}
    for index, aspect in enumerate(ASPECTS):
        start = text.find(aspect)
        ends = [at for other in ASPECTS[index + 1 :] if (at := text.find(other, start + 1)) > 0]
        part = text[start : min(ends, default=len(text))] if start >= 0 else ""
        match = re.search(r"Score\W*?(-1|10|\d)(?!\d)", part)
        found[aspect] = int(match[1]) if match else None
    return found


def judged(texts: Sequence[str]) -> dict[str, float | None]:
    """Mean of each aspect in percent, over the texts to which it applies; and how many numbers are missing."""
    parsed = [judgement(text) for text in texts]
    out: dict[str, float | None] = {}
    for aspect in ASPECTS:
        values = [value for one in parsed if (value := one[aspect]) is not None and value >= 0]
        out[aspect] = 10 * sum(values) / len(values) if values else None
    out["missing"] = float(sum(value is None for one in parsed for value in one.values()))
    return out
