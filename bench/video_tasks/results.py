"""What was answered, kept line by line so that a run that was stopped goes on; and the tables made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.video_tasks.exam import Exchange, FormatError, Score, Test, Video

Replies = dict[tuple[str, int], list[Exchange]]  # (video, test) -> what was asked and answered


class Record:
    """A file of JSON lines: the settings first, then one line per test.  A line cut short by a crash is dropped."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open for appending.

        Raises:
            FormatError: the file holds a run with other settings.
        """
        self.path, self.replies = path, Replies()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(self._lines()) if path.exists() else []
        if lines:
            theirs = lines[0].get("settings")
            if theirs != settings:
                changed = [key for key in settings if not isinstance(theirs, dict) or theirs.get(key) != settings[key]]
                raise FormatError(
                    f"{path} holds a run with other settings ({', '.join(changed) or 'more of them'}): "
                    "give another --results, or delete it"
                )
            for line in lines[1:]:
                self.replies[line["video"], line["test"]] = [Exchange(at, reply) for at, reply in line["exchanges"]]
        with path.open("w", encoding="utf-8") as file:
            for line in [{"settings": settings}, *lines[1:]]:
                file.write(json.dumps(line) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                return
            if isinstance(found, dict):
                yield found

    def add(self, video: str, test: int, exchanges: Sequence[Exchange]) -> None:
        """Keep the replies of one test."""
        self.replies[video, test] = list(exchanges)
        line = {"video": video, "test": test, "exchanges": [[e.at, e.reply] for e in exchanges]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def missing(self, video: Video) -> list[int]:
        """The tests of a video that have no replies yet."""
        return [index for index in range(len(video.tests)) if (video.path, index) not in self.replies]


def scored(videos: Sequence[Video], replies: Replies) -> list[tuple[Test, Score]]:
    """The scores of all tests of videos that were watched."""
    return [
        (test, test.score(replies.get((video.path, index), [])))
        for video in videos
        if any((video.path, index) in replies for index in range(len(video.tests)))
        for index, test in enumerate(video.tests)
    ]


def summary(scores: Sequence[tuple[Test, Score]]) -> dict[str, Any]:
    """Per task and group: number of tests, strict and published accuracy, and the benchmarks' different totals.

    `of_tests` counts every test the same (StreamingBench); `of_tasks` is the mean over tasks (StreamGaze); `of_groups`
    the mean over groups of the mean over their tasks (OVO-Bench).
    """
    tasks: dict[tuple[str, str], list[Score]] = {}
    for test, score in scores:
        tasks.setdefault((test.group, test.task), []).append(score)
    rows = [
        {"group": group, "task": task, "n": len(found), **_means(found)}
        for (group, task), found in sorted(tasks.items())
    ]
    totals: dict[str, dict[str, float | None]] = {}
    for rule in ("strict", "published"):
        every = [value for _, score in scores if (value := getattr(score, rule)) is not None]
        by_group: dict[str, list[float]] = {}
        for row in rows:
            if row[rule] is not None:
                by_group.setdefault(row["group"], []).append(row[rule])
        means = [sum(found) / len(found) for found in by_group.values()]
        flat = [value for found in by_group.values() for value in found]
        totals[rule] = {"of_tests": _mean(every), "of_tasks": _mean(flat), "of_groups": _mean(means)}
    return {"tests": len(scores), "tasks": rows, "totals": totals}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _means(scores: Sequence[Score]) -> dict[str, Any]:
    extra = sorted({name for score in scores for name in score.extra})
    return {
        "strict": _mean([s.strict for s in scores if s.strict is not None]),
        "published": _mean([s.published for s in scores if s.published is not None]),
        **{name: _mean([s.extra[name] for s in scores if name in s.extra]) for name in extra},
    }
