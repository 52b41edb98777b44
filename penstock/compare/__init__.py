"""Memories side by side: the same stream, the same questions, one pass per method and budget.

stream.py      a text as token ids, and where its facts stand
questions.py   which fact is asked where: distance bins, at least 20 questions each, every fact once
run.py         one pass: read, ask on forks, measure
baselines.py   beside the memories: an oracle that fetches the right block, and a search over the text
search.py      plain text search over the log
results.py     rows, their cache on disk, stored comparisons
comparison.py  all passes in order, resumed where they ended
parallel.py    several passes at once, one core each
watching.py    memories and reducers on generated videos
tower.py       their frames, encoded once for all
shapes.py      what the tiny video-language model answers
recommend.py   a choice from stored rows, with its reason
plot.py        the picture
shipped.json   a comparison to recommend from: the last line of the command in docs/benchmarks/memories.md under --json,
               without `plot`; made anew whenever the shipped model changes
"""

from __future__ import annotations

from penstock.compare.comparison import Comparison, Progress
from penstock.compare.questions import Bin, Plan, Question, make_plan
from penstock.compare.results import Cache
from penstock.compare.stream import Placed, Stream, facts_stream, text_stream

__all__ = [
    "Bin",
    "Cache",
    "Comparison",
    "Placed",
    "Plan",
    "Progress",
    "Question",
    "Stream",
    "facts_stream",
    "make_plan",
    "text_stream",
]
