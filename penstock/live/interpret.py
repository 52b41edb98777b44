"""A source stream in, target words out: a session that reads and writes by a policy (penstock/triggers/policies.py).

    read "Der Hund"  ──► source entries          policy: so many words may stand written
    write "The dog"  ◄── target entries, which the source does not see with `group-positions` (arXiv:2505.16983)

The last token that was written is let in when the next one is needed, so that it is read behind the newest source: a
token that begins a word too many is not kept, and the memory holds the written tokens less one.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from penstock.errors import UsageError
from penstock.models.text import TextDecoder
from penstock.reply import end_tokens
from penstock.session import Session
from penstock.triggers.policies import Policy, Seen, Units

_WORD = re.compile(r"\S+")


@dataclass
class Interpreter:
    """One text: `read` its source as it comes, `end` when it is over; both return the text that was written then.

    Words are what stands between blanks; a word of the source counts when a blank or the end has followed it.
    `max_new`: tokens of a hypothesis and of what is written between two reads at most.
    """

    session: Session
    policy: Policy
    max_new: int = 64
    text: str = ""  # written so far
    delays: list[int] = field(default_factory=list)  # per written word: source words read before
    words_read: int = 0

    def __post_init__(self) -> None:
        self._ends = end_tokens(self.session)
        self._tokens: list[int] = []  # written
        self._rest = ""  # source text behind the last blank
        self._hypotheses: deque[Units] = deque(maxlen=max(1, self.policy.keeps))
        self._closed = 0  # words behind which another one was about to begin
        self._is_over = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was written, as token ids; all but the last one are in the memory."""
        return tuple(self._tokens)

    def read(self, text: str) -> str:
        """More of the source; whole words of it are read one by one, and the policy is asked behind each."""
        if self._is_over:
            raise UsageError("this source has ended: make another interpreter for the next one.")
        written = ""
        self._rest += text
        while (match := re.match(r"\s*\S+(?=\s)", self._rest)) is not None:
            self._rest = self._rest[match.end() :]
            self._take(match[0])
            written += self._write(finished=False)
        return written

    def end(self) -> str:
        """The source is over: what is left of it is read, the rest of the target written."""
        if self._is_over:
            return ""
        if self._rest.strip():
            self._take(self._rest.rstrip())
        self._is_over = True
        return self._write(finished=True)

    # -- reading and writing ------------------------------------------------------------------------------------

    def _take(self, word: str) -> None:
        self.session.feed(word)
        self.session.flush()
        self.words_read += 1

    def _write(self, finished: bool) -> str:
        if self.session.logits is None:
            return ""
        before = self.text
        if self.policy.keeps:
            ids = self._hypothesis()
            self._hypotheses.append(words(self._decoded([*self._tokens, *ids])))
            allowed = self.policy.allows(Seen(self.words_read, finished, tuple(self._hypotheses)))
            self._keep(self._cut(ids, allowed))
        else:
            self._grow(self.policy.allows(Seen(self.words_read, finished)))
        self.text = self._decoded(self._tokens)
        self.delays += [self.words_read] * (len(words(self.text)) - len(self.delays))
        return self.text[len(before) :]

    def _hypothesis(self) -> list[int]:
        """What would be written now, to its end; the session is as before."""
        ids: list[int] = []
        mark = self.session.mark(max_new=self.max_new + 1)
        try:
            logits = self._next()
            while len(ids) < self.max_new and (token := int(logits.argmax())) not in self._ends:
                ids.append(token)
                logits = self.session.decode(token)
        finally:
            self.session.rollback(mark)
            self.session.commit(mark)
        return ids

    def _next(self) -> Tensor:
        """Logits behind the last written token, with all that was read."""
        logits = self.session.decode(self._tokens[-1]) if self._tokens else self.session.logits
        assert logits is not None
        return logits

    def _cut(self, ids: list[int], allowed: int | None) -> list[int]:
        """So much of a hypothesis that at most `allowed` words stand written, each whole."""
        if allowed is None:
            return ids
        count = 0
        for i in range(1, len(ids) + 1):
            if self._whole([*self._tokens, *ids[:i]], [*self._tokens, *ids], allowed):
                count = i
        return ids[:count]

    def _whole(self, some: list[int], every: list[int], allowed: int) -> bool:
        text, whole = self._decoded(some), self._decoded(every)
        n = len(words(text))
        return (
            0 < n <= allowed and not text[-1:].isspace() and words(text) == words(whole)[:n] and whole.startswith(text)
        )

    def _keep(self, ids: list[int]) -> None:
        for token in ids:
            if self._tokens:
                self.session.decode(self._tokens[-1])
            self._tokens.append(token)

    def _grow(self, allowed: int | None) -> None:
        """Token by token until a word too many begins, which is not kept."""
        if allowed is not None and self._closed >= allowed:
            return
        for _ in range(self.max_new):
            mark = self.session.mark(max_new=2)
            logits = self._next()
            token = int(logits.argmax())
            too_many = allowed is not None and self._begins(token, allowed)
            if token in self._ends or too_many:
                self.session.rollback(mark)  # the last kept token is let in again behind more of the source
                self.session.commit(mark)
                self._closed = allowed or 0 if too_many else self._closed
                break
            self.session.commit(mark)
            self._tokens.append(token)

    def _begins(self, token: int, allowed: int) -> bool:
        """Whether a token ends the last allowed word, or begins one too many."""
        text = self._decoded([*self._tokens, token])
        n = len(words(text))
        return n > allowed or (n == allowed and text[-1:].isspace())

    def _decoded(self, ids: list[int]) -> str:
        decoder = TextDecoder(self.session.model.tokenizer)
        return "".join(map(decoder.push, ids)) + decoder.flush()


def words(text: str) -> Units:
    """What stands between blanks."""
    return tuple(_WORD.findall(text))
