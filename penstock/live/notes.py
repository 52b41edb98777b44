"""Notes: the model writes down what it saw, segment by segment, and what it wrote outlives what it saw.

`Notes` keeps them in the memory (Think While Watching, arXiv:2603.11896; TaYS, arXiv:2603.02872: a unit per frame
group): they are answers to nobody, spoken while the next segment is let in.  `TextNotes` keeps them as text and begins
the stream anew behind each clip (Video Streaming Thinking, arXiv:2603.12262).

Differs from the papers: no special tokens, since no model we have was trained on them; a note ends with the model's own
end token or at `max_new`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from penstock.core import Frame
from penstock.errors import UsageError
from penstock.live.live import Live, LiveEvent
from penstock.session import Session


@dataclass
class Notes:
    """After every `every` inputs a note is asked for with `prompt` (None: the model just goes on).

    A note is not begun while an answer is under way or a question waits; the segment is then noted with the next one.
    """

    live: Live
    every: int = 1
    prompt: str | None = None
    max_new: int = 32
    written: deque[str] = field(default_factory=lambda: deque(maxlen=1024))
    _since: int = 0
    _writing: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"a note after every {self.every} inputs cannot be written: give at least 1.")

    def step(self) -> list[LiveEvent]:
        """A step of the live session, and what belongs to notes around it."""
        live = self.live
        if self._since >= self.every and not live.is_speaking and not live.has_questions:
            live.ask(self.prompt, max_new=self.max_new)
            self._since, self._writing = 0, True
            return live.begin()  # a note comes before the inputs that wait
        events = live.step()
        self._since += sum(event.kind == "perceived" for event in events)
        if self._writing and any(event.kind in ("end", "cut") for event in events):
            self.written.append(events[-1].text.strip())
            self._writing = False
        return events

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and every whole segment has its note."""
        return self.live.is_idle and self._since < self.every


class TextNotes:
    """The stream in clips: each ends with a note, and the next clip begins with the notes so far, as text.

    Nothing but text is carried over, so the context stays within notes + one clip; `keep` bounds the number of notes
    (0: all of them).
    """

    def __init__(
        self, session: Session, *, every: int = 16, prompt: str = "Note what happened.", header: str = "",
        keep: int = 16, max_new: int = 64,
    ) -> None:  # fmt: skip
        if every < 1 or keep < 0:
            raise UsageError("text notes need clips of 1 frame or more, and a number of notes to keep from 0 on.")
        self.session, self.every, self.prompt, self.header = session, every, prompt, header
        self.keep, self.max_new = keep, max_new
        self.notes: list[str] = []
        self._frames: list[Frame] = []
        self._open()

    def see(self, frame: Frame) -> str | None:
        """The next frame; returns the note of the clip that it ends."""
        self.session.see(frame)
        self._frames.append(frame)
        if len(self._frames) < self.every:
            return None
        note = "".join(self.session.reply(self.prompt, remember=False, max_new=self.max_new)).strip()
        first, last = self._frames[0].t, self._frames[-1].t
        self.notes.append(f"{first:.1f}s-{last:.1f}s: {note}")
        if self.keep:
            del self.notes[: -self.keep]
        self._frames = []
        self._open()
        return note

    def _open(self) -> None:
        """A stream that holds the header and the notes only."""
        self.session.reset()
        text = "\n".join([*filter(None, [self.header]), *self.notes])
        if text:
            self.session.feed(text + "\n")
            self.session.flush()
