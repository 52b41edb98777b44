"""Speaking up: standing requests ("tell me when ..."), checked where a trigger says so."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from penstock.core import Phase
from penstock.errors import InputError
from penstock.models.sampling import Sampling
from penstock.reply import Feed, Turn, begun, end_tokens, turn_ids
from penstock.triggers import Debounce, Draft, Monitor, Objections, Signs, Trigger
from penstock.watch.eyes import Reader

_NOTHING = re.compile(r"\W*(no|none|nothing|not (yet|seen|now)|not|never|unknown)\b.*", re.IGNORECASE | re.DOTALL)
MAX_NEW = 32
_NOTED = 64  # sentences of which is known when they were said last
_YES_NO = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))


@dataclass(frozen=True)
class Said:
    """Something worth saying."""

    text: str
    request: str
    cut: bool = False  # by the monitor


class Requests:
    """Standing requests on one stream.

    With a trigger that reads silence (`silence`), the requests stand in the stream, and the model goes on talking
    behind a frame when it has something to say.  With any other, each request is asked when the trigger
    fires, in an aside, and told when its answer is positive and was not so, or not the same, the time before.
    A monitor ends what is said where it objects.
    """

    def __init__(
        self, requests: Sequence[str], trigger: Trigger, reader: Reader, monitor: Monitor | None = None,
        debounce: Debounce | None = None,
    ) -> None:  # fmt: skip
        self.requests, self.trigger, self.reader = list(requests), trigger, reader
        self.monitor, self.debounce = monitor, debounce
        self.in_stream = "silence" in trigger.needs
        self._states = [trigger.start() for _ in (self.requests if trigger.each else [""])]
        self._before: dict[str, str] = {}
        self._put_at: int | None = None
        self._answer: list[int] = []  # token ids of the last announcement, where its perplexity is asked for
        self._answered: float | None = None
        self._spoke = False
        self._repeated = ""  # what was said behind the frame before
        self._last: OrderedDict[str, float] = OrderedDict()  # second at which each sentence was said last
        self.checks = 0

    def stand(self) -> None:
        """Put the requests into the stream, and again when the memory has lost them."""
        if not self.in_stream or not self.requests:
            return
        if self._put_at is not None and _holds(self.reader, self._put_at):
            return
        for request in self.requests:
            self.reader.feed(worded(self.reader, request))
        self.reader.flush()
        self._put_at = self.reader.tokens - 1

    def look(self, t: float, change: float) -> list[Said]:
        """After a frame: what is to be said now."""
        if not self.requests:
            return []
        if self.trigger.each:
            return self._look_each(t, change)
        signs = self._signs(t, change)
        self._states[0], speaks = self.trigger.step(self._states[0], signs)
        self._spoke = False
        if not speaks:
            self._repeated = ""
            return []
        self.checks += 1
        if self.in_stream:
            return self._speak_up(t)
        said = [said for request in self.requests if (said := self._asked(request)) is not None]
        if said and "perplexity" in self.trigger.needs:
            self._answer = self.reader.model.tokenizer(said[-1].text, add_special_tokens=False)["input_ids"]
            self._answered, self._spoke = perplexity(self.reader, self._answer), True
        return said

    def _speak_up(self, t: float) -> list[Said]:
        """The model goes on behind the frame of second t; what the trigger does not keep leaves the stream."""
        cut = False
        if self.trigger.weighs or self.monitor is not None:
            with aside(self.reader, MAX_NEW) as trial:
                words = written(self.reader, MAX_NEW, Objections(self.monitor, self.debounce))
                text, cut = words.text.strip(), words.cut
                trial.stays = self.trigger.keeps(Draft(words.least, t - self._last.get(text, -math.inf)))
        else:
            text = (begun(self.reader) + "".join(self.reader.reply(None, max_new=MAX_NEW))).strip()  # type: ignore[arg-type]
            trial = Trial(stays=True)
        repeats = text == self._repeated  # the same words frame after frame are one event
        self._repeated = text if trial.stays or repeats else ""
        if self._repeated:
            self._last[text] = t
            self._last.move_to_end(text)
            if len(self._last) > _NOTED:
                self._last.popitem(last=False)
        return [Said(text, "; ".join(self.requests), cut)] if text and trial.stays and not repeats else []

    def _look_each(self, t: float, change: float) -> list[Said]:
        """Every request by itself; what is not to be looked at costs nothing."""
        said = []
        for i, request in enumerate(self.requests):
            if not self.trigger.looks(self._states[i], t):
                continue
            self.checks += 1
            signs = Signs(t, change, evidence=evidence(self.reader, request))
            self._states[i], speaks = self.trigger.step(self._states[i], signs)
            if speaks:
                answer = self._answered_aside(request)
                said += [answer] if answer.text else []
        return said

    def _answered_aside(self, request: str) -> Said:
        question, text, cut = worded(self.reader, request), "", False
        objections, tokenizer = Objections(self.monitor, self.debounce), self.reader.model.tokenizer
        with aside(self.reader, len(question) + MAX_NEW):
            for piece in self.reader.reply(question, max_new=MAX_NEW):
                if not cut:
                    text += piece
                    cut = objections.to(text, tokenizer(piece, add_special_tokens=False)["input_ids"][-1])
        return Said(text.strip(), request, cut)

    def _asked(self, request: str) -> Said | None:
        said = self._answered_aside(request)
        before, self._before[request] = self._before.get(request), said.text
        return None if not said.text or _NOTHING.fullmatch(said.text) or said.text == before else said

    def _signs(self, t: float, change: float) -> Signs:
        silence, prefers, fits = None, True, None
        logits = self.reader.logits
        if self.in_stream and logits is not None:
            ends = sorted(end_tokens(self.reader))  # type: ignore[arg-type]
            if not ends:
                raise InputError(
                    f"{self.reader.model.name} has no token for silence: choose --trigger change or every."
                )
            silence = float(torch.softmax(logits.float(), -1)[ends].sum())
            prefers = int(logits.argmax()) in ends
        if "perplexity" in self.trigger.needs and self._answer:
            fits = perplexity(self.reader, self._answer)
        return Signs(t, change, silence, prefers, fits, self._spoke, self._answered)


def worded(reader: Reader, text: str) -> str:
    """A question as it is put: on a line of its own where the model has no turns."""
    return text if reader.turns is not None or text.startswith("\n") else f"\n{text}"


def request_of(text: str) -> str:
    """`--tell-me-when TEXT` as a sentence: Tell me when TEXT."""
    text = text.strip()
    if not re.match(r"tell me\b", text, re.IGNORECASE):
        text = f"Tell me when {text}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass
class Trial:
    """What happens to what is read in an aside."""

    stays: bool = False


@contextmanager
def aside(reader: Reader, tokens: int) -> Iterator[Trial]:
    """What is read in here, at most about so many tokens, is taken back, unless it `stays`: a fork without a second
    memory."""
    session: Any = reader
    session.flush()
    mark, trial = session.mark(max_new=tokens + 64), Trial()
    try:
        yield trial
    except BaseException:
        trial.stays = False
        raise
    finally:
        if not trial.stays:
            session.rollback(mark)
        session.commit(mark)


@dataclass(frozen=True)
class Written:
    """Words that were let into the stream, with the probability of the least likely of them."""

    text: str
    least: float
    cut: bool  # a monitor objected


def written(reader: Reader, most: int, objections: Objections) -> Written:
    """Let in the likeliest words, at least one token, until the model ends or somebody objects."""
    session: Any = reader
    scores = session.logits.float().clone()
    scores[..., sorted(end_tokens(session))] = -math.inf  # somebody has decided that now is a moment to speak
    least = float(torch.softmax(scores, -1).max())
    text, cut = begun(session), False
    if text:
        cut = objections.to(text, session.log.slice(session.tokens - 1, session.tokens)[0])
    turn = Turn(session, Sampling(max_new=most))
    items: Any = turn.run()
    while not cut:
        scores, chosen = session.logits, len(turn.tokens)
        item = next(items, None)
        if len(turn.tokens) > chosen and (text or chosen):  # the first token is weighed already
            least = min(least, float(torch.softmax(scores.float(), -1)[..., turn.tokens[-1]]))
        if item is None:
            break
        if isinstance(item, Feed):
            session.decode(item.token)
        else:
            text += item
            cut = objections.to(text, turn.tokens[-1])
    items.close()
    for feed in turn.settle():
        session.decode(feed.token)
    return Written(text, least, cut)


def perplexity(reader: Reader, ids: Sequence[int]) -> float:
    """Of these tokens as an answer here and now; the session is as before."""
    total = 0.0
    with aside(reader, len(ids)):
        for token in ids:
            assert reader.logits is not None
            total -= float(torch.log_softmax(reader.logits.float(), -1)[token])
            reader.decode(token)
    return math.exp(min(total / max(1, len(ids)), 700.0))


def evidence(reader: Reader, request: str) -> float:
    """How sure the model is that it has seen what a request waits for, 0 to 1: its yes against its no.

    The session is as before.
    """
    session: Any = reader
    tokenizer = reader.model.tokenizer
    words = [{tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms} for forms in _YES_NO]
    question = worded(reader, f"{request} Has it been seen? Answer yes or no.")
    with aside(reader, len(question) + MAX_NEW):
        for ids in turn_ids(session, question, False, session._in_answer):
            session.ingest(ids, Phase.ASK)
        session.seer.close(session, Phase.ASK)
        assert reader.logits is not None
        p = torch.softmax(reader.logits.float(), -1)
        yes, no = (float(p[sorted(ids)].sum()) for ids in words)
    return yes / (yes + no) if yes + no else 0.0


def _holds(reader: Reader, index: int) -> bool:
    return any(index in view.seen for view in reader.memory.view())
